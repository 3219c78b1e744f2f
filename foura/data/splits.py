"""The splits that data brings: their names, and where they are found. They are used as they are; `draws` cuts the others."""

import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from foura.data.listing import check_links, data_files, data_folders, files_in
from foura.distributed import print_on_main
from foura.errors import UserError
from foura.files import find
from foura.untrusted import Folder

# the names that Hugging Face's `datasets` knows, in any case, and with these characters before and after them
KEYWORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SEPARATORS = re.compile(r"[-._ 0-9]+")
CHOOSE = "name the splits with dataset.splits={train: NAME, test: NAME}"


def existing(cfg: DictConfig) -> Path:
    """The place that dataset.path names.

    A folder can come from other people: whatever is read in it afterwards is in it, as far as links go.

    Args:
        cfg: the dataset group.

    Raises:
        UserError: nothing is there, or a link in the folder leads out of it and `cfg.links` is false.
    """
    if not cfg.path.strip():  # it would be the current folder
        raise UserError("dataset.path is empty: name a file or a folder.")
    place = find(cfg.path, "dataset.path")
    if place.is_dir():
        check_links(Folder(place, links=True, key="dataset.links", lifted=cfg.links))
    return place


def split_of(name: str) -> str | None:
    """The split that a name stands for, as in "Testing", "val2017" or "my_train-set"; None for none, or for several."""
    words = SEPARATORS.split(name.lower())
    found = {split for split, keywords in KEYWORDS.items() if set(words) & set(keywords)}
    return found.pop() if len(found) == 1 else None


def named_splits(names: Iterable[str], where: str) -> dict[str, list[str]]:
    """{split: the names that stand for it}: the plain names ("Test") where there are any, else those with more ("test_1").

    Raises:
        UserError: several plain names for one split.
    """
    found: dict[str, list[str]] = {}
    for split, keywords in KEYWORDS.items():
        meant = [name for name in names if split_of(name) == split]
        plain = [name for name in meant if name.lower() in keywords]
        if len(plain) > 1:
            raise UserError(f"{where} has several {split} splits ({', '.join(plain)}): {CHOOSE}.")
        if meant:
            found[split] = plain or meant
    return found


def split_folders(root: Path, wanted: Mapping[str, str] | None, extensions: tuple[str, ...]) -> dict[str, Path]:
    """{split: folder} of the split folders in `root`; where it has none, `root` itself is the training data.

    Args:
        wanted: `dataset.splits`, {split: folder in `root`, or "." for itself}; None: they are found by their names.
        extensions: of the data files, in lower case.

    Raises:
        UserError: folders that are splits beside others with data, or splits without a training folder.
    """
    if wanted:
        return {split: inside(root, name) for split, name in chosen(wanted).items()}
    folders = {folder.name: folder for folder in data_folders(root)}
    found = one_each(named_splits(folders, str(root)), str(root))
    if not found:
        _refuse_lookalikes(root, folders)
        return {"train": root}
    others = [name for name in folders if name not in found.values() and data_files(folders[name], extensions)]
    if others or "train" not in found:
        what = f"others with data ({_some(others)})" if others else "no training folder beside them"
        raise UserError(
            f"{root} has folders that are named like splits ({', '.join(found.values())}) and {what}: put all data into "
            f"train/, validation/ and test/, or {CHOOSE}; dataset.splits={{train: .}} takes all of it as training data."
        )
    loose = files_in(root, extensions)
    if loose:
        print_on_main(f"note: {len(loose)} files beside the splits of {root} are not used (such as {loose[0].name}).")
    return {split: folders[name] for split, name in found.items()}


def _refuse_lookalikes(root: Path, names: Iterable[str]) -> None:
    """Refuse folders such as trainset and testset, which would be taken for classes or documents of one split."""
    starts = {
        split: [name for name in names if name.lower().startswith(keywords)] for split, keywords in KEYWORDS.items()
    }
    if starts["train"] and (starts["validation"] or starts["test"]):
        alike = ", ".join(name for found in starts.values() for name in found)
        raise UserError(
            f"{root} has folders whose names begin like splits ({alike}): rename them to train, validation and test, or "
            f"{CHOOSE}; dataset.splits={{train: .}} takes all of it as training data."
        )


def refuse_splits_within(folder: Path) -> None:
    """Refuse a class with split folders inside it, whose test items would be trained on.

    Raises:
        UserError: it has two of them or more.
    """
    found = named_splits([inner.name for inner in data_folders(folder)], str(folder))
    if len(found) > 1:
        names = ", ".join(name for some in found.values() for name in some)
        raise UserError(
            f"{folder} is a class with splits inside it ({names}): put the splits outside, as in train/{folder.name}/."
        )


def one_each(found: Mapping[str, list[str]], where: str) -> dict[str, str]:
    """{split: its name}, of `named_splits`.

    Raises:
        UserError: several names for one split.
    """
    for split, names in found.items():
        if len(names) > 1:
            raise UserError(f"{where} has several {split} splits ({', '.join(names)}): {CHOOSE}.")
    return {split: names[0] for split, names in found.items()}


def chosen(wanted: Mapping[str, str]) -> dict[str, str]:
    """`dataset.splits`, checked: {split: its name in the data}.

    Raises:
        UserError: a split that is not one, or no training split.
    """
    if not isinstance(wanted, Mapping):
        raise UserError(f"dataset.splits={wanted} is not a table: {CHOOSE}.")
    unknown = [str(split) for split in wanted if split not in KEYWORDS]
    if unknown or "train" not in wanted:
        what = f"{', '.join(unknown)} is not a split" if unknown else "train is missing"
        raise UserError(f"dataset.splits: {what}; its keys are train and, where you have them, validation and test.")
    return {str(split): str(name) for split, name in wanted.items()}


def inside(root: Path, name: str) -> Path:
    """The file or folder in `root` that `dataset.splits` names.

    Raises:
        UserError: it is not there.
    """
    try:
        place = root / name
        if place.exists() and place.resolve().is_relative_to(root.resolve()):
            return place
    except (OSError, ValueError, RuntimeError):  # a name that is too long, or that no file can have
        pass
    raise UserError(f"dataset.splits: {root} has no {name}.")


def split_files(root: Path, wanted: Mapping[str, str] | None, extensions: tuple[str, ...]) -> dict[str, list[Path]]:
    """{split: files} of a file, which is the training data, or of a folder of them.

    A split in a folder is a file named for it (train.jsonl), or the numbered parts of one (train-00000-of-00002.parquet).
    Where no name stands for a split, all files are training data.

    Args:
        wanted: `dataset.splits`, {split: file in `root`}; None: they are found by their names.
        extensions: of data files, in lower case.

    Raises:
        UserError: a folder without a training file, or with files of which nobody knows which split they are; or splits
            that are named of a file.
    """
    if not root.is_dir():
        refuse_splits_of_a_file(root, wanted)
        return {"train": [root]}
    if wanted:
        return {split: [inside(root, name)] for split, name in chosen(wanted).items()}
    files = {file.name: file for file in files_in(root, extensions)}
    stems: dict[str, list[str]] = {}
    for name in files:
        stems.setdefault(stem(name, extensions), []).append(name)
    found = named_splits(stems, str(root))
    if not found and files:
        _refuse_lookalikes(root, stems)
        return {"train": list(files.values())}
    if "train" not in found:
        raise UserError(
            f"{root} has no train{extensions[0]}; it has: {_some([entry.name for entry in sorted(root.iterdir())])}. "
            f"Rename a file, or {CHOOSE}."
        )
    split_names = {split: [name for named in some for name in stems[named]] for split, some in found.items()}
    for split, names in split_names.items():
        if len({re.sub(r"\d+", "0", name) for name in names}) > 1:
            raise UserError(f"{root} has several {split} splits ({_some(names)}): {CHOOSE}.")
    others = [name for name in files if not any(name in names for names in split_names.values())]
    if others:
        print_on_main(f"note: {_some(others)} of {root} is in no split and not used; dataset.splits chooses others.")
    return {split: [files[name] for name in sorted(names)] for split, names in split_names.items()}


def refuse_splits_of_a_file(path: Path, wanted: Mapping[str, str] | None) -> None:
    """Refuse `dataset.splits` where it would have no effect: all of a file is training data.

    Raises:
        UserError: it names splits.
    """
    if wanted:
        raise UserError(
            f"dataset.splits chooses files and folders in dataset.path, and {path} is a file: leave dataset.splits out, or "
            "set dataset.path to the folder."
        )


def stem(name: str, extensions: tuple[str, ...]) -> str:
    """A file's name without its extension, of several that fit the longest."""
    fits = max((end for end in extensions if name.lower().endswith(end)), key=len, default="")
    return name[: len(name) - len(fits)]


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"


def split_tables(found: Any, path: str, wanted: Mapping[str, str] | None) -> dict[str, tuple[str, Any]]:
    """{split: (its name in the data, table)} of the tables that `hub.read_hub` returned.

    Args:
        wanted: `dataset.splits`, {split: its name in the data}; None: they are found by their names.

    Raises:
        UserError: there is no training split, or several that could be one; or a split is empty.
    """
    if wanted:
        names = chosen(wanted)
        absent = [name for name in names.values() if name not in found]
        if absent:
            raise UserError(f"dataset.splits: the data has no split {absent[0]}; it has: {', '.join(found)}.")
    else:
        names = one_each(named_splits(found, f"dataset.path={path}"), f"dataset.path={path}")
        if "train" not in names:
            raise UserError(f"dataset.path={path} has no split named train; it has: {', '.join(found)}: {CHOOSE}.")
        others = [name for name in found if name not in names.values()]
        if others:
            print_on_main(f"note: the splits {_some(others)} are not used; dataset.splits chooses others.")
    for split, name in names.items():
        refuse_empty(found[name], split, path)
    return {split: (name, found[name]) for split, name in names.items()}


def refuse_empty(items: Sized, split: str, path: str) -> None:
    """Refuse a split that the data brings and that has no items.

    Raises:
        UserError: it has none.
    """
    if not len(items):
        raise UserError(f"dataset.path={path}: the {split} split is empty.")


def check_column(key: str, column: str, columns: Iterable[str]) -> None:
    """Refuse a column that the data does not have.

    Raises:
        UserError: the sentence lists those that it has.
    """
    if column not in columns:
        raise UserError(f"{key}={column}: there is no such column; the data has: {', '.join(columns)}.")
