"""`foura export`: a finished run's adapter in the form that another stack serves."""

import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import nn

from foura.adapter import freeze_gates, save_as_lora
from foura.errors import UserError
from foura.families.family import Parts, build
from foura.run.load import BARE, check_adapter, load_adapter, load_bare, read_config
from foura.run.loop import Loaders
from foura.run.run import quiet

FORMS = ("peft", "lora", "kohya", "merged")
KEPT = ("adapter_config.json", "adapter_model.safetensors", "model.safetensors", "README.md")  # of an adapter's folder


def export(run: Path, to: str, out: Path, freeze: bool = False) -> None:
    """Write the adapter of a run's folder to `out`.

    Args:
        to: "peft": as it was saved. "lora": an ordinary LoRA, exactly (for a UNet as diffusers loads it). "kohya": that in
            kohya's naming (UNet). "merged": the whole model with the update in its weights.
        freeze: calibrate an adaptive gate to a fixed mask first, on the run's own training data.

    Raises:
        UserError: a form that this adapter does not have, and what to do about it.
    """
    if out.exists():
        raise UserError(f"{out} is there already; name a folder that is not.")
    quiet()
    cfg = read_config(run)
    bare = cfg.adapter.method in BARE
    if to == "peft":
        if not bare:
            check_adapter(run / "adapter", cfg.adapter.method)
        out.mkdir(parents=True)
        for name in KEPT:
            if (run / "adapter" / name).is_file():
                shutil.copyfile(run / "adapter" / name, out / name)
        return
    if to != "merged" and cfg.adapter.method != "foura":
        raise UserError(f"adapter={cfg.adapter.name} is saved in its own form already: use --to peft or --to merged.")
    if to == "kohya" and cfg.backbone.family != "unet":
        raise UserError("kohya's naming is for adapters of diffusion models; use --to lora.")
    parts = build(cfg)
    if bare:
        _save_model(parts, load_bare(run, parts, cfg), cfg, out)
        return
    model = load_adapter(parts.backbone.model, run, cfg.adapter.method)
    if cfg.adapter.method == "foura" and cfg.adapter.gate == "adaptive":
        if not freeze:
            raise UserError("this adapter's gate depends on the input, so it is no single update: add --freeze.")
        freeze_gates(model, Loaders(parts.data, cfg).inputs(parts.task(model), parts.data.train))
    if to == "merged":
        _save_model(parts, model.merge_and_unload(), cfg, out)
    elif cfg.backbone.family == "unet":
        unet: Any = model.get_submodule("base_model.model.unet")
        unet.peft_config = model.peft_config  # the UNet by itself, as diffusers has it
        save_as_lora(unet, out, naming="kohya" if to == "kohya" else "diffusers")
    else:
        save_as_lora(model, out)


def _save_model(parts: Parts, model: nn.Module, cfg: DictConfig, out: Path) -> None:
    whole: Any = model
    if cfg.backbone.family == "llama_small":
        whole.save_pretrained(str(out))
        backbone: Any = parts.backbone
        backbone.tokenizer.save_pretrained(str(out))
    elif cfg.backbone.family == "unet":
        whole.unet.save_pretrained(str(out / "unet"))  # in the place of a pipeline's own
        if cfg.backbone.text_encoder:
            whole.text_encoder.save_pretrained(str(out / "text_encoder"))
    elif cfg.backbone.name == "embedded":
        out.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in whole.state_dict().items()}, out / "model.safetensors")
    else:
        from timm.models import save_for_hf

        with torch.no_grad():
            save_for_hf(whole, str(out), safe_serialization=True)
