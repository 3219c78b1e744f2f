"""Data by Hugging Face's `datasets`, which reads what is in a folder of data or in one repository, and nothing else.

A folder's README.md can name other files, other machines and other readers, and the library obeys it. Here every file that it
finds is checked before one is opened; a name is a path and never a pattern; and an archive is bounded by what it unpacks to.
"""

import dataclasses
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from foura.data.unpacked import check_unpacked
from foura.errors import UserError
from foura.files import here
from foura.untrusted import JSON, WEIGHTS, Folder

# the library's readers that read files of data and nothing that these name
MODULES = ("parquet", "arrow", "csv", "json", "text", "imagefolder", "webdataset")
CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")
MOST_NODES = 10**6  # values in a card
PATTERN = ("*", "?", "[", "]", "{", "}", "::", "://")  # the library takes a folder with one of these for something else


def load_file(path: Path, cfg: DictConfig, reader: str, **options: Any) -> Any:
    """{split: table} of one file.

    Args:
        cfg: the dataset group. reader: the library's name of its reader.

    Raises:
        UserError: it is not an ordinary file, or unpacks to more than any file does.
    """
    import datasets

    real = Path(os.path.realpath(path))
    _refuse_pattern(str(real), ("::", "://"))
    files = {"data_files": glob.escape(str(real))}
    builder = datasets.load_dataset_builder(reader, **files, **options)
    _check_files(builder, _folder_of(real.parent, cfg), [real])
    return datasets.load_dataset(reader, **files, **options)


def folder_builder(folder: Path, cfg: DictConfig, **options: Any) -> Any:
    """The library's builder of a folder of data, all of whose files are checked.

    Args:
        cfg: the dataset group.

    Raises:
        UserError: something in it is, or names, a file outside of it, or is larger than any.
    """
    import datasets

    inside, place = _folder_of(folder, cfg), str(Path(os.path.realpath(folder)))
    _refuse_pattern(place, PATTERN)
    for name in CARDS:
        if inside.has(name):
            inside.file(name, JSON)
    _check_card(place, [inside.file(name, JSON) for name in CARDS[:2] if inside.has(name)])
    builder = datasets.load_dataset_builder(place, None if options else cfg.config, **options)
    _check_files(builder, inside)
    return builder


def load_folder(folder: Path, cfg: DictConfig, **options: Any) -> Any:
    """{split: table} of a folder of data; as `folder_builder`."""
    import datasets

    folder_builder(folder, cfg, **options)
    return datasets.load_dataset(os.path.realpath(folder), None if options else cfg.config, **options)


def load_repository(name: str, cfg: DictConfig) -> Any:
    """{split: table} of a repository of the hub.

    Raises:
        UserError: its README.md names files outside of it.
    """
    import datasets
    import huggingface_hub

    try:
        card = [Path(huggingface_hub.hf_hub_download(name, CARDS[0], repo_type="dataset"))]
    except (OSError, ValueError):  # it has none, or there is no network, which the library says
        card = []
    _check_card(name, card)
    builder = datasets.load_dataset_builder(name, cfg.config)
    for file in _files(builder):
        if not str(file).startswith(f"hf://datasets/{name}@"):
            raise UserError(f"dataset.path={name} names data outside of its repository ({file}); it is not read.")
    return datasets.load_dataset(name, cfg.config)


def undecoded(table: Any) -> Any:
    """The table without the decoders of its columns: those of images and sounds open, or fetch, whatever a cell names."""
    for column, kind in (table.features or {}).items():
        plain = _plain(kind)
        if plain != kind:
            table = table.cast_column(column, plain)
    return table


def image_path(path: str, cfg: DictConfig) -> str:
    """The path of an image that a table names, which is not in the table itself.

    Args:
        cfg: the dataset group: the image is in the folder that it names, or in the library's own caches for data of the hub.

    Raises:
        UserError: it is somewhere else.
    """
    import datasets
    import huggingface_hub

    local = here(cfg.path)
    if local is not None:
        root = Path(os.path.realpath(local if local.is_dir() else local.parent))
        return str(_folder_of(root, cfg).file(path, WEIGHTS))
    caches = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(cache)) for cache in caches):
        raise UserError(f"dataset.path={cfg.path} names an image outside of it ({path}); it is not read.")
    return str(real)


def _folder_of(folder: Path, cfg: DictConfig) -> Folder:
    keys: dict[str, Any] = {"key": "dataset.links", "lifted": cfg.links}
    return Folder(folder, links=True, **keys, any_size=cfg.any_size, size_key="dataset.any_size")


def _refuse_pattern(path: str, signs: tuple[str, ...]) -> None:
    found = [sign for sign in signs if sign in path]
    if found:
        raise UserError(f"dataset.path={path} has {found[0]} in it, which the library takes for a pattern; rename it.")


def _check_card(place: str, cards: list[Path]) -> None:
    """Check the files that a README.md or .huggingface.yaml declares, as the library reads it."""
    import huggingface_hub
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    for card in cards:
        text = card.read_text(encoding="utf-8", errors="replace")
        block = None if card.suffix == ".yaml" else REGEX_YAML_BLOCK.search(text)
        if _nodes(yaml.compose(text if card.suffix == ".yaml" else block[2] if block else "")) > MOST_NODES:
            raise UserError(
                f"dataset.path={place}: its {card.name} refers to its own parts again and again; take it out."
            )
        if card.suffix == ".yaml":
            described = yaml.safe_load(card.read_text(encoding="utf-8")) or {}
        else:
            described = huggingface_hub.DatasetCard.load(card, ignore_metadata_errors=False).data.to_dict()
        for path in _texts(described.get("configs"), ("data_files", "data_dir")):
            if os.path.isabs(path) or ".." in Path(path).parts or "::" in path or "://" in path or path.startswith("~"):
                raise UserError(
                    f"dataset.path={place}: its {card.name} names data outside of it ({path}); it is not read."
                )


def _nodes(root: yaml.Node | None) -> int:
    """The values in a YAML text once its aliases are written out, which is how libraries read them."""
    sizes: dict[int, int] = {}
    waiting = [] if root is None else [root]
    while waiting:
        node = waiting[-1]
        if id(node) in sizes:
            sizes[id(node)] = 1 + sum(sizes[id(one)] for one in _inner(node))
            waiting.pop()
        else:
            sizes[id(node)] = MOST_NODES + 1  # until it is counted: of a node within itself
            waiting += [one for one in _inner(node) if id(one) not in sizes]
    return 0 if root is None else sizes[id(root)]


def _inner(node: Any) -> Iterator[yaml.Node]:
    for one in () if isinstance(node, yaml.ScalarNode) else node.value:
        yield from one if isinstance(one, tuple) else (one,)


def _texts(value: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """Every text below one of the keys, at any depth."""
    waiting, seen = [(value, False)], set[int]()
    while waiting:
        inner, wanted = waiting.pop()
        if isinstance(inner, str) and wanted:
            yield inner
        elif isinstance(inner, dict | list) and id(inner) not in seen:  # YAML can refer to its own parts
            seen.add(id(inner))
            items = inner.items() if isinstance(inner, dict) else enumerate(inner)
            waiting += [(item, wanted or key in keys) for key, item in items]


def _files(builder: Any) -> list[Path]:
    """The files that a builder is going to read.

    Raises:
        UserError: by a reader that can read others too.
    """
    module = type(builder).__module__.split(".")[-1]
    if module not in MODULES:
        raise UserError(
            f"dataset.path: files for the reader {module!r} are not read; those for {', '.join(MODULES)} are."
        )
    return [
        Path(file) if "://" not in file else file
        for some in (builder.config.data_files or {}).values()
        for file in some
    ]


def _check_files(builder: Any, inside: Folder, only: list[Path] | None = None) -> None:
    for file in _files(builder):
        real = inside.file(Path(file), WEIGHTS)
        if only is not None and real not in only:
            raise UserError(f"dataset.path={only[0]} was taken for a pattern; rename it.")
        if not inside.any_size:
            check_unpacked(real)


def _plain(kind: Any) -> Any:
    """A feature whose cells are as they are stored."""
    if isinstance(kind, dict):
        return {name: _plain(inner) for name, inner in kind.items()}
    if isinstance(kind, list):
        return [_plain(inner) for inner in kind]
    if not dataclasses.is_dataclass(kind) or isinstance(kind, type):
        return kind
    feature: Any = kind
    names = {spec.name for spec in dataclasses.fields(kind) if spec.init}
    if "decode" in names and type(kind).__name__ != "Json":
        return dataclasses.replace(kind, decode=False)
    return dataclasses.replace(kind, feature=_plain(feature.feature)) if "feature" in names else kind
