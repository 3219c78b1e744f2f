"""Folders of models: untrusted, and checked before a library gets them.

The libraries build what a config.json says, so that one number in it can fill the memory: every number is bounded, far above
any public model's, before anybody parses the file; and a model may have no more parameters than its weights can hold.
"""

import base64
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from omegaconf import DictConfig
from torch import nn

from foura.errors import UserError
from foura.files import here, parse_any_json, read_json
from foura.untrusted import GB, MB, WEIGHTS, Folder

TEXT_FILES, MOST_TEXT = (".json", ".txt", ".model", ".jinja", ".yaml"), 512 * MB
MOST_CONFIG = 16 * MB
CHARSMAP = "precompiled_charsmap"  # of a tokenizer.json: characters and what stands for them, after the table's size
SUBFOLDERS = 2  # levels of a model's folder that libraries read
# the most of a number by words in its key, the first that fits; the most of any other is MOST
BOUNDS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("token_id", "theta", "seed", "model_max_length", "max_length", "mask_value"), math.inf),  # size nothing
    (("layer", "depth", "n_block", "num_block", "blocks_per"), 1000),
    (("expert", "extra_ids"), 8192),
    (("num_labels", "num_classes", "label2id"), 2**17),
    (("num_train_timesteps",), 100_000),
    (("image_size", "sample_size", "img_size", "input_size", "crop_size"), 2**14),
    (("position", "seq", "window", "context", "ctx", "chunk", "max_len", "memory"), 2**25),
)
MOST = 2**21  # the largest vocabularies have a tenth of it
DEEPEST = 32
PER_BYTE = 8  # parameters that a byte of weights can hold, in the smallest formats
BEYOND = 50_000_000  # parameters that need not be in the files: a new head, positions that are computed


def model_folder(folder: Path, cfg: DictConfig | None) -> Folder:
    """The door to a model's folder; hub caches, whose snapshots are links, are read as they are.

    Args:
        cfg: the backbone group, whose `links` and `any_size` lift the rules; None: nothing lifts them.
    """
    if cfg is None:
        return Folder(folder, links=True)
    keys: dict[str, Any] = {"key": "backbone.links", "lifted": cfg.links}
    return Folder(folder, links=True, **keys, any_size=cfg.any_size, size_key="backbone.any_size")


def check_model(place: str, cfg: DictConfig | None, configs: tuple[str, ...] = ("config.json",)) -> None:
    """Check a model's files before a library reads them.

    Args:
        place: a hub id or a directory. cfg: the backbone group; None for a model that only measures. configs: paths of its
            config files.

    Raises:
        UserError: a file that leads out of the folder, is not an ordinary file or is larger than any, or a config with a number
            that no model has.
    """
    folder = here(place)
    if folder is not None and folder.is_dir():
        inside = model_folder(folder, cfg)
        check_folder(inside)
        found = [(name, inside) for name in configs if inside.has(name)]
    else:
        found = [one for one in (_fetched(place, name) for name in configs) if one is not None]
    for name, inside in found:
        check_numbers(read_json(inside.root / name, inside, MOST_CONFIG), f"{place}: its {name}", cfg)


def check_folder(inside: Folder) -> None:
    """Check every file that a library may read in a model's folder, and that the index of its weights names files in it.

    Raises:
        UserError: the first that is not as it should be.
    """
    for path in inside.files(deepest=SUBFOLDERS):
        inside.file(path, MOST_TEXT if path.suffix.lower() in TEXT_FILES else WEIGHTS)
        if path.name == "tokenizer.json":
            _check_charsmaps(path, inside)
        if path.name.endswith(".index.json"):
            _check_index(path, read_json(path, inside, MOST_TEXT).get("weight_map"))


def _check_index(path: Path, listed: Any) -> None:
    names = set(map(str, listed.values())) if isinstance(listed, dict) else {""}
    for name in sorted(names):
        if name in ("", ".", "..") or "/" in name or "\0" in name or not name.endswith(".safetensors"):
            raise UserError(f"{path} names weights that are not files beside it ({name[:80]!r}).")


def _check_charsmaps(path: Path, inside: Folder) -> None:
    """Refuse a table of characters that says it is longer than it is: the library reserves as much memory as it says."""
    raw = inside.read(path, MOST_TEXT)
    if CHARSMAP.encode() not in raw:
        return
    waiting: list[Any] = [parse_any_json(raw.decode("utf-8", errors="replace"), str(path))]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and isinstance(value.get(CHARSMAP), str):
            table = _decoded(value[CHARSMAP])
            size = int.from_bytes(table[:4], "little")
            if size == 0 or size % 4 or size + 4 > len(table):
                raise UserError(f"{path} has a {CHARSMAP} that is damaged; fetch the file again.")
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""


def check_numbers(described: Any, where: str, cfg: DictConfig | None) -> None:
    """Check the numbers of a config.json, at any depth of it.

    Args:
        where: what a message calls the file. cfg: as of `check_model`.

    Raises:
        UserError: a number that no model has.
    """
    for key, value in _leaves(described, where):
        most = next((most for words, most in BOUNDS if any(word in key for word in words)), MOST)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if whole and value > most and not (cfg is not None and cfg.any_size):
            shown = f"{value:.3g}" if abs(value) < 1e300 else "a number of many digits"
            lift = "take another" if cfg is None else "backbone.any_size=true takes it"
            raise UserError(f"{where} says {key[:60]}={shown}, more than any model has ({most}); {lift}.")


def check_parameters(build: Callable[[], nn.Module], folder: Path, cfg: DictConfig) -> None:
    """Check that a model has no more parameters than its weights can hold, by building it without memory.

    Args:
        build: makes the model. folder: with its weights. cfg: the backbone group.

    Raises:
        UserError: it has.
    """
    inside = model_folder(folder, cfg)
    held = sum(inside.file(path, WEIGHTS).stat().st_size for path in inside.files((".safetensors",), deepest=0))
    if inside.any_size or not held:
        return
    try:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in build().parameters())
    except NotImplementedError:  # a model that computes with its numbers when it is built
        return
    if count > PER_BYTE * held + BEYOND:
        raise UserError(
            f"backbone.name={cfg.name}: its config.json describes {count / 1e9:.1f} billion parameters, and its weights are "
            f"{held / GB:.2f} GB, which cannot hold them; backbone.any_size=true takes it."
        )


def _fetched(place: str, name: str) -> tuple[str, Folder] | None:
    """(name of a config, its folder) of a model on the hub, fetched to the cache; None where it has none, or no network."""
    try:
        path = Path(huggingface_hub.hf_hub_download(place, name))
    except (OSError, ValueError):  # what is missing is said by the library that loads the model
        return None
    return name, Folder(Path(str(path).removesuffix(name)), links=True)


def _leaves(described: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(key, number) of every number; the key of one in a list is the list's."""
    waiting: list[tuple[str, Any, int]] = [("", described, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth > DEEPEST:
            raise UserError(f"{where} is nested deeper than that of any model.")
        if isinstance(value, dict):
            waiting += [(str(inner), item, depth + 1) for inner, item in value.items()]
        elif isinstance(value, list):
            if "layer" in key and len(value) > 1000:
                raise UserError(f"{where} lists {len(value)} {key}, more than any model has.")
            waiting += [(key, item, depth + 1) for item in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
