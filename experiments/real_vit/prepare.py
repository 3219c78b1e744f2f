"""Small subsets of image data as folders of PNG files: python prepare.py IMAGES OUT.

IMAGES has a folder for each data set, with train.parquet and test.parquet as the Hugging Face hub has them (columns image and
label). The validation images are drawn from the training data.
"""

import io
import json
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet
from PIL import Image

NAMES = {"cifar10": ("cifar10", "cifar10_jpg"), "quickdraw9": ("quickdraw9",)}  # folder written: folders looked for
PER_CLASS = {"train": 50, "validation": 10, "test": 30}


def main(images: Path, out: Path) -> None:
    for name, folders in NAMES.items():
        folder = next((images / one for one in folders if (images / one).is_dir()), None)
        if folder is None:
            sys.exit(f"{images} has none of {', '.join(folders)}")
        train, test = (pd.read_parquet(folder / f"{split}.parquet") for split in ("train", "test"))
        features = json.loads(pyarrow.parquet.read_schema(folder / "train.parquet").metadata[b"huggingface"])["info"]
        classes = features["features"]["label"]["names"]
        for label, rows in train.groupby("label"):
            drawn = rows.sample(PER_CLASS["train"] + PER_CLASS["validation"], random_state=0)
            _write(drawn[: PER_CLASS["train"]], out / name / "train" / classes[label])
            _write(drawn[PER_CLASS["train"] :], out / name / "validation" / classes[label])
        for label, rows in test.groupby("label"):
            _write(rows.sample(PER_CLASS["test"], random_state=0), out / name / "test" / classes[label])


def _write(rows: pd.DataFrame, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in rows["image"].items():
        Image.open(io.BytesIO(picture["bytes"])).convert("RGB").save(folder / f"{number}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
