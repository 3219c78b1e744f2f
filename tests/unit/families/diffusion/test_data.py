"""Images with captions: read, cut into splits, refused in one sentence."""

import pytest
import torch
from PIL import Image

from foura.errors import UserError
from foura.families.diffusion.backbone import caption_bytes
from tests.helpers.captioned import config, prepared, write_captions


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
