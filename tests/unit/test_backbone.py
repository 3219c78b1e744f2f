"""Targets by structure: every linear layer of the blocks, never the head or the embeddings; fused layers by their parts."""

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from foura.backbone import choose_targets, describe_share, fused_outputs, layer_size, target_layers
from foura.errors import UserError
from foura.families.images.backbone import TARGETS as VIT
from foura.families.images.backbone import build_vit
from foura.families.language.backbone import TARGETS as LLAMA
from tests.helpers.config import composed

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64, "num_attention_heads": 4}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
# {model: (its config, linear layers of a block, {fused layer within a block: projections})}
MODELS = {
    "Llama": (GROUPED, 7, {}),
    "Qwen2": (GROUPED, 7, {}),
    "Gemma": ({**GROUPED, "head_dim": 8}, 7, {}),
    "Phi3": ({**GROUPED, "pad_token_id": 0}, 4, {"self_attn.qkv_proj": 4, "mlp.gate_up_proj": 2}),
    "Glm": ({**GROUPED, "head_dim": 8, "pad_token_id": 0}, 6, {"mlp.gate_up_proj": 2}),
    "Starcoder2": (GROUPED, 6, {}),
    "GPT2": (OLD, 4, {"attn.c_attn": 3}),
    "GPTBigCode": ({**OLD, "multi_query": True}, 4, {"attn.c_attn": 6}),
    "GPTJ": ({**OLD, "rotary_dim": 4}, 6, {}),
    "GPTNeoX": (SHAPE, 4, {}),
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64}, 4, {"attn.Wqkv": 3}),
    "Bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}, 4, {}),
    "OPT": ({**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 16, "pad_token_id": 1}, 6, {}),
    "Falcon": ({**SHAPE, "new_decoder_architecture": False}, 4, {}),
    "Phi": (SHAPE, 6, {}),
    "StableLm": (GROUPED, 7, {}),
    "Cohere": (GROUPED, 7, {}),
}


def built(name: str) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**MODELS[name][0])
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", MODELS)
def test_every_linear_layer_of_the_blocks_and_no_other(name) -> None:
    model = built(name)
    _, count, fused = MODELS[name]
    targets = choose_targets(model, None, LLAMA, "lm_head", blocks=True)
    layers = target_layers(model, targets)
    in_blocks = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(part.isdecimal() for part in name.split("."))
    }
    assert layers.keys() == in_blocks and len(layers) == 2 * count
    assert "100 % of the linear weights" in describe_share(model, targets, "lm_head") or name == "OPT"
    found = fused_outputs(model, layers)
    assert {layer.split(".", 3)[-1]: parts for layer, parts in found.items()} == fused


def test_the_targets_of_a_llama_are_named_as_ever() -> None:
    assert choose_targets(built("Llama"), None, LLAMA, "lm_head", blocks=True) == list(LLAMA)


def image_model(name: str):
    cfg = composed("backbone=vit", f"backbone.name={name}", "backbone.pretrained=false")
    with torch.device("meta"):
        return build_vit(cfg.backbone, 3)


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_transformers_of_timm(name) -> None:
    backbone = image_model(name)
    layers = target_layers(backbone.model, backbone.targets)
    every = {name for name, module in backbone.model.named_modules() if isinstance(module, nn.Linear)}
    assert layers.keys() == every - {backbone.head}
    convolutions = [name for name, module in backbone.model.named_modules() if isinstance(module, nn.Conv2d)]
    assert convolutions and not any(
        name == target or name.endswith(f".{target}") for name in convolutions for target in backbone.targets
    )
    assert "100 % of the linear weights" in describe_share(backbone.model, backbone.targets, backbone.head)


@pytest.mark.parametrize(
    ("name", "adapted"),
    [
        ("mobilenetv2_100", 33),  # of 17 blocks two pointwise convolutions each, the first block one
        ("resnet18", 19),  # two of 3x3 in each of 8 blocks, and three that change the width
        ("resnet50", 52),  # three in each of 16 blocks, and four that change the width
        ("test_convnext", 21),  # two linear layers in each of 9 blocks, and three that halve the image
        ("mobilevit_xxs", 62),  # a hybrid
        ("efficientnet_b0", 31),  # 16 blocks, without their gates on channels
        ("vgg11", 9),  # without lists of blocks: all but the first
        ("regnety_002", 30),  # its grouped convolutions stay as they are
    ],
)
def test_convolutional_and_hybrid_models_of_timm(name, adapted) -> None:
    """Every layer of the blocks in which an output sees every input channel: linear, or a convolution of one group."""
    backbone = image_model(name)
    layers = target_layers(backbone.model, backbone.targets)
    assert len(layers) == adapted
    assert all(isinstance(layer, nn.Linear) or layer.groups == 1 for layer in layers.values())
    assert not any(
        module is not layers.get(key)
        and any(key == target or key.endswith(f".{target}") for target in backbone.targets)
        for key, module in backbone.model.named_modules()
    )
    assert not any(".se." in key or layer.weight.shape[1] == 3 for key, layer in layers.items())
    assert "linear layers and convolutions" in describe_share(backbone.model, backbone.targets, backbone.head)


def test_the_share_of_convolutions_counts_those_that_stay_frozen() -> None:
    """Of 72 + 4 + 18 weights, the last two of two groups each, 72 are adapted."""
    blocks = nn.ModuleList([nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1, groups=4 // 2)])
    model = nn.ModuleDict({"blocks": blocks, "more": nn.Conv2d(2, 2, 3, groups=2), "head": nn.Linear(2, 99)})
    assert describe_share(model, ["blocks.0"], "head") == (
        "adapts 1 of 3 linear layers and convolutions, 76.6 % of their weights"
    )


def test_a_convolution_can_be_named_and_others_are_refused() -> None:
    model = nn.ModuleDict(
        {"plain": nn.Conv2d(2, 4, 3), "grouped": nn.Conv2d(4, 4, 3, groups=2), "head": nn.Linear(2, 2)}
    )
    assert choose_targets(model, ["plain"], VIT, "head") == ["plain"]
    assert layer_size(model["plain"]) == (18, 4)
    with pytest.raises(
        UserError, match="target_modules grouped match no layer that adapters go on; the model has: plain, head"
    ):
        choose_targets(model, ["grouped"], VIT, "head")


def test_a_layer_that_no_name_means_alone_is_left_out() -> None:
    """ "conv" would match the grouped one of the block too."""
    block = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, groups=2), "last": nn.Conv2d(4, 4, 1)})
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 4, 3), "block": block, "head": nn.Linear(4, 2)})
    assert choose_targets(model, None, VIT, "head", blocks=True, convolutions=True) == ["last"]


def test_share_counts_weights_and_not_layers() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 9)]), "head": nn.Linear(9, 99)})
    assert describe_share(model, ["blocks.0"], "head") == "adapts 1 of 2 linear layers, 18.18 % of the linear weights"


def test_experts_in_one_tensor_are_not_adapted_and_it_is_said() -> None:
    shape = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.MixtralConfig(**shape))
    targets = choose_targets(model, None, LLAMA, "lm_head", blocks=True)
    said = describe_share(model, targets, "lm_head")
    experts = 2 * 4 * 3 * 32 * 48
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16)
    assert f"{100 * attention / (attention + experts):.4g} % of the linear weights" in said
    assert "are of experts in one tensor, which stay frozen" in said


def test_a_model_without_blocks_has_all_linear_layers_but_the_head() -> None:
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert choose_targets(model, None, LLAMA, "head", blocks=True) == ["first"]
