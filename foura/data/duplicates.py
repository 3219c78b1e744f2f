"""Exact copies of held-out items in the training data, which turn a measurement into a memory test."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foura.distributed import print_on_main
from foura.errors import UserError
from foura.files import regular

CALLED = {"train": "training", "validation": "validation", "test": "test"}
PAIRS = (("test", "train"), ("validation", "train"), ("test", "validation"))  # (measured on, loses its copies)


def kept_items(
    contents: Mapping[str, Sequence[Hashable]], names: Mapping[str, Sequence[str]], wanted: str
) -> dict[str, list[int]]:
    """{split: indices of the items to keep}; copies are counted and said.

    Args:
        contents: {split: a hash, or the content itself, of each item}.
        names: {split: what a message calls each item}.
        wanted: `dataset.duplicates`. "keep"; "drop": leave out training items that are held out too, and validation items
            that are in the test data; "refuse".

    Raises:
        UserError: there are copies, and they are refused; or nothing would be left.
    """
    kept = {split: list(range(len(items))) for split, items in contents.items()}
    said = []
    for held_out, other in PAIRS:
        both = set(contents[held_out]) & set(contents[other])
        copies = [index for index, content in enumerate(contents[held_out]) if content in both]
        if not copies:
            continue
        said.append(
            f"{len(copies)} of {len(contents[held_out])} {CALLED[held_out]} items are also in the {CALLED[other]} data "
            f"(exact copies, such as {names[held_out][copies[0]]})"
        )
        if wanted == "drop":
            before = len(kept[other])
            kept[other] = [index for index in kept[other] if contents[other][index] not in both]
            said[-1] += f": {before - len(kept[other])} are taken out of the {CALLED[other]} data"
    _tell("; ".join(said), kept, wanted)
    return kept


def _tell(said: str, kept: dict[str, list[int]], wanted: str) -> None:
    if said and wanted == "refuse":
        raise UserError(f"{said}. Take them out, or set dataset.duplicates=drop.")
    empty = [split for split, indices in kept.items() if not indices]
    if said and empty:
        raise UserError(f"{said}, and nothing is left of the {CALLED[empty[0]]} data.")
    if said:
        print_on_main(f"note: {said}{'' if wanted == 'drop' else '; dataset.duplicates=drop takes them out'}.")


def image_contents(splits: Mapping[str, Sequence[Any]]) -> dict[str, list[Hashable]]:
    """{split: something that two images share if and only if their files are equal, byte for byte}.

    Args:
        splits: {split: images}: uint8 arrays, paths or the bytes of files. Only files of the same size are read.
    """
    sizes = Counter(_size(image) for images in splits.values() for image in images)
    return {
        split: [_size(image) if sizes[_size(image)] == 1 else _digest(image) for image in images]
        for split, images in splits.items()
    }


def _size(image: Any) -> Hashable:
    if isinstance(image, np.ndarray):
        return image.shape
    return len(image) if isinstance(image, bytes) else regular(Path(image)).stat().st_size


def _digest(image: Any) -> bytes:
    if isinstance(image, np.ndarray):
        return hashlib.sha256(image.tobytes()).digest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    with regular(Path(image)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
