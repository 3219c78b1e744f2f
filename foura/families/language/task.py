"""Language modelling: next-token loss on running text or completions, multiple choice, and verbatim memorisation."""

import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import SumMetric

from foura.atomic import write_text
from foura.families.language.data import LanguageData
from foura.families.language.tokens import IGNORED
from foura.families.task import EVALUATIONS, Task

COUNTS = ("nats", "tokens", "right", "judged", "bytes")
SHOWN = 4  # passages of each split in completions.txt


class Language(Task):
    """Batches are those of `tokens.collate`.

    loss: nats per token (of the gold answer, for multiple choice). ppl: its exponential. acc: the share of tokens, or of
    questions, that the model gets right; its answer to a question is the choice with the highest log-likelihood. bpb: bits
    per byte of text, which compares models of different tokenizers.
    """

    metrics = ("loss", "acc")

    def __init__(self, model: nn.Module, cfg: DictConfig, tokenizer: Any) -> None:
        super().__init__(model, cfg)
        self.evaluation, self.tokenizer = cfg.evaluation, tokenizer
        names = (*EVALUATIONS, "test")
        self.counts: Any = nn.ModuleDict(
            {name: nn.ModuleDict({key: SumMetric(nan_strategy="disable") for key in COUNTS}) for name in names}
        )

    def inputs(self, batch: Any) -> dict[str, Tensor]:
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def terms(self, batch: Any) -> Tensor:
        return (batch["labels"][:, 1:] != IGNORED).sum()

    def loss(self, batch: Any) -> Tensor:
        logits = self.model(**self.inputs(batch)).logits
        return nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED
        )

    def evaluate(self, name: str, batch: Any) -> dict[str, Tensor] | None:
        logits, targets = self.model(**self.inputs(batch)).logits[:, :-1], batch["labels"][:, 1:]
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(targets)
        nats, tokens, size = losses.sum(1), (targets != IGNORED).sum(1), batch["bytes"]
        each = None  # a mean over tokens is none over items
        if "question" in batch:
            answers = _likeliest(-nats, batch["question"])
            each = batch["gold"][answers]
            right, judged = each.sum(), len(answers)
            nats, tokens, size = nats[batch["gold"]], tokens[batch["gold"]], size[batch["gold"]]
        else:
            right, judged = ((logits.argmax(-1) == targets) & (targets != IGNORED)).sum(), tokens.sum()
        for key, value in zip(COUNTS, (nats.sum(), tokens.sum(), right, judged, size.sum()), strict=True):
            self.counts[name][key].update(value)
        return None if each is None else {"acc": each}

    def results(self, name: str) -> dict[str, float]:
        nats, tokens, right, judged, size = (float(self.counts[name][key].compute()) for key in COUNTS)
        for counter in self.counts[name].values():
            counter.reset()
        loss = nats / tokens
        values = {"loss": loss, "acc": right / judged, "ppl": math.exp(min(loss, 700.0))}
        return {**values, "bpb": nats / math.log(2) / size} if name == "test" else values

    def final_measures(self, data: LanguageData, folder: Path) -> dict[str, float]:
        """memorised/train and memorised/val: the share of passages that the model completes verbatim from their prefix.

        Running text only. The completions of the first passages go to `folder`/completions.txt.
        """
        if not data.packed:
            return {}
        shares, lines = {}, []
        for name, blocks in (("train", data.train), ("val", data.validation)):
            ids = torch.stack([block.ids for block in blocks[: self.evaluation.passages]]).to(self.device)
            length = min(self.evaluation.passage_tokens, ids.shape[1] // 2)
            prefix, truth = ids[:, : ids.shape[1] // 2], ids[:, ids.shape[1] // 2 :][:, :length]
            completed = self._complete(prefix, length)
            shares[f"memorised/{name}"] = float((completed == truth).all(1).float().mean())
            for row in range(min(SHOWN, len(ids))):
                start, text, model = (
                    repr(self.tokenizer.decode(part[row].tolist())) for part in (prefix[:, -length:], truth, completed)
                )
                lines += [f"[{name}] … {start}", f"    text:  {text}", f"    model: {model}", ""]
        write_text(folder / "completions.txt", "\n".join(lines))
        return shares

    @torch.no_grad()
    def _complete(self, prefix: Tensor, length: int) -> Tensor:
        """The most likely next `length` tokens, one by one, (S, length)."""
        model: Any = self.model
        settings = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": None}
        options = {"max_new_tokens": length, "min_new_tokens": length, **settings}
        written = model.generate(input_ids=prefix, attention_mask=torch.ones_like(prefix), **options)
        return written[:, prefix.shape[1] :]


def _likeliest(scores: Tensor, question: Tensor) -> Tensor:
    """The row with the highest score of each question."""
    best = [rows[scores[rows].argmax()] for rows in (torch.nonzero(question == q)[:, 0] for q in question.unique())]
    return torch.stack(best)
