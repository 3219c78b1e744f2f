"""Diffusion: reading and cutting images with captions, sampling by seed, the adapter scale, and metrics worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch
import torchvision
import transformers
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from foura import FouraConfig
from foura.analysis.images import copy_distance, diversity
from foura.bundled.letters import LETTERS, caption, render_letters
from foura.errors import UserError
from foura.families.diffusion.backbone import build_unet, caption_bytes
from foura.families.diffusion.data import prepare_captioned
from foura.families.diffusion.features import Clip, feature_space, letters_read
from foura.families.diffusion.image_metrics import ImageMetrics
from foura.families.diffusion.sampling import adapter_scale, sample
from foura.families.diffusion.sources import open_captioned
from foura.families.diffusion.task import Diffusion
from foura.schema import BackboneConfig, Config, DatasetConfig, EvaluationConfig
from tests.helpers.hostile import payload

CPU = torch.device("cpu")


def config(**fields):
    return OmegaConf.structured(DatasetConfig(name="test", source=fields.pop("source", "imagefolder"), **fields))


@pytest.fixture(scope="module")
def unet():
    return build_unet(OmegaConf.structured(BackboneConfig(family="unet")))


@pytest.fixture
def adapted(unet):
    import copy

    fields = {"r": 4, "foura_alpha": 4, "target_modules": unet.targets, "init_weights": False}
    return get_peft_model(copy.deepcopy(unet.model), FouraConfig(**fields)).eval()


@pytest.fixture
def folder(tmp_path):
    """Twelve images with captions, each of one shade."""
    place = tmp_path / "images"
    place.mkdir()
    for index in range(12):
        Image.new("RGB", (20, 30), (20 * index, 0, 0)).save(place / f"{index:02d}.png")
    write_captions(place, range(12))
    return place


def write_captions(place, which) -> None:
    lines = [json.dumps({"file_name": f"{index:02d}.png", "text": f"shade {index}"}) for index in which]
    (place / "metadata.jsonl").write_text("\n".join(lines))


def prepared(cfg, size=16, seed=0):
    return prepare_captioned(open_captioned(cfg), cfg, seed, size, caption_bytes, lambda pixels: pixels * 2 - 1)


def test_a_folder_with_captions(folder) -> None:
    data = prepared(config(path=str(folder), val_fraction=0.25, test_fraction=0.25))
    assert data.sizes == {"train": 6, "validation": 3, "test": 3}
    shades = [int(text.split()[1]) for name in data.sizes for text in data.captions[name]]
    assert sorted(shades) == list(range(12))
    for name in data.sizes:
        for image, text in zip(data.images[name], data.captions[name], strict=True):
            assert round(float(image[0, 0, 0]) * 255) == 20 * int(text.split()[1])  # each with its own caption
    latents, tokens, number = data.train[1]
    assert latents.shape == (3, 16, 16) and int(number) == 1
    assert torch.equal(tokens, caption_bytes([data.captions["train"][1]])[0])


def test_validation_stays_while_the_limit_draws_by_seed(folder) -> None:
    cfg = config(path=str(folder), limit=3)
    one, two, again = (prepared(cfg, seed=seed) for seed in (0, 1, 0))
    assert one.captions["validation"] == two.captions["validation"]
    assert one.captions["train"] != two.captions["train"]
    assert one.fingerprint == again.fingerprint != two.fingerprint


def test_one_prompt_for_all_and_five_images_are_enough(folder) -> None:
    (folder / "metadata.jsonl").unlink()
    for index in range(5, 12):
        (folder / f"{index:02d}.png").unlink()
    data = prepared(config(path=str(folder), prompt="a photo of sks shade"))
    assert set(data.captions["train"]) == {"a photo of sks shade"}
    assert data.sizes == {"train": 2, "validation": 1, "test": 2}
    for index in (3, 4):
        (folder / f"{index:02d}.png").unlink()
    with pytest.raises(UserError, match="3 items are too few"):
        prepared(config(path=str(folder), prompt="a photo of sks shade"))


def test_every_kind_of_image_is_read(folder) -> None:
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(folder / "clear.png")
    Image.new("L", (20, 20), 128).save(folder / "grey.png")
    data = prepared(config(path=str(folder), prompt="all"))
    images = torch.cat(list(data.images.values()))
    assert images.shape == (15, 3, 16, 16)
    assert any(torch.equal(image, torch.ones(3, 16, 16)) for image in images)  # transparent pixels are white
    assert any(image[0].min() > 0.9 and image[1].max() < 0.2 for image in images)  # red, not inverted


def test_bad_images_end_in_a_sentence(folder, tmp_path) -> None:
    def refused(words, **fields):
        with pytest.raises(UserError, match=words):
            prepared(config(**fields))

    refused("label_noise replaces classes", path=str(folder), label_noise=0.2)
    write_captions(folder, range(6))
    refused("captions for 6 of 12 images; none for 06.png, 07.png, 08.png …", path=str(folder))
    (folder / "metadata.jsonl").write_text('{"file_name": "00.png", "caption": "x"}')
    refused("needs the fields file_name and text with texts in them; it has: file_name, caption", path=str(folder))
    (folder / "metadata.jsonl").unlink()
    refused("has no captions: add metadata.jsonl", path=str(folder))
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    refused("dot.png is 1 x 1 pixels", path=str(folder), prompt="x")
    (folder / "dot.png").write_bytes(b"\x89PNG not an image")
    refused("dot.png cannot be read as an image", path=str(folder), prompt="x")
    (tmp_path / "none").mkdir()
    refused("has no images", path=str(tmp_path / "none"))
    refused("nothing at that place", path=str(tmp_path / "nowhere"))


def test_letters_have_a_style_and_are_the_same_for_a_seed() -> None:
    plain, captions = render_letters(26, 3, "plain")
    fire, _ = render_letters(26, 3, "fire")
    assert plain.shape == (26, 16, 16, 3) and plain.dtype == np.uint8
    assert captions == [caption(letter) for letter in LETTERS]
    assert (render_letters(26, 3, "plain")[0] == plain).all()
    assert fire[..., 0].mean() > 2 * fire[..., 2].mean()  # fire is red and yellow, on black
    ice, _ = render_letters(26, 3, "ice")
    assert ice[..., 2].mean() > ice[..., 0].mean() > 128  # ice is blue, on white
    with pytest.raises(ValueError, match="choose one of plain, fire, ice"):
        render_letters(1, 0, "water")


def test_the_pretrained_unet_generates_legible_letters(unet) -> None:
    """On random colours with random seeds; by chance one letter in 26 would be right."""
    captions = [caption(letter) for letter in LETTERS]
    unet.model.eval()
    images = sample(unet.model, unet, captions, list(range(26)), steps=12, guidance=2.0, device=CPU)
    assert letters_read(images, captions) > 0.6


def test_real_letters_are_read() -> None:
    for style, least in (("plain", 0.97), ("fire", 0.85), ("ice", 0.75)):
        images, captions = render_letters(130, 7, style)
        assert letters_read(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, captions) >= least


def test_an_image_depends_on_its_caption_and_seed_alone(unet) -> None:
    unet.model.eval()
    options = {"steps": 3, "guidance": 2.0, "device": CPU}
    many = sample(unet.model, unet, [caption(x) for x in "ABC"], [5, 6, 7], **options)
    alone = sample(unet.model, unet, [caption("B")], [6], **options)
    torch.testing.assert_close(many[1:2], alone, rtol=0, atol=1e-4)
    assert (many[0] - many[1]).abs().max() > 0.05


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


def test_diversity_and_copying_by_hand() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 1.0]])
    assert diversity(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(2.5)  # 5 apart, and no distance at all
    with pytest.raises(ValueError, match="at least two"):
        diversity(features, torch.tensor([0, 0, 0, 1]))
    training = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    held_out = torch.tensor([[0.0, 4.0], [10.0, 2.0]])  # 4 and 2 from the nearest
    made = torch.tensor([[0.0, 0.0], [7.0, 0.0]])  # a copy, and 3 away
    assert copy_distance(made, training, held_out) == pytest.approx(1.5 / 3)


def test_distances_tell_the_style_from_another(unet) -> None:
    cfg = config(source="letters", limit=26, eval_limit=104)
    data = prepared(cfg)
    measure = ImageMetrics(OmegaConf.structured(EvaluationConfig), data, "letters")
    captions = [caption(letter) for letter in LETTERS for _ in range(2)]

    def rendered(style):
        images, texts = render_letters(52, 99, style)
        order = sorted(range(52), key=lambda index: texts[index])
        return torch.from_numpy(images[order]).permute(0, 3, 1, 2).float() / 255

    same, other = (measure(rendered(style), captions, "test", CPU) for style in ("fire", "plain"))
    assert same["kernel"] < 0.05 < other["kernel"]
    assert same["frechet"] < 0.2 * other["frechet"]
    assert same["copy_distance"] == pytest.approx(1.0, abs=0.25) and other["copy_distance"] > 2
    copies = data.images["train"].repeat(2, 1, 1, 1)
    copied = measure(copies, data.captions["train"] * 2, "test", CPU)
    assert copied["copy_distance"] == pytest.approx(0.0, abs=1e-6)


def test_feature_spaces() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert feature_space("colours")(images).shape == (2, 48)
    assert feature_space("glyphs")(images).shape == (2, 128)
    with pytest.raises(UserError, match="no_such_model: no such feature space"):
        feature_space("no_such_model")


def test_metrics_that_cannot_be_loaded_are_refused_before_training(train) -> None:
    for choice in ("evaluation.features=no_such_model", "evaluation.clip=/no/such/folder"):
        ended = train("backbone=unet", "dataset.limit=8", choice)
        assert choice in ended.code and "epoch 1" not in ended.out


def clip_model(folder) -> None:
    """A tiny random CLIP for 16 x 16 images, in the form of save_pretrained."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = folder / "vocab.json"
    folder.mkdir()
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    text = {**shape, **ends, "vocab_size": len(tokens), "max_position_embeddings": 16}
    vision = {**shape, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    ).save_pretrained(folder)
    transformers.CLIPProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=transformers.CLIPTokenizer(str(vocabulary), str(folder / "merges.txt"), model_max_length=16),
    ).save_pretrained(folder)


def test_clip_score_of_a_local_model(tmp_path) -> None:
    clip_model(tmp_path / "clip")
    clip = Clip(str(tmp_path / "clip")).eval()
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.rand(70, 3, 20, 20, generator=generator), ["a cat", "dogs and dogs"] * 35
    found, cosines = clip(images, captions), []
    model, processor = clip.model, clip.processor
    for image, text in zip(images, captions, strict=True):
        given = processor(text=[text], images=[(image * 255).byte()], return_tensors="pt")
        image = model.visual_projection(model.vision_model(given.pixel_values).pooler_output)
        words = model.text_projection(model.text_model(given.input_ids).pooler_output)
        cosines.append(torch.cosine_similarity(image, words).item())
    assert found == pytest.approx(max(0.0, 100 * sum(cosines) / 70), abs=1e-3) and found > 0
    assert clip(images[:1], ["a" * 500]) >= 0  # longer than the model reads
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    save_file({name: weights[name] for name in weights if "visual_p" not in name}, tmp_path / "clip/model.safetensors")
    with pytest.raises(UserError, match="weights are missing from it, such as visual_projection"):
        Clip(str(tmp_path / "clip"))
    (tmp_path / "clip/model.safetensors").unlink()
    mark = tmp_path / "executed"
    (tmp_path / "clip/pytorch_model.bin").write_bytes(payload(mark))
    with pytest.raises(UserError, match="no CLIP model could be loaded from there"):
        Clip(str(tmp_path / "clip"))
    assert not mark.exists()


@pytest.mark.slow
def test_lpips_between_images_of_a_prompt(unet, tmp_path, monkeypatch) -> None:
    """With random weights in the place where torchvision keeps AlexNet's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    data = prepared(config(source="letters", limit=26, eval_limit=4))
    evaluation = OmegaConf.structured(EvaluationConfig(lpips=True))
    with pytest.raises(UserError, match="needs torchvision's AlexNet weights"):
        ImageMetrics(evaluation, data, "letters")
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet().state_dict(), place / "alexnet-owt-7be5be79.pth")
    measure = ImageMetrics(evaluation, data, "letters")
    images, captions = torch.rand(4, 3, 16, 16), ["a", "a", "b", "b"]
    assert measure(images, captions, "test", CPU)["lpips"] > 0
    assert measure(images[[0, 0, 1, 1]], captions, "test", CPU)["lpips"] == pytest.approx(0.0, abs=1e-6)


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
    groups = Diffusion(model, backbone, None, cfg).parameter_groups()
    rates = {group["lr"]: sum(p.numel() for p in group["params"]) for group in groups}
    text = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and ".text_encoder." in n)
    assert rates[5e-5] == text and set(rates) == {1e-4, 5e-5}
    assert math.isclose(sum(rates.values()), sum(p.numel() for p in model.parameters() if p.requires_grad))
