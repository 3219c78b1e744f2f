"""Train, save, reload and export with the libraries that users have: transformers, diffusers, timm.

Every export is loaded by a process in which importing foura fails.
"""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

import foura
from foura import FouraConfig
from tests.helpers.tiny_models import tiny_llama, tiny_unet

LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]


def without_foura(body: str, folder: Path) -> None:
    """Run a script that ends in `error = ...` with foura not importable; the error must be below 1e-5."""
    script = (
        f"import sys\nsys.modules['foura'] = None\nimport torch\n{body}\nassert error < 1e-5, error\nprint('agreed')"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=False)
    assert answer.stdout.strip().endswith("agreed"), answer.stderr[-3000:]


@pytest.mark.parametrize(
    "fields", [{"transform": "dct"}, {"transform": "dft", "gate": "adaptive"}], ids=["dct", "gated dft"]
)
def test_llama_by_the_hf_trainer(fields, tmp_path) -> None:
    from transformers import Trainer, TrainingArguments

    base = tiny_llama()
    base.save_pretrained(str(tmp_path / "base"))
    config = FouraConfig(
        r=4, foura_alpha=8, target_modules=LLAMA_TARGETS, gate_scope="token", task_type="CAUSAL_LM", **fields
    )
    model = get_peft_model(copy.deepcopy(base), config)
    rows = [
        {"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)}
        for row in torch.randint(0, 64, (16, 12))
    ]
    arguments = TrainingArguments(
        str(tmp_path / "trainer"),
        max_steps=6,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=True,
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=rows).train()
    model.eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    ids = torch.randint(0, 64, (3, 10))
    with torch.no_grad():
        out = model(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter")).eval()
        torch.testing.assert_close(loaded(input_ids=ids).logits, out)
        assert not torch.allclose(base.eval()(input_ids=ids).logits, out, atol=1e-3)
        # one token after another with a cache is the whole sequence at once
        cache, steps = None, []
        for position in range(ids.shape[1]):
            step = loaded(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache, steps = step.past_key_values, [*steps, step.logits]
        torch.testing.assert_close(torch.cat(steps, dim=1), out, rtol=1e-4, atol=1e-5)
        if config.gate == "adaptive":
            foura.freeze_gates(loaded, [{"input_ids": ids}])
            out = loaded(input_ids=ids).logits
    foura.save_as_lora(loaded, tmp_path / "lora")
    save_file({"ids": ids, "out": out}, tmp_path / "io.safetensors")
    without_foura(
        """
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
io = load_file("io.safetensors")
model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("base"), "lora").eval()
error = (model(input_ids=io["ids"]).logits - io["out"]).abs().max()""",
        tmp_path,
    )


def test_unet_by_add_adapter(tmp_path) -> None:
    base = tiny_unet()
    base.save_pretrained(str(tmp_path / "base"))
    unet = copy.deepcopy(base).requires_grad_(False)
    unet.add_adapter(FouraConfig(r=4, foura_alpha=8, target_modules=UNET_TARGETS), adapter_name="style")
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32)
    optimizer = torch.optim.AdamW(foura.param_groups(unet, lr=1e-2), weight_decay=0.0)
    for _ in range(3):
        loss = (unet(x, 7, text).sample - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    unet.peft_config["style"].save_pretrained(str(tmp_path / "adapter"))
    save_file(get_peft_model_state_dict(unet, adapter_name="style"), tmp_path / "adapter" / "adapter_model.safetensors")
    again = copy.deepcopy(base)
    again.add_adapter(FouraConfig.from_pretrained(str(tmp_path / "adapter")), adapter_name="style")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    set_peft_model_state_dict(again, state, adapter_name="style")

    with torch.no_grad():
        bare, out = base(x, 7, text).sample, unet(x, 7, text).sample
        torch.testing.assert_close(again(x, 7, text).sample, out)
        assert (out - bare).abs().max() > 1e-2
        again.add_adapter(
            FouraConfig(r=2, transform="dft", target_modules=["to_v"], init_weights=False), adapter_name="second"
        )
        again.set_adapters(["style", "second"], weights=[0.5, 0.0])
        half = again(x, 7, text).sample
        again.set_adapters(["style"], weights=[1.0])
        torch.testing.assert_close(again(x, 7, text, cross_attention_kwargs={"scale": 0.5}).sample, half)
        assert not torch.allclose(half, out)
        torch.testing.assert_close(again(x, 7, text).sample, out)
        again.disable_adapters()
        torch.testing.assert_close(again(x, 7, text).sample, bare)
        again.enable_adapters()
        again.fuse_lora()
        torch.testing.assert_close(again(x, 7, text).sample, out, rtol=1e-4, atol=1e-5)

    for naming in ("peft", "diffusers", "kohya"):
        foura.save_as_lora(unet, tmp_path / naming, "style", naming=naming)
    assert any(
        key.startswith("lora_unet_down_blocks_1_")
        for key in load_file(tmp_path / "kohya/pytorch_lora_weights.safetensors")
    )
    save_file({"x": x, "text": text, "out": out}, tmp_path / "io.safetensors")
    without_foura(
        """
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from peft import PeftModel
from safetensors.torch import load_file
io = load_file("io.safetensors")
plain = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained("base"), "peft")
errors = [(plain(io["x"], 7, io["text"]).sample - io["out"]).abs().max()]
by_adapter = UNet2DConditionModel.from_pretrained("base")
by_adapter.load_lora_adapter("diffusers", prefix="unet", weight_name="pytorch_lora_weights.safetensors")
errors.append((by_adapter(io["x"], 7, io["text"]).sample - io["out"]).abs().max())
for folder in ("diffusers", "kohya"):
    unet = UNet2DConditionModel.from_pretrained("base")
    found = Loader.lora_state_dict(folder, unet_config=unet.config, return_lora_metadata=True)
    Loader.load_lora_into_unet(found[0], network_alphas=found[1], unet=unet, metadata=found[2])
    errors.append((unet(io["x"], 7, io["text"]).sample - io["out"]).abs().max())
error = max(errors)""",
        tmp_path,
    )


def test_a_frozen_gate_exports_fewer_ranks_to_diffusers(tmp_path) -> None:
    """Layers then differ in rank; a loader that guesses the strength from the shapes would be wrong."""
    base = tiny_unet()
    base.save_pretrained(str(tmp_path / "base"))
    unet = copy.deepcopy(base)
    unet.add_adapter(
        FouraConfig(r=4, foura_alpha=8, target_modules=["to_q", "to_v"], gate="adaptive", init_weights=False)
    )
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32)
    with torch.no_grad():
        layers = list(foura.adapter.freeze.foura_layers(unet).values())
        for number, layer in enumerate(layers):  # some ranks look at single tokens: these close
            layer.foura_gate["default"].weight_out[: number % 4].mul_(60.0)
    kept = foura.freeze_gates(unet, [{"sample": x, "timestep": 7, "encoder_hidden_states": text}])
    assert len(set(kept.values())) > 1
    out = unet(x, 7, text).sample.detach()
    save_file({"x": x, "text": text, "out": out}, tmp_path / "io.safetensors")
    for naming in ("diffusers", "kohya"):
        foura.save_as_lora(unet, tmp_path / naming, naming=naming, per_layer_ranks=True)
    full = sum(layer.foura_A["default"].shape[0] for layer in layers)
    state = load_file(tmp_path / "diffusers/pytorch_lora_weights.safetensors")
    assert sum(value.shape[0] for key, value in state.items() if "lora_A" in key) == sum(kept.values()) < full
    without_foura(
        """
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from safetensors.torch import load_file
io = load_file("io.safetensors")
errors = []
for folder in ("diffusers", "kohya"):
    unet = UNet2DConditionModel.from_pretrained("base")
    found = Loader.lora_state_dict(folder, unet_config=unet.config, return_lora_metadata=True)
    Loader.load_lora_into_unet(found[0], network_alphas=found[1], unet=unet, metadata=found[2])
    errors.append((unet(io["x"], 7, io["text"]).sample - io["out"]).abs().max())
error = max(errors)""",
        tmp_path,
    )


def test_timm_vit(tmp_path) -> None:
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    base = timm.create_model("vit_tiny_patch16_224", pretrained=False, **options)
    torch.manual_seed(0)
    config = FouraConfig(
        r=4,
        foura_alpha=8,
        target_modules=["qkv", "proj", "fc1", "fc2"],
        output_splits={"qkv": 3},
        gate="adaptive",
        modules_to_save=["head"],
    )
    model = get_peft_model(copy.deepcopy(base), config)
    x, y = torch.randn(8, 3, 16, 16), torch.randint(0, 5, (8,))
    optimizer = torch.optim.AdamW(foura.param_groups(model, lr=1e-2, gate_lr=1e-1))
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x))
        foura.freeze_gates(loaded, [x])
        out = loaded(x)
        foura.save_as_lora(loaded, tmp_path / "lora")
        merged = copy.deepcopy(loaded).merge_and_unload()
        torch.testing.assert_close(merged(x), out, rtol=1e-4, atol=1e-5)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    save_file({"x": x, "out": out}, tmp_path / "io.safetensors")
    without_foura(
        f"""
import timm
from peft import PeftModel
from safetensors.torch import load_file
io = load_file("io.safetensors")
base = timm.create_model("vit_tiny_patch16_224", pretrained=False, **{options!r})
base.load_state_dict(load_file("base.safetensors"))
model = PeftModel.from_pretrained(base, "lora").eval()
error = (model(io["x"]) - io["out"]).abs().max()""",
        tmp_path,
    )
