"""The language task: its metrics against values worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from foura.families.language.sources import open_text
from foura.families.language.task import Language
from foura.families.language.tokens import IGNORED, collate
from tests.helpers.config import composed
from tests.helpers.texts import config, prepared


class Fixed(nn.Module):
    """A language model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, attention_mask):
        return type("Output", (), {"logits": self.logits[: len(input_ids), : input_ids.shape[1]]})()


def test_loss_accuracy_and_bits_per_byte_by_hand(llama) -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]])
    task = Language(Fixed(probabilities.log()[None]), composed("backbone=llama_small"), llama.tokenizer)
    batch = {
        "input_ids": torch.tensor([[0, 1, 2]]),
        "attention_mask": torch.ones(1, 3, dtype=torch.long),
        "labels": torch.tensor([[IGNORED, 1, 2]]),
        "bytes": torch.tensor([5]),
    }
    task.evaluate("test", batch)
    nats = -math.log(0.25) - math.log(0.8)
    expected = {"loss": nats / 2, "acc": 0.5, "ppl": math.exp(nats / 2), "bpb": nats / math.log(2) / 5}
    assert task.results("test") == pytest.approx(expected, rel=1e-6)


def test_the_likeliest_choice_is_the_answer(llama, lines) -> None:
    """Scored one by one by the model itself, without batching or padding."""
    rows = [
        {"sentence": s, "label": i % 2} for i, s in enumerate(["the", "a matrix of", "Returns", "see also the"] * 5)
    ]
    fields = {"template": "{sentence}", "verbalizer": [" array", " zebra of the sea"]}
    data = prepared(open_text(config(path=lines(*rows), **fields), "verbalizer"), llama)
    assert data.judged
    task = Language(llama.model, composed("backbone=llama_small"), llama.tokenizer)
    llama.model.eval()
    with torch.no_grad():
        task.evaluate("val", collate(data.validation, llama.tokenizer.pad_token_id))
    right, nats, tokens = 0, 0.0, 0
    for question in data.validation:
        scores = []
        for choice in question.candidates:
            with torch.no_grad():
                logits = llama.model(choice.ids[None]).logits[0, :-1].log_softmax(-1)
            wanted = choice.labels[1:]
            scores.append(float(logits[wanted != IGNORED, wanted[wanted != IGNORED]].sum()))
        right += scores.index(max(scores)) == question.gold
        nats -= scores[question.gold]
        tokens += int((question.candidates[question.gold].labels != IGNORED).sum())
    result = task.results("val")
    assert result["acc"] == pytest.approx(right / len(data.validation))
    assert result["loss"] == pytest.approx(nats / tokens, rel=1e-4)


def test_a_passage_is_memorised_if_every_token_of_its_end_is_right(llama, tmp_path) -> None:
    """Of three passages the second has one wrong token of four; only the first two are looked at, where two are asked for."""
    truth = torch.arange(24).reshape(3, 8) + 40
    completed = truth[:, 4:].clone()
    completed[1, 3] = 39
    by_prefix = {tuple(row[:4].tolist()): end for row, end in zip(truth, completed, strict=True)}

    def complete(prefix, length):
        return torch.stack([by_prefix.get(tuple(row.tolist()), torch.zeros(4, dtype=torch.long)) for row in prefix])

    for passages, share in ((3, 2 / 3), (2, 1 / 2)):
        cfg = composed("backbone=llama_small", f"evaluation.passages={passages}", "evaluation.passage_tokens=4")
        task = Language(llama.model, cfg, llama.tokenizer)
        task._complete = complete
        train, val = ([SimpleNamespace(ids=row) for row in rows] for rows in (truth, truth + 30))
        found = task.final_measures(SimpleNamespace(packed=True, train=train, validation=val), tmp_path)
        assert found == {"memorised/train": pytest.approx(share), "memorised/val": 0.0}
