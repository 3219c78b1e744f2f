"""Pretrain the embedded UNet on plain coloured letters and write its weights.

`python -m foura.bundled.pretrain_unet` remakes the file that the package carries.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foura.bundled.unet import EMBEDDED_NOISE, EMBEDDED_UNET, FOLDER
from foura.files import seal

STEPS = 4000  # what the committed weights were made with
BATCH = 64
PEAK_LR = 2e-3
WARMUP = 200  # steps
NO_CAPTION = 0.1  # share of images without one, for guidance
AVERAGE = 0.998  # of the weights that are kept, over steps
IMAGES = 26 * 320  # letters drawn anew so often; each is used a few times
REFRESH = 400  # steps


def pretrain_unet(folder: Path, *, steps: int, seed: int, report: Callable[[str], object] = print) -> None:
    """Train the embedded UNet from scratch on letters (DDPM loss) and write the average of its weights in float16.

    Args:
        folder: the file `model.safetensors` is written there.
        report: called with a line of text now and then.
    """
    import torch
    from diffusers import DDPMScheduler
    from safetensors.torch import save_file

    from foura.bundled.caption_unet import caption_bytes, fresh_embedded
    from foura.bundled.letters import render_letters

    torch.manual_seed(seed)
    model = fresh_embedded()
    scheduler: Any = DDPMScheduler(**EMBEDDED_NOISE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=0.01)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    empty = caption_bytes([""])
    began, losses = time.monotonic(), []
    for step in range(steps):
        if step % REFRESH == 0:
            pixels, captions = render_letters(IMAGES, seed + step, "plain")
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            tokens = caption_bytes(captions)
        warm, progress = (step + 1) / WARMUP, step / steps
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(warm, 0.5 * (1 + math.cos(math.pi * progress)))
        pick = torch.randint(len(images), (BATCH,))
        caption = torch.where(torch.rand(BATCH, 1) < NO_CAPTION, empty, tokens[pick])
        noise, timesteps = torch.randn(BATCH, *images.shape[1:]), torch.randint(1000, (BATCH,))
        noisy = scheduler.add_noise(images[pick], noise, timesteps)
        wanted = scheduler.get_velocity(images[pick], noise, timesteps)
        loss = torch.nn.functional.mse_loss(model(noisy, timesteps, caption), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(AVERAGE, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                average[name].lerp_(tensor, 1 - keep)
        losses.append(loss.item())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            mean, minutes = sum(losses[-200:]) / len(losses[-200:]), (time.monotonic() - began) / 60
            report(f"step {step + 1}/{steps} loss {mean:.4f} {minutes:.1f} min")
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            folder.mkdir(parents=True, exist_ok=True)
            about = {"architecture": json.dumps(EMBEDDED_UNET), "steps": str(step + 1), "seed": str(seed)}
            target = folder / "model.safetensors"
            temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
            save_file({name: tensor.half().contiguous() for name, tensor in average.items()}, temporary, metadata=about)
            temporary.chmod(0o644)
            os.replace(temporary, target)
            seal(target)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(2)
    pretrain_unet(FOLDER, steps=STEPS, seed=0)
