"""Exports of parts of diffusion pipelines: the names that other programs look for, and diffusers loading them."""

import copy

import diffusers
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import foura
from foura import FouraConfig
from tests.helpers.tiny_models import tiny_clip, tiny_transformer, tiny_unet

FILE = "pytorch_lora_weights.safetensors"
CLIP_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
PIPELINES = {
    "SD3": diffusers.StableDiffusion3Pipeline,
    "Flux": diffusers.FluxPipeline,
    "Flux2": diffusers.Flux2Pipeline,
    "QwenImage": diffusers.QwenImagePipeline,
    "ZImage": diffusers.ZImagePipeline,
}


def adapted(model: nn.Module, targets: list[str], **fields) -> nn.Module:
    model = copy.deepcopy(model)
    config = FouraConfig(r=4, foura_alpha=8, target_modules=targets, init_weights=False, **fields)
    model.add_adapter(config, "default")
    return model.eval()


def clip(projection: bool = False, **fields) -> nn.Module:
    return adapted(tiny_clip(projection), CLIP_TARGETS, **fields)


def unet(**fields) -> nn.Module:
    return adapted(tiny_unet(), ["to_q", "to_k", "to_v", "to_out.0", "conv1"], **fields)


def pipeline(kind: type, **parts: nn.Module) -> object:
    """A pipeline with these parts and no others."""
    names = [name for name in kind.__init__.__annotations__ if name not in ("return", "requires_safety_checker")]
    known = {name: None for name in names if name not in ("force_zeros_for_empty_prompt", "add_watermarker")}
    return kind(**{**known, **parts})


def keys(folder) -> set[str]:
    return set(load_file(folder / FILE))


# -- text encoders


CLIP_LAYERS = [f"self_attn_{one}_proj" for one in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]


def kohya_clip(prefix: str) -> set[str]:
    """The keys that sd-scripts writes for two layers of a CLIP text encoder, and that ComfyUI and the others look for."""
    return {
        f"{prefix}_text_model_encoder_layers_{number}_{layer}.{kind}"
        for number in range(2)
        for layer in CLIP_LAYERS
        for kind in ("lora_down.weight", "lora_up.weight", "alpha")
    }


@pytest.mark.parametrize("projection", [False, True])
def test_a_text_encoder_has_the_names_that_programs_look_for(projection, tmp_path) -> None:
    model = clip(projection)
    foura.save_as_lora(model, tmp_path / "kohya", naming="kohya", component="text_encoder")
    assert keys(tmp_path / "kohya") == kohya_clip("lora_te")
    foura.save_as_lora(model, tmp_path / "diffusers", naming="diffusers", component="text_encoder")
    start = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj."
    assert {f"{start}lora_A.weight", f"{start}lora_B.weight"} <= keys(tmp_path / "diffusers")
    assert all(key.startswith("text_encoder.text_model.encoder.layers.") for key in keys(tmp_path / "diffusers"))
    foura.save_as_lora(model, tmp_path / "two", naming="kohya", component="text_encoder_2")
    assert keys(tmp_path / "two") == kohya_clip("lora_te2")


def test_a_text_encoder_inside_peft_s_wrapper_has_the_same_names(tmp_path) -> None:
    config = FouraConfig(r=4, foura_alpha=8, target_modules=CLIP_TARGETS, init_weights=False)
    model = get_peft_model(tiny_clip(), config)
    foura.save_as_lora(model, tmp_path, naming="kohya", component="text_encoder")
    assert keys(tmp_path) == kohya_clip("lora_te")


def test_the_parts_of_sdxl_have_their_own_prefixes(tmp_path) -> None:
    parts = {"unet": unet(), "text_encoder": clip(), "text_encoder_2": clip(True)}
    foura.save_as_lora(parts, tmp_path, naming="kohya")
    found = keys(tmp_path)
    assert kohya_clip("lora_te1") | kohya_clip("lora_te2") <= found
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in found
    assert {key.partition("_text_")[0] for key in found if "_text_" in key} == {"lora_te1", "lora_te2"}


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    "fields", [{}, {"transform": "dft", "rank_pattern": {"q_proj": 2, "to_q": 3}}], ids=["dct", "dft"]
)
def test_diffusers_loads_all_parts_from_one_file(naming, fields, tmp_path) -> None:
    parts = {"unet": unet(**fields), "text_encoder": clip(**fields), "text_encoder_2": clip(True, **fields)}
    said = foura.save_as_lora(parts, tmp_path, naming=naming)
    assert "diffusers" in said and "ComfyUI" in said
    bare = {"unet": tiny_unet(), "text_encoder": tiny_clip(), "text_encoder_2": tiny_clip(True)}
    before = {name: outputs(name, part) for name, part in bare.items()}
    pipe = pipeline(diffusers.StableDiffusionXLPipeline, **bare)
    pipe.load_lora_weights(str(tmp_path))
    for name, part in parts.items():
        expected = outputs(name, part)
        assert (expected - before[name]).abs().max() > 1e-2
        torch.testing.assert_close(outputs(name, getattr(pipe, name)), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def outputs(name: str, model: nn.Module) -> Tensor:
    if name.startswith("text"):
        found = model.eval()(input_ids=torch.arange(3, 15)[None])
        return getattr(found, "last_hidden_state", None)
    noise = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 4, 8, 8, generator=noise), torch.randn(1, 5, 32, generator=noise)
    return model.eval()(x, 7, text).sample


# -- transformers


@torch.no_grad()
def transformed(model: nn.Module, inputs: dict) -> Tensor:
    found = model.eval()(**inputs, return_dict=False)[0]
    return found[0] if isinstance(found, list) else found


@pytest.mark.parametrize("family", PIPELINES)
def test_diffusers_loads_a_transformer(family, tmp_path) -> None:
    base, inputs = tiny_transformer(family)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    model = adapted(base, targets, rank_pattern={"to_k": 2})
    expected = transformed(model, inputs)
    assert (expected - transformed(base, inputs)).abs().max() > 1e-3
    foura.save_as_lora(model, tmp_path / "named", naming="diffusers", component="transformer")
    foura.save_as_lora(model, tmp_path / "known", naming="diffusers")  # the class says what it is
    assert keys(tmp_path / "named") == keys(tmp_path / "known")
    assert all(key.startswith("transformer.") for key in keys(tmp_path / "named"))
    for folder in ("named", "known"):
        pipe = pipeline(PIPELINES[family], transformer=copy.deepcopy(base))
        pipe.load_lora_weights(str(tmp_path / folder))
        torch.testing.assert_close(transformed(pipe.transformer, inputs), expected, rtol=0, atol=1e-5)


def test_a_component_that_nothing_would_load_is_refused(tmp_path) -> None:
    transformer = adapted(tiny_transformer("SD3")[0], ["to_q"])
    for model, component, naming, said in (
        (transformer, "unet", "diffusers", "use component='transformer'"),
        (transformer, "transformer", "kohya", "no names for the layers of a SD3Transformer2DModel"),
        (clip(), None, "kohya", "CLIPTextModel is a text encoder: say which one"),
        (clip(), "unet", "kohya", "does not go with a CLIPTextModel"),
        (unet(), "text_encoder", "kohya", "does not go with a UNet2DConditionModel"),
        (unet(), "vae", "diffusers", "choose one of unet, transformer, text_encoder, text_encoder_2"),
        ({"unet": unet(), "clip": clip()}, None, "kohya", "component='clip' is not known"),
        ({"unet": unet()}, None, "peft", "naming='peft' is for one model"),
    ):
        with pytest.raises(ValueError, match=said):
            foura.save_as_lora(model, tmp_path / "out", naming=naming, component=component)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    ("fields", "lost"), [({"bias": "foura_only"}, "bias"), ({"modules_to_save": ["conv_in"]}, "conv_in.weight")]
)
def test_what_a_file_cannot_hold_is_refused_by_name(naming, fields, lost, tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"not .*{lost}.*use naming='peft'"):
        foura.save_as_lora(unet(**fields), tmp_path, naming=naming)
    assert not list(tmp_path.iterdir())


def test_diffusers_own_saving_writes_a_file_that_nothing_loads(tmp_path) -> None:
    """As docs/library.md says; the day this fails, the page is to be changed."""
    unet().save_lora_adapter(str(tmp_path))
    assert all(".foura_" in key for key in load_file(tmp_path / FILE))
    with pytest.raises(Exception, match=r".*"):
        tiny_unet().load_lora_adapter(str(tmp_path), prefix=None)


def test_exports_of_one_rank_can_be_swapped_by_diffusers(tmp_path) -> None:
    """Its hot-swap refuses a rank or an alpha per layer."""
    swapped = tiny_unet()
    for seed, open_ranks in ((0, 3), (1, 2)):
        torch.manual_seed(seed)
        model = unet(gate="frozen")
        for number, layer in enumerate(foura.adapter.freeze.foura_layers(model).values()):
            layer.foura_gate_mask["default"] = torch.arange(4) <= number % (open_ranks + 1)
        foura.save_as_lora(model, tmp_path / str(seed), naming="diffusers")
        options = {"prefix": "unet", "adapter_name": "one", "weight_name": FILE}
        if seed == 0:
            swapped.enable_lora_hotswap(target_rank=4)
        swapped.load_lora_adapter(str(tmp_path / str(seed)), **options, hotswap=seed > 0)
        torch.testing.assert_close(outputs("unet", swapped), outputs("unet", model), rtol=0, atol=1e-5)
