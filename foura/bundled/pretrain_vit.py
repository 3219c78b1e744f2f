"""Pretrain the bundled ViT on rendered glyphs, and write its weights.

`python -m foura.bundled.pretrain_vit` remakes the file that ships with the package.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foura.bundled.vit import BUNDLED_VIT, INPUT_MEAN, INPUT_STD, WEIGHTS
from foura.files import write_weights

IMAGES, EPOCHS = 40_960, 16  # what the committed weights were made with
BATCH = 128
PEAK_LR = 1e-3
WARMUP = 0.05  # share of all steps
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
HELD_OUT = 10_000  # images
HELD_OUT_SEED_OFFSET = 1_000_003  # far from the seeds of the training epochs (seed + epoch)


def pretrain_vit(
    path: Path, *, images: int, epochs: int, seed: int, report: Callable[[str], object] = print
) -> dict[str, str]:
    """Train the bundled ViT from scratch on glyphs and write it, with its head, as float16 safetensors.

    Every epoch has new images: rendering costs far less than training, and nothing can be memorised. The caller's torch
    random state is left as it was.

    Args:
        path: the safetensors file to write, as a whole or not at all.
        images: glyph images per epoch, at least one batch (128).
        epochs: number of epochs, at least 1.
        seed: of the initial weights and of all images.
        report: called with one line of text per epoch and one at the end.

    Returns:
        The metadata in the file's header, all values strings; `held_out_accuracy` (0..1) is measured on 10,000 glyphs of
        another seed with the weights as stored, that is, rounded to float16.

    Raises:
        ValueError: fewer images than one batch, or no epoch.
        OSError: the file cannot be written.
    """
    import torch
    from timm.models.vision_transformer import VisionTransformer

    from foura.bundled.glyphs import GLYPH_CLASSES

    if images < BATCH or epochs < 1:
        raise ValueError(f"need images >= {BATCH} and epochs >= 1, got images={images}, epochs={epochs}")
    began = time.monotonic()
    held_out = _tensors(HELD_OUT, seed + HELD_OUT_SEED_OFFSET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VisionTransformer(**BUNDLED_VIT, num_classes=len(GLYPH_CLASSES))
    optimizer, schedule = _optimizer(model, total=epochs * (images // BATCH))
    for epoch in range(epochs):
        loss = _train_epoch(model, optimizer, schedule, *_tensors(images, seed + epoch))
        minutes = (time.monotonic() - began) / 60
        report(
            f"epoch {epoch + 1}/{epochs} loss {loss:.3f} held-out {_accuracy(model, *held_out):.4f} {minutes:.1f} min"
        )
    exact = _accuracy(model, *held_out)
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    stored = _accuracy(model, *held_out)
    metadata = {"images": str(images), "epochs": str(epochs), "seed": str(seed), "held_out_accuracy": f"{stored:.4f}"}
    metadata |= _description()
    write_weights(state, Path(path), metadata)
    report(f"held-out accuracy {exact:.4f}, stored as float16 {stored:.4f}")
    return metadata


def _tensors(count: int, seed: int) -> tuple[Any, Any]:
    """(normalised images (n, 1, 16, 16), labels (n,))."""
    import torch

    from foura.bundled.glyphs import render_glyphs

    pixels, labels = render_glyphs(count, seed)
    scaled = torch.from_numpy(pixels).unsqueeze(1).float() / 255
    return (scaled - INPUT_MEAN[0]) / INPUT_STD[0], torch.from_numpy(labels)


def _accuracy(model: Any, x: Any, y: Any) -> float:
    import torch

    model.eval()
    with torch.no_grad():
        hits = sum((model(a).argmax(1) == b).sum().item() for a, b in zip(x.split(1000), y.split(1000), strict=True))
    return hits / len(y)


def _optimizer(model: Any, total: int) -> tuple[Any, Any]:
    """AdamW and its schedule over `total` steps: warm-up, then cosine."""
    import torch

    # norms, biases, the class token and the position embedding are not decayed
    kernels = [p for p in model.parameters() if p.ndim == 2 or p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim not in (2, 4)]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    warmup = max(1, round(WARMUP * total))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _train_epoch(model: Any, optimizer: Any, schedule: Any, x: Any, y: Any) -> float:
    """Train on images (n, 1, 16, 16) in the random order in which they were rendered; returns the mean loss."""
    import torch

    criterion = torch.nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    model.train()
    losses = 0.0
    for start in range(0, len(x) - BATCH + 1, BATCH):
        batch = slice(start, start + BATCH)
        loss = criterion(model(x[batch]), y[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses += loss.item()
    return losses / (len(x) // BATCH)


def _description() -> dict[str, str]:
    """Data and architecture, for the file's header."""
    from foura.bundled.glyphs import GLYPH_CLASSES

    return {
        "source_domain": "rendered glyphs without digits (foura.bundled.glyphs)",
        "num_classes": str(len(GLYPH_CLASSES)),
        "held_out_images": str(HELD_OUT),
        "architecture": json.dumps(BUNDLED_VIT, sort_keys=True),
        "input_mean": str(INPUT_MEAN[0]),
        "input_std": str(INPUT_STD[0]),
    }


if __name__ == "__main__":
    import torch

    torch.set_num_threads(2)
    pretrain_vit(WEIGHTS, images=IMAGES, epochs=EPOCHS, seed=0)
