"""Adapters on convolutional and hybrid models of timm: they train, come back from their files, and export."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from torch import nn

from foura.errors import UserError
from foura.families.images.backbone import build_vit
from foura.methods import method_of
from foura.methods.attach import attach
from foura.methods.state import adapter_parameters
from foura.run.export import export
from foura.run.layers import layer_table
from tests.helpers.config import composed

NAMES = ("test_resnet", "test_efficientnet", "test_convnext", "test_coatnet", "test_byobnet")


def config(name: str, *overrides: str):
    size = ("backbone.pretrained=false", "backbone.img_size=64", "dataset=imagefolder", "dataset.path=/nowhere")
    return composed("backbone=vit", f"backbone.name={name}", *size, "rank=4", *overrides)


def adapted(cfg):
    """(the adapted model after two steps of training, a copy of the backbone without it)."""
    torch.manual_seed(0)
    backbone = build_vit(cfg.backbone, 3)
    for module in backbone.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's start closes residual branches with zeros: nothing would train there
    before = copy.deepcopy(backbone.model)
    model = attach(backbone, cfg, steps=10).eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images()), torch.tensor([0, 1])).backward()
        optimizer.step()
    return model, before


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_trains_and_comes_back_from_its_file(name, tmp_path) -> None:
    model, before = adapted(config(name, "adapter=foura"))
    trained = {key for key, value in adapter_parameters(model).items() if "foura_B" in key and value.any()}
    convolutions = [key for key, module in before.named_modules() if isinstance(module, nn.Conv2d)]
    assert any(key.split(".foura_B")[0].removeprefix("base_model.model.") in convolutions for key in trained)
    assert len(trained) == sum("foura_B" in key for key in adapter_parameters(model))
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(before, str(tmp_path)).eval()
    torch.testing.assert_close(loaded(images()), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "adapter",
    [
        "foura_dft",
        "sora",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "dora", "loha", "rslora")),
    ],
)
def test_methods_that_go_on_convolutions(adapter) -> None:
    """The table of layers holds the norm of ΔW as merging applies it, and LoRA's parameters of each layer."""
    cfg = config("test_resnet", f"adapter={adapter}")
    model, before = adapted(cfg)
    weights = {key: layer.weight.clone() for key, layer in before.named_modules() if isinstance(layer, nn.Conv2d)}
    rows = {row["layer"]: row for row in layer_table(model, method_of(cfg), [images()], {})}
    row = rows["layer1.0.conv1"]
    assert (row["in_features"], row["out_features"]) == (32 * 9, 32)
    if adapter in ("lora", "rslora"):
        assert row["parameters"] == 4 * (32 * 9 + 32)
    if adapter == "sora":
        assert row["parameters"] == 4 * (32 * 9 + 32) + 4
    expected = model(images())
    merged = model.merge_and_unload()
    for key in ("layer1.0.conv1", "layer2.0.downsample.1"):
        change = merged.get_submodule(key).weight - weights[key]
        assert rows[key]["delta_norm"] == pytest.approx(float(change.norm()), rel=1e-4) and change.any()
    torch.testing.assert_close(merged(images()), expected, rtol=1e-3, atol=1e-4)


def test_a_method_without_convolutions_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"adapter=vera cannot be put on this backbone's layers \(.*They are: "):
        adapted(config("test_resnet", "adapter=vera"))


def test_a_model_of_other_convolutions_alone_is_refused_in_a_sentence() -> None:
    """Normaliser-free networks standardise the weight in the forward pass, so that no update could be merged."""
    with pytest.raises(UserError, match="goes on linear layers and convolutions, and found none to adapt"):
        adapted(config("test_nfnet", "adapter=lora"))


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_adapter_on_convolutions_exports(form, tmp_path) -> None:
    cfg = config("test_resnet", "adapter=foura_dct")
    torch.manual_seed(0)
    torch.save(build_vit(cfg.backbone, 3).model.state_dict(), tmp_path / "start.pt")
    cfg.backbone.pretrained = str(tmp_path / "start.pt")
    model, before = adapted(cfg)
    model.save_pretrained(str(tmp_path / "run" / "adapter"), save_embedding_layers=False)
    OmegaConf.save(cfg, tmp_path / "run" / "config.yaml", resolve=True)
    said = export(tmp_path / "run", form, tmp_path / "out")
    if form == "merged":
        assert "agree with the adapted model's" in said
    else:
        loaded = PeftModel.from_pretrained(before, str(tmp_path / "out")).eval()
        torch.testing.assert_close(loaded(images()), model(images()), rtol=1e-4, atol=1e-4)
