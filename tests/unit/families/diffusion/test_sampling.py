"""Sampling: an image depends on its caption and seed alone, and the adapter scale blends."""

import pytest
import torch
from peft import get_peft_model

from foura import FouraConfig
from foura.bundled.letters import LETTERS, caption
from foura.families.diffusion.backbone import caption_bytes
from foura.families.diffusion.features import letters_read
from foura.families.diffusion.sampling import adapter_scale, sample

CPU = torch.device("cpu")


@pytest.fixture
def adapted(unet):
    import copy

    fields = {"r": 4, "foura_alpha": 4, "target_modules": unet.targets, "init_weights": False}
    return get_peft_model(copy.deepcopy(unet.model), FouraConfig(**fields)).eval()


def test_the_pretrained_unet_generates_legible_letters(unet) -> None:
    """On random colours with random seeds; by chance one letter in 26 would be right."""
    captions = [caption(letter) for letter in LETTERS]
    unet.model.eval()
    images = sample(unet.model, unet, captions, list(range(26)), steps=12, guidance=2.0, device=CPU)
    assert letters_read(images, captions) > 0.6


def test_an_image_depends_on_its_caption_and_seed_alone(unet) -> None:
    unet.model.eval()
    options = {"steps": 3, "guidance": 2.0, "device": CPU}
    many = sample(unet.model, unet, [caption(x) for x in "ABC"], [5, 6, 7], **options)
    alone = sample(unet.model, unet, [caption("B")], [6], **options)
    torch.testing.assert_close(many[1:2], alone, rtol=0, atol=1e-4)
    assert (many[0] - many[1]).abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_generate_the_same_images(dtype, unet, adapted) -> None:
    """Of the backbone, as backbone.torch_dtype asks for it: adapters stay in float32, and nothing is autocast."""
    captions, seeds, options = [caption("A"), caption("B")], [0, 1], {"steps": 4, "guidance": 2.0, "device": CPU}
    exact = sample(adapted, unet, captions, seeds, **options)
    for name, parameter in adapted.named_parameters():
        if ".foura_" not in name:
            parameter.data = parameter.data.to(dtype)
    images = sample(adapted, unet, captions, seeds, **options)
    assert images.dtype == torch.float32 and (images - exact).abs().mean() < 0.02 < exact.std()
    noisy = torch.randn(2, 3, 16, 16)
    predicted = adapted(noisy, torch.tensor([10, 900]), caption_bytes(["A", "B"]))
    assert predicted.dtype == noisy.dtype
    predicted.square().mean().backward()
    assert all(p.grad.isfinite().all() for name, p in adapted.named_parameters() if ".foura_" in name)


def test_the_adapter_scale_blends_between_base_and_adapted(unet, adapted) -> None:
    inputs = {
        "noisy": torch.randn(2, 3, 16, 16),
        "timestep": torch.tensor([10, 900]),
        "captions": caption_bytes(["A", "B"]),
    }
    with torch.no_grad():
        full, base = adapted(**inputs), unet.model.eval()(**inputs)
        with adapter_scale(adapted, 0.0):
            torch.testing.assert_close(adapted(**inputs), base, rtol=1e-4, atol=1e-5)
        with adapter_scale(adapted, 0.3):
            third = adapted(**inputs)
        torch.testing.assert_close(adapted(**inputs), full)  # and leaves nothing behind
        for module in adapted.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", 0.3)
        torch.testing.assert_close(third, adapted(**inputs), rtol=1e-4, atol=1e-5)
