"""Pretrain the embedded ViT on rendered glyphs and write its weights.

`python -m foura.bundled.pretrain_vit` remakes the file that the package carries.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foura.bundled.vit import EMBEDDED_VIT, INPUT_MEAN, INPUT_STD, WEIGHTS
from foura.files import seal

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
    """Train the embedded ViT from scratch on glyphs and write it, with its head, as float16 safetensors.

    Every epoch draws fresh images: drawing costs far less than training, and nothing can be memorised. The
    caller's torch random state is left as it was; the thread count is the caller's to set.

    Args:
        path: the safetensors file to write; made under a temporary name beside it, then moved into place.
        images: glyph images per epoch, at least one batch (128).
        epochs: number of epochs, at least 1.
        seed: seeds the initial weights and all drawing.
        report: called with one line of text per epoch and one at the end.

    Returns:
        The header metadata as written, all values strings; `held_out_accuracy` (0..1) is measured on 10000
        glyphs of another seed with the weights as stored, that is, rounded to float16.

    Raises:
        ValueError: fewer images than one batch, or no epoch.
        OSError: the file cannot be written.
    """
    import json

    import torch
    from safetensors.torch import save_file
    from timm.models.vision_transformer import VisionTransformer

    from foura.bundled.glyphs import GLYPH_CLASSES, render_glyphs

    if images < BATCH or epochs < 1:
        raise ValueError(f"need images >= {BATCH} and epochs >= 1, got images={images}, epochs={epochs}")
    path = Path(path)
    began = time.monotonic()

    def tensors(count: int, drawing_seed: int):
        pixels, labels = render_glyphs(count, drawing_seed)
        scaled = torch.from_numpy(pixels).unsqueeze(1).float() / 255
        return (scaled - INPUT_MEAN[0]) / INPUT_STD[0], torch.from_numpy(labels)

    def accuracy(x, y) -> float:
        model.eval()
        with torch.no_grad():
            hits = sum(
                (model(a).argmax(1) == b).sum().item() for a, b in zip(x.split(1000), y.split(1000), strict=True)
            )
        return hits / len(y)

    held_out = tensors(HELD_OUT, seed + HELD_OUT_SEED_OFFSET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VisionTransformer(**EMBEDDED_VIT, num_classes=len(GLYPH_CLASSES))
    # Norms, biases, the class token and the position embedding are not decayed.
    kernels = [p for p in model.parameters() if p.ndim == 2 or p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim not in (2, 4)]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    total = epochs * (images // BATCH)
    warmup = max(1, round(WARMUP * total))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    criterion = torch.nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for epoch in range(epochs):
        model.train()
        x, y = tensors(images, seed + epoch)
        losses = 0.0
        # The glyphs come in random order already, so there is no shuffling.
        for start in range(0, images - BATCH + 1, BATCH):
            batch = slice(start, start + BATCH)
            loss = criterion(model(x[batch]), y[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses += loss.item()
        mean, score = losses / (images // BATCH), accuracy(*held_out)
        minutes = (time.monotonic() - began) / 60
        report(f"epoch {epoch + 1}/{epochs} loss {mean:.3f} held-out {score:.4f} {minutes:.1f} min")

    exact = accuracy(*held_out)
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    stored = accuracy(*held_out)
    metadata = {
        "source_domain": "rendered glyphs without digits (foura.bundled.glyphs)",
        "num_classes": str(len(GLYPH_CLASSES)),
        "images": str(images),
        "epochs": str(epochs),
        "seed": str(seed),
        "held_out_images": str(HELD_OUT),
        "held_out_accuracy": f"{stored:.4f}",
        "architecture": json.dumps(EMBEDDED_VIT, sort_keys=True),
        "input_mean": str(INPUT_MEAN[0]),
        "input_std": str(INPUT_STD[0]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary, metadata=metadata)
        temporary.chmod(0o644)  # safetensors makes it readable by its owner only: no good in a package
        os.replace(temporary, path)
        seal(path)
    finally:
        temporary.unlink(missing_ok=True)
    report(f"held-out accuracy {exact:.4f}, stored as float16 {stored:.4f}")
    return metadata


if __name__ == "__main__":
    import torch

    torch.set_num_threads(2)
    pretrain_vit(WEIGHTS, images=IMAGES, epochs=EPOCHS, seed=0)
