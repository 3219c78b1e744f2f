"""The diffusion task: an evaluation that repeats exactly, and learning rates of their own for UNet and text encoder."""

import math
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model

from foura.families.diffusion.backbone import build_unet
from foura.families.diffusion.task import Diffusion
from foura.schema import BackboneConfig, Config
from tests.helpers.captioned import config, prepared


def test_an_evaluation_is_the_same_every_time_and_in_any_batch(unet) -> None:
    cfg = config(source="letters", limit=6, eval_limit=8)
    data = prepared(cfg)
    task = Diffusion(
        unet.model.eval(),
        unet,
        data,
        OmegaConf.merge(OmegaConf.structured(Config), {"adapter": {"method": "lora"}, "dataset": cfg, "seed": 0}),
    )
    losses = []
    for size in (8, 3, 8):
        with torch.no_grad():
            for batch in torch.utils.data.DataLoader(data.validation, size):
                task.evaluate("val", batch)
        losses.append(task.results("val")["loss"])
    assert losses[0] == losses[2] == pytest.approx(losses[1], rel=1e-5)


def test_both_adapters_have_their_rate_in_a_pipeline(tmp_path) -> None:
    """A Stable Diffusion pipeline from disk: adapters on UNet and text encoder, each with its own learning rate."""
    from tests.peers.tiny_models import stable_diffusion

    stable_diffusion(tmp_path / "pipe")
    cfg = OmegaConf.structured(BackboneConfig(family="unet", name=str(tmp_path / "pipe"), text_encoder=True))
    backbone = build_unet(cfg)
    assert backbone.size == 16
    pixels = torch.rand(2, 3, 16, 16)
    latents = backbone.encode(pixels)
    assert latents.shape == (2, 4, 8, 8) and backbone.decode(latents).shape == pixels.shape
    model = get_peft_model(backbone.model, LoraConfig(r=2, target_modules=backbone.targets))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(".unet." in name for name in names) and any(".text_encoder." in name for name in names)
    settings = {"optimizer": {"lr": 1e-4, "gate_lr": 1e-3, "text_encoder_lr": 5e-5}}
    given = {"adapter": {"method": "lora"}, "dataset": {"source": "imagefolder"}}
    cfg = OmegaConf.merge(OmegaConf.structured(Config), settings, given)
    groups = Diffusion(model, backbone, SimpleNamespace(captions={"validation": []}), cfg).parameter_groups()
    rates = {group["lr"]: sum(p.numel() for p in group["params"]) for group in groups}
    text = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and ".text_encoder." in n)
    assert rates[5e-5] == text and set(rates) == {1e-4, 5e-5}
    assert math.isclose(sum(rates.values()), sum(p.numel() for p in model.parameters() if p.requires_grad))
