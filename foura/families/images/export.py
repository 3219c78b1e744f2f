"""A merged image model in the form that timm loads."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def save_merged(model: Any, name: str, out: Path) -> None:
    """Write the model `backbone.name` to the new folder `out`: weights alone for the bundled ViT, else a timm folder."""
    if name == "embedded":
        out.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, out / "model.safetensors")
        return
    from timm.models import save_for_hf

    with torch.no_grad():
        save_for_hf(model, str(out), safe_serialization=True)
