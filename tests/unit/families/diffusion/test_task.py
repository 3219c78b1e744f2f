"""The diffusion task: an evaluation that repeats exactly, and learning rates of their own for UNet and text encoder."""

import copy
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model

from foura import FouraConfig
from foura.errors import UserError
from foura.families.diffusion.backbone import build_unet
from foura.families.diffusion.sampling import sample
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


def lora_on(unet, seed: int = 0, eval_limit: int = 8, **evaluation) -> Diffusion:
    """A task on a copy of the bundled UNet with a LoRA of rank 2."""
    cfg = config(source="letters", limit=6, eval_limit=eval_limit)
    given = {"adapter": {"method": "lora"}, "dataset": cfg, "seed": seed, "evaluation": evaluation}
    whole = OmegaConf.merge(OmegaConf.structured(Config), given)
    model = get_peft_model(copy.deepcopy(unet.model), LoraConfig(r=2, target_modules=unet.targets))
    return Diffusion(model, unet, prepared(cfg), whole)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_limit": 1}, r"the test split has 1 image, and .* or set evaluation\.test=false"),
        ({"eval_limit": 1, "test": False, "judge_every": 1}, "the validation split has 1 image.*judge_every=0"),
        ({"strengths": []}, r"evaluation\.strengths names no adapter scale"),
        ({"strengths": None}, r"evaluation\.strengths names no adapter scale"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(settings, said, unet) -> None:
    with pytest.raises(UserError, match=said):
        lora_on(unet, **settings)


def test_one_image_is_enough_where_none_are_compared(unet) -> None:
    assert len(lora_on(unet, eval_limit=1, test=False).data.images["test"]) == 1


def test_each_item_has_noise_and_noise_levels_of_its_own_in_evaluations(unet) -> None:
    task = lora_on(unet)
    latents = torch.zeros(3, 3, 16, 16)
    batch = (latents, None, torch.tensor([5, 6, 5]))
    drawn = [task._fixed(batch, level) for level in range(4)]
    for level, (noise, timesteps) in enumerate(drawn):
        assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
        assert all(level / 4 <= int(one) / task.levels < (level + 1) / 4 for one in timesteps)
    assert not torch.equal(drawn[0][0], drawn[1][0])


def test_training_draws_the_noise_of_the_runs_seed(unet) -> None:
    batch = next(iter(torch.utils.data.DataLoader(lora_on(unet).data.train, 6)))
    losses = [lora_on(unet, seed).loss(batch).item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_the_last_adapter_scale_is_reported_against_test_images(unet, tmp_path, monkeypatch) -> None:
    task = lora_on(unet, strengths=[0.5, 0.25])
    layer = next(
        module for module in task.model.modules() if hasattr(module, "lora_A") and hasattr(module, "in_features")
    )
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    x, asked = torch.ones(1, layer.in_features), []

    def update() -> torch.Tensor:
        return layer(x) - layer.base_layer(x)

    whole = update()

    def judged(images, captions, split, device) -> dict[str, float]:
        assert split == "test"
        return {"kernel": 10 * float(images.mean())}

    def generated():
        scale = float((update() / whole).mean())
        asked.append(scale)
        return torch.full((2, 3, 16, 16), scale), ["a", "b"]

    monkeypatch.setattr(task, "_of_each", lambda prompts: torch.zeros(2, 3, 16, 16))
    monkeypatch.setattr(task, "_generated", generated)
    monkeypatch.setattr(task, "image_metrics", judged)
    assert task.final_measures(task.data, tmp_path) == {"test/kernel": pytest.approx(2.5, rel=1e-3)}
    assert asked == pytest.approx([0.5, 0.25], rel=1e-3) and torch.equal(update(), whole)


@pytest.fixture
def pipeline(tmp_path):
    """A Stable Diffusion pipeline from disk, with adapters on UNet and text encoder."""
    from tests.peers.tiny_models import stable_diffusion

    def built(**fields):
        stable_diffusion(tmp_path / "pipe")
        fields = {"family": "unet", "name": str(tmp_path / "pipe"), "text_encoder": True, **fields}
        return build_unet(OmegaConf.structured(BackboneConfig(**fields)))

    return built


def rates(model, backbone, **optimizer) -> dict[str, float]:
    """{name of a trained parameter: its learning rate}."""
    given = {"adapter": {"method": "lora"}, "dataset": {"source": "imagefolder"}, "optimizer": optimizer}
    cfg = OmegaConf.merge(OmegaConf.structured(Config), given)
    task = Diffusion(model, backbone, SimpleNamespace(captions={"validation": [], "test": ["a", "b"]}), cfg)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(name_of[id(p)], group["lr"]) for group in task.parameter_groups() for p in group["params"]]
    assert len(found) == len(dict(found)) == sum(p.requires_grad for p in model.parameters())
    return dict(found)


def test_both_adapters_have_their_rate_in_a_pipeline(pipeline) -> None:
    backbone = pipeline()
    assert backbone.size == 16
    pixels = torch.rand(2, 3, 16, 16)
    latents = backbone.encode(pixels)
    assert latents.shape == (2, 4, 8, 8) and backbone.decode(latents).shape == pixels.shape
    model = get_peft_model(backbone.model, LoraConfig(r=2, target_modules=backbone.targets))
    found = rates(model, backbone, lr=1e-4, gate_lr=1e-3, text_encoder_lr=5e-5)
    assert any(".unet." in name for name in found) and any(".text_encoder." in name for name in found)
    assert all(rate == (5e-5 if ".text_encoder." in name else 1e-4) for name, rate in found.items())


@pytest.mark.parametrize("text", [None, 5e-5])
def test_gates_have_their_rate_in_the_text_encoder_too(text, pipeline) -> None:
    backbone = pipeline()
    model = get_peft_model(backbone.model, FouraConfig(r=2, target_modules=backbone.targets, gate="adaptive"))
    found = rates(model, backbone, lr=1e-4, gate_lr=1e-3, text_encoder_lr=text)
    wanted = {
        name: 1e-3 if ".foura_gate." in name else (text or 1e-4) if ".text_encoder." in name else 1e-4 for name in found
    }
    assert found == wanted and any(".text_encoder." in name and ".foura_gate." in name for name in found)


def test_a_pipeline_in_half_precision_generates_and_trains_without_autocast(pipeline) -> None:
    backbone = pipeline(torch_dtype="bfloat16")
    model = get_peft_model(backbone.model, FouraConfig(r=2, target_modules=backbone.targets, gate="adaptive"))
    images = sample(model, backbone, ["a", "b"], [0, 1], 2, 2.0, torch.device("cpu"))
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32
    latents = backbone.encode(images)
    loss = model(latents, torch.tensor([10, 900]), backbone.tokenize(["a", "b"])).square().mean()
    loss.backward()
    assert latents.dtype == loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
