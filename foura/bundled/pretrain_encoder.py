"""Pretrain the bundled encoder on English that is installed anyway, and write it with its tokenizer.

Two losses: masked language modelling (BERT, arXiv:1810.04805, section 3.1), and, for the pooled [CLS] vector that
classifiers read, a contrastive one between adjoining spans of the same document (DeCLUTR, arXiv:2006.03659, section 3).

`python -m foura.bundled.pretrain_encoder` remakes the folder that the package carries.
"""

from __future__ import annotations

import re
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foura.bundled.docstrings import plain, python_files, read_docstrings, source_files
from foura.bundled.encoder import BUNDLED_ENCODER, CLS, FOLDER, MASK, PAD, SEP, SPECIAL_TOKENS, UNKNOWN
from foura.files import write_checksum

if TYPE_CHECKING:
    from torch import Generator, Tensor

EPOCHS = 3  # for the committed weights
# none of `docstrings.LIBRARIES`, whose texts are the task that the encoder is adapted to
PACKAGES: tuple[str, ...] = (
    "datasets",
    "huggingface_hub",
    "networkx",
    "numpy",
    "peft",
    "pytorch_lightning",
    "sqlalchemy",
    "sympy",
)
PACKAGES += ("timm", "torchmetrics", "torchvision")
HELD_OUT = 50  # every fiftieth document is measured and not trained on
LENGTHS = (64, 128, 256)  # tokens of a span, in turn
BATCH = 4096  # tokens
MASKED = 0.2  # share of the tokens that are to be predicted
TEMPERATURE = 0.05  # of the contrastive loss
CONTRAST = 0.1  # its weight
PEAK_LR = 2e-3
WARMUP = 0.1  # share of all steps
WEIGHT_DECAY = 0.01
_EXAMPLE = re.compile(r"^[ \t]*>>>.*?(?:^\s*$|\Z)", re.MULTILINE | re.DOTALL)


def english() -> tuple[list[str], list[str]]:
    """(training documents, held-out documents): a document is all that the docstrings of one file say.

    Of the standard library and `PACKAGES`, without code examples and markup, and the topics of Python's help system.
    """
    from pydoc_data.topics import topics

    documents = [plain(topics[name]) for name in sorted(topics)]
    for files in (python_files(Path(sysconfig.get_paths()["stdlib"])), *map(source_files, PACKAGES)):
        for file in files.values():
            documents.append("\n".join(plain(_EXAMPLE.sub("", text)) for text in read_docstrings(file)))
    documents = sorted({text for text in documents if text.strip()})
    return [text for i, text in enumerate(documents) if i % HELD_OUT], documents[::HELD_OUT]


def train_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer in lower case, which reads any text, as transformers' fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BUNDLED_ENCODER["vocab_size"],
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    ends = [(token, bpe.token_to_id(token)) for token in (CLS, SEP)]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:0 {SEP}:0", special_tokens=ends
    )
    names = {"pad_token": PAD, "unk_token": UNKNOWN, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK}
    longest = BUNDLED_ENCODER["max_position_embeddings"]
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=longest, **names)


class Spans:
    """Pairs of adjoining spans, drawn anywhere in documents that are long enough.

    Args:
        documents: texts.
        tokenizer: of `train_tokenizer`.
    """

    def __init__(self, documents: list[str], tokenizer: Any) -> None:
        import torch

        pieces = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
        self.ids = torch.tensor([token for piece in pieces for token in piece])
        self.left = torch.tensor([left for piece in pieces for left in range(len(piece), 0, -1)])  # in the document
        self.starts = {length: torch.nonzero(self.left >= 2 * (length - 2)).flatten() for length in LENGTHS}
        self.tokenizer = tokenizer

    def draw(self, length: int, generator: Generator) -> Tensor:
        """Token ids (BATCH / length, length), each with [CLS] and [SEP]; row i adjoins row i of the other half."""
        import torch

        body = length - 2
        chosen = torch.randint(len(self.starts[length]), (BATCH // length // 2,), generator=generator)
        first = self.starts[length][chosen]
        spans = self.ids[torch.cat([first, first + body]).unsqueeze(1) + torch.arange(body)]
        ends = [
            torch.full((len(spans), 1), token) for token in (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        ]
        return torch.cat([ends[0], spans, ends[1]], 1)


def mask(ids: Tensor, mask_id: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """(ids with some tokens hidden, which ones are to be predicted), both of the shape of `ids` (S, T).

    Of the tokens to be predicted 80 % become [MASK], 10 % another token, and 10 % stay (BERT, section 3.1).
    """
    import torch

    chance, kind = (torch.rand(ids.shape, generator=generator) for _ in range(2))
    predicted = (chance < MASKED) & (ids >= len(SPECIAL_TOKENS))
    others = torch.randint(len(SPECIAL_TOKENS), BUNDLED_ENCODER["vocab_size"], ids.shape, generator=generator)
    hidden = torch.where(predicted & (kind < 0.8), mask_id, ids)
    return torch.where(predicted & (kind >= 0.9), others, hidden), predicted


def losses(model: Any, ids: Tensor, mask_id: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(masked language modelling loss in nats per token, share of tokens predicted rightly, contrastive loss)."""
    import torch
    from torch.nn import functional

    hidden, predicted = mask(ids, mask_id, generator)
    out = model.bert(input_ids=hidden)
    logits, wanted = model.cls(out.last_hidden_state[predicted]), ids[predicted]
    first, second = functional.normalize(out.pooler_output, dim=1).chunk(2)
    alike = first @ second.T / TEMPERATURE
    same = torch.arange(len(first))
    contrast = (functional.cross_entropy(alike, same) + functional.cross_entropy(alike.T, same)) / 2
    return functional.cross_entropy(logits, wanted), (logits.argmax(1) == wanted).float().mean(), contrast


def pretrain_encoder(folder: Path, *, epochs: int, seed: int, report: Callable[[str], object] = print) -> None:
    """Train a tokenizer and a BERT on it, and write both in the form of transformers' save_pretrained, in float16.

    The folder holds a `BertForMaskedLM` with the pooler that `BertForSequenceClassification` has.

    Args:
        folder: to be given to transformers' `from_pretrained`.
        report: called with a line of text per epoch.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM
    from transformers.models.bert.modeling_bert import BertPooler

    train, held_out = english()
    tokenizer = train_tokenizer(train)
    spans, held = Spans(train, tokenizer), Spans(held_out, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(BertConfig(**BUNDLED_ENCODER, pad_token_id=tokenizer.pad_token_id))
        model.bert.pooler = BertPooler(model.config)
    kernels = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    steps = len(spans.ids) // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / (WARMUP * steps * epochs), (1 - step / (steps * epochs)) / (1 - WARMUP)),
    )
    generator, began = torch.Generator().manual_seed(seed), time.monotonic()
    for epoch in range(epochs):
        model.train()
        for step in range(steps):
            ids = spans.draw(LENGTHS[step % len(LENGTHS)], generator)
            modelling, _, contrast = losses(model, ids, tokenizer.mask_token_id, generator)
            optimizer.zero_grad(set_to_none=True)
            (modelling + CONTRAST * contrast).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        report(f"epoch {epoch + 1}/{epochs} {measure(model, held)} {(time.monotonic() - began) / 60:.1f} min")
    model.half().save_pretrained(folder)
    write_checksum(folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only: no good in a package


def measure(model: Any, held: Spans, batches: int = 48) -> str:
    """The losses on held-out documents, in words."""
    import torch

    model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = [
            torch.stack(
                losses(model, held.draw(LENGTHS[i % len(LENGTHS)], generator), held.tokenizer.mask_token_id, generator)
            )
            for i in range(batches)
        ]
    loss, accuracy, contrast = torch.stack(found).mean(0).tolist()
    return f"held-out {loss:.3f} nats per masked token, {accuracy:.1%} right, contrast {contrast:.3f}"


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    pretrain_encoder(FOLDER, epochs=EPOCHS, seed=0)
