"""Images with captions: read, cut into splits, refused in one sentence."""

import shutil

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


def test_the_fixed_part_of_train_follows_the_split_seed_and_keeps_the_order_of_train(folder) -> None:
    """Of the same training images it was the first ones in the order of the run's seed: others for every seed."""

    def fixed(seed: int, **fields) -> list[int]:
        data = prepared(config(path=str(folder), train_eval_limit=3, **fields), seed=seed)
        numbers = data.train_eval.tensors[2].tolist()
        assert numbers == sorted(numbers) and len(numbers) == 3
        return [int(data.captions["train"][number].split()[1]) for number in numbers]

    one, two, other = fixed(0), fixed(1), fixed(0, split_seed=1)
    assert one != two and sorted(one) == sorted(two) != sorted(other)
    whole = prepared(config(path=str(folder)))
    assert all(torch.equal(*columns) for columns in zip(whole.train.tensors, whole.train_eval.tensors, strict=True))


def test_held_out_images_that_the_data_brings_are_drawn_by_the_split_seed(folder, tmp_path) -> None:
    """Of twelve in the order of a folder, which could be one of subjects, four count."""
    for name in ("validation", "test"):
        shutil.copytree(folder, tmp_path / "split" / name)
    shutil.copytree(folder, tmp_path / "split" / "train")
    cfg = config(path=str(tmp_path / "split"), eval_limit=4)
    one, two = (prepared(cfg, seed=seed) for seed in (0, 1))
    shades = [int(text.split()[1]) for text in one.captions["test"]]
    assert len(set(shades)) == len(shades) == 4 and set(shades) != {0, 1, 2, 3}
    assert one.captions["test"] == two.captions["test"]
    other = prepared(config(path=str(tmp_path / "split"), eval_limit=4, split_seed=1))
    assert other.captions["test"] != one.captions["test"]


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


def captions_of(folder, **fields) -> dict[str, str]:
    from pathlib import Path

    from foura.families.diffusion.sources import open_captioned

    found = open_captioned(config(path=str(folder), **fields))
    return {
        Path(image).name: text
        for items in found.values()
        for image, text in zip(items.images, items.captions, strict=True)
    }


WANTED = {f"{index:02d}.png": f"shade {index}" for index in range(12)}


@pytest.mark.parametrize("kind", ["csv", "parquet", "txt", "caption", "nested"])
def test_captions_in_every_form(kind, folder) -> None:
    import pandas

    (folder / "metadata.jsonl").unlink()
    frame = pandas.DataFrame({"file_name": list(WANTED), "text": list(WANTED.values())})
    if kind == "csv":
        frame.to_csv(folder / "metadata.csv", index=False)
    elif kind == "parquet":
        frame.to_parquet(folder / "metadata.parquet")
    elif kind == "nested":  # names from the folder above, as Windows writes them
        (folder / "train").mkdir()
        for name in WANTED:
            (folder / name).rename(folder / "train" / name)
        frame["file_name"] = [f"train\\{name}" for name in WANTED]
        frame.to_csv(folder / "metadata.csv", index=False)
    else:
        for name, text in WANTED.items():
            (folder / name).with_suffix(f".{kind}").write_text(f"{text}\n")
    assert captions_of(folder) == WANTED


def test_captions_of_images_that_are_not_there_are_said(folder, capsys) -> None:
    (folder / "03.png").unlink()
    (folder / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (20, 20)).save(folder / ".ipynb_checkpoints" / "03-checkpoint.png")
    assert captions_of(folder) == {name: text for name, text in WANTED.items() if name != "03.png"}
    assert "1 captions are of images that are not there" in capsys.readouterr().out


def test_an_image_has_a_caption_beside_it_where_the_metadata_has_none(folder) -> None:
    write_captions(folder, range(11))
    (folder / "11.txt").write_text("beside")
    assert captions_of(folder) == {**WANTED, "11.png": "beside"}


def test_captions_that_are_too_long_are_counted(folder, capsys) -> None:
    from foura.bundled.caption_unet import CAPTION_BYTES, bytes_lost

    (folder / "metadata.jsonl").unlink()
    for index, name in enumerate(WANTED):
        (folder / name).with_suffix(".txt").write_text("x" * (CAPTION_BYTES + 5 if index == 0 else 3))
    assert bytes_lost("x" * (CAPTION_BYTES + 5)) == 5
    prepared(config(path=str(folder)), lost=bytes_lost)
    said = capsys.readouterr().out
    assert "1 of 12 train items are longer than the text encoder takes: 5 tokens are cut off" in said
    assert sum(prepared(config(path=str(folder), too_long="drop"), lost=bytes_lost).sizes.values()) == 11


def test_copies_and_unreadable_images_can_be_left_out(folder, capsys) -> None:
    import shutil

    shutil.copy(folder / "00.png", folder / "zero again.png")
    (folder / "bad.png").write_bytes(b"no image")
    data = prepared(config(path=str(folder), prompt="x", unreadable="drop", val_fraction=0.4, test_fraction=0.4))
    assert sum(data.sizes.values()) == 13
    assert "1 of 14 items of the train split are unreadable" in capsys.readouterr().out
