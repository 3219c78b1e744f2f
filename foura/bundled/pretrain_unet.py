"""Pretrain the bundled UNet on plain coloured letters, and write its weights.

`python -m foura.bundled.pretrain_unet` remakes the file that ships with the package.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foura.bundled.unet import BUNDLED_NOISE, BUNDLED_UNET, FOLDER
from foura.files import write_weights

STEPS = 4000  # what the committed weights were made with
BATCH = 64
PEAK_LR = 2e-3
WARMUP = 200  # steps
NO_CAPTION = 0.1  # share of images without a caption, for classifier-free guidance
AVERAGE = 0.998  # decay of the moving average of the weights, which is what is kept
IMAGES = 26 * 320  # letters rendered at a time; each is used a few times
REFRESH = 400  # steps until they are rendered anew
REPORT, WRITE = 200, 1000  # steps


def pretrain_unet(folder: Path, *, steps: int, seed: int, report: Callable[[str], object] = print) -> None:
    """Train the bundled UNet from scratch on letters (DDPM loss); writes the moving average of its weights in float16.

    Args:
        folder: gets the file `model.safetensors`.
        report: called with a line of text now and then.
    """
    import torch
    from diffusers import DDPMScheduler

    from foura.bundled.caption_unet import caption_bytes, fresh_unet

    torch.manual_seed(seed)
    model = fresh_unet()
    scheduler: Any = DDPMScheduler(**BUNDLED_NOISE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=0.01)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    empty = caption_bytes([""])
    began, losses = time.monotonic(), []
    for step in range(steps):
        if step % REFRESH == 0:
            images, tokens = _letters(seed + step)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = _loss(model, scheduler, images, tokens, empty)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _update(average, model, decay=min(AVERAGE, (step + 1) / (step + 10)))
        losses.append(loss.item())
        done, last = step + 1, step + 1 == steps
        if done % REPORT == 0 or last:
            mean, minutes = sum(losses[-REPORT:]) / len(losses[-REPORT:]), (time.monotonic() - began) / 60
            report(f"step {done}/{steps} loss {mean:.4f} {minutes:.1f} min")
        if done % WRITE == 0 or last:
            about = {"architecture": json.dumps(BUNDLED_UNET), "steps": str(done), "seed": str(seed)}
            half = {name: tensor.half().contiguous() for name, tensor in average.items()}
            write_weights(half, folder / "model.safetensors", about)


def _letters(seed: int) -> tuple[Any, Any]:
    """(images (n, 3, 16, 16) in -1..1, caption tokens (n, T))."""
    import torch

    from foura.bundled.caption_unet import caption_bytes
    from foura.bundled.letters import render_letters

    pixels, captions = render_letters(IMAGES, seed, "plain")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, caption_bytes(captions)


def _loss(model: Any, scheduler: Any, images: Any, tokens: Any, empty: Any) -> Any:
    """Mean squared error of the predicted velocity, for a random batch at random timesteps."""
    import torch

    pick = torch.randint(len(images), (BATCH,))
    caption = torch.where(torch.rand(BATCH, 1) < NO_CAPTION, empty, tokens[pick])
    noise = torch.randn(BATCH, *images.shape[1:])
    timesteps = torch.randint(BUNDLED_NOISE["num_train_timesteps"], (BATCH,))
    noisy = scheduler.add_noise(images[pick], noise, timesteps)
    wanted = scheduler.get_velocity(images[pick], noise, timesteps)
    return torch.nn.functional.mse_loss(model(noisy, timesteps, caption), wanted)


def _update(average: dict[str, Any], model: Any, decay: float) -> None:
    """Move the average of the weights towards the present ones."""
    import torch

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - decay)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(2)
    pretrain_unet(FOLDER, steps=STEPS, seed=0)
