"""Pretrain the bundled LLaMA on English that comes with Python, and write it with its tokenizer.

`python -m foura.bundled.pretrain_llama` remakes the folder that ships with the package.
"""

from __future__ import annotations

import ast
import math
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from foura.bundled.llama import BUNDLED_LLAMA, END, FOLDER, PAD
from foura.files import write_checksum

EPOCHS = 2  # what the committed weights were made with
PACKAGES = ("numpy", "scipy", "sklearn")
SHORTEST = 400  # characters of a docstring that is used
BLOCK = 256  # tokens
BATCH = 16  # blocks
PEAK_LR = 3e-3
WARMUP = 0.05  # share of all steps
WEIGHT_DECAY = 0.1
HELD_OUT = 50  # every fiftieth text is not trained on, but measured


def english() -> tuple[list[str], list[str]]:
    """(training texts, held-out texts): English of technical references, which is installed anyway.

    The topics of Python's help system, and the docstrings of numpy, scipy and scikit-learn without their examples. None of
    it is source code of the standard library, which is the data that the model is adapted to.
    """
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    for package in PACKAGES:
        for file in sorted(Path(str(files(package))).rglob("*.py")):
            if "tests" not in file.parts:
                texts += docstrings(file.read_text(encoding="utf-8"))
    texts = sorted(set(texts))
    return [text for i, text in enumerate(texts) if i % HELD_OUT], texts[::HELD_OUT]


def docstrings(source: str) -> list[str]:
    """The longer docstrings of a module, without their examples in code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            lines = (ast.get_docstring(node) or "").splitlines()
            kept, code = [], False
            for line in lines:
                code = line.lstrip().startswith((">>>", "...")) or (code and bool(line.strip()))
                if not code:
                    kept.append(line)
            text = "\n".join(kept).strip()
            if len(text) >= SHORTEST:
                found.append(text)
    return found


def pretrain_llama(folder: Path, *, epochs: int, seed: int, report: Callable[[str], object] = print) -> None:
    """Train a byte-level BPE tokenizer and the bundled LLaMA with it; writes both in the form of transformers, in float16.

    Args:
        folder: where transformers' `from_pretrained` finds them afterwards.
        report: called with a line of text per epoch and one at the end.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    train, held_out = english()
    tokenizer = train_tokenizer(train)
    ids = _tokens(tokenizer, train)
    held = _tokens(tokenizer, held_out)
    held = held[: len(held) // BLOCK * BLOCK].view(-1, BLOCK)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**BUNDLED_LLAMA, **ends, pad_token_id=tokenizer.pad_token_id))
    generator = torch.Generator().manual_seed(seed)
    steps = len(ids) // (BLOCK * BATCH)
    optimizer, schedule = _optimizer(model, steps * epochs)
    began = time.monotonic()
    for epoch in range(epochs):
        loss = _train_epoch(model, optimizer, schedule, ids, steps, generator)
        measured = _held_out_loss(model, held)
        minutes = (time.monotonic() - began) / 60
        report(f"epoch {epoch + 1}/{epochs} train {loss:.3f} held-out {measured:.3f} nats a token {minutes:.1f} min")
    bits = measured / math.log(2) * held.numel() / len(str(tokenizer.decode(held.flatten())).encode())
    report(f"held-out texts: {bits:.3f} bits per byte")
    model.half().save_pretrained(folder)
    write_checksum(folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner alone


def train_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer, which can read any text, as transformers' fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BUNDLED_LLAMA["vocab_size"],
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all bytes
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=END, pad_token=PAD)


def _tokens(tokenizer: Any, texts: list[str]) -> Any:
    """The ids of all texts, each closed by the end token, (T,)."""
    import torch

    return torch.tensor([t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])


def _optimizer(model: Any, total: int) -> tuple[Any, Any]:
    """AdamW and its schedule over `total` steps: warm-up, then cosine."""
    import torch

    kernels = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)

    def rate(step: int) -> float:
        if step < WARMUP * total:
            return (step + 1) / (WARMUP * total + 1)
        return 0.5 * (1 + math.cos(math.pi * (step / total - WARMUP) / (1 - WARMUP)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _train_epoch(model: Any, optimizer: Any, schedule: Any, ids: Any, steps: int, generator: Any) -> float:
    """As many tokens as there are, in blocks that start anywhere; returns the mean loss."""
    import torch

    model.train()
    losses = 0.0
    for _ in range(steps):
        starts = torch.randint(len(ids) - BLOCK, (BATCH,), generator=generator)
        batch = torch.stack([ids[start : start + BLOCK] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses += loss.item()
    return losses / steps


def _held_out_loss(model: Any, held: Any) -> float:
    """Nats per token of blocks (n, BLOCK)."""
    import torch

    model.eval()
    with torch.no_grad():
        return sum(float(model(input_ids=part, labels=part).loss) * len(part) for part in held.split(BATCH)) / len(held)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    pretrain_llama(FOLDER, epochs=EPOCHS, seed=0)
