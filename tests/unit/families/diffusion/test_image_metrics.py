"""Metrics of generated images: they tell one style from another, and local models that they need are validated."""

import json

import pytest
import torch
import torchvision
import transformers
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from foura.analysis.images import diversity
from foura.bundled.letters import LETTERS, caption, render_letters
from foura.errors import UserError
from foura.families.diffusion.features import Clip, feature_space, letters_read
from foura.families.diffusion.image_metrics import ImageMetrics
from foura.schema import EvaluationConfig
from tests.helpers.captioned import config, prepared
from tests.helpers.hostile import payload

CPU = torch.device("cpu")


def test_real_letters_are_read() -> None:
    for style, least in (("plain", 0.97), ("fire", 0.85), ("ice", 0.75)):
        images, captions = render_letters(130, 7, style)
        assert letters_read(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, captions) >= least


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


def test_distances_are_to_held_out_images_and_copies_are_of_training_images(unet, monkeypatch) -> None:
    """Features as held-out images have them are at no distance; those of training images are copies, and at a distance."""
    measure = ImageMetrics(OmegaConf.structured(EvaluationConfig), prepared(config(source="letters", limit=8)), "")
    generator = torch.Generator().manual_seed(0)
    training, held_out = (torch.randn(12, 4, generator=generator) + shift for shift in (0.0, 3.0))
    measure.known = {"train": training, "test": held_out}

    def measured(features):
        monkeypatch.setattr(measure, "_features", lambda images, device: features)
        return measure(torch.zeros(12, 3, 4, 4), ["a", "b"] * 6, "test", CPU)

    new, copied = measured(held_out), measured(training)
    assert new["frechet"] == pytest.approx(0.0, abs=1e-6) and new["kernel"] < 0.5 < copied["kernel"]
    assert copied["frechet"] > 5 and copied["copy_distance"] == pytest.approx(0.0, abs=1e-6)
    assert new["copy_distance"] == pytest.approx(1.0)  # in units of what held-out images have
    assert new["diversity"] == pytest.approx(diversity(held_out, torch.tensor([0, 1] * 6)))


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
