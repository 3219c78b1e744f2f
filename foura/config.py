"""Reading a config: checks beyond types, the key that identifies an experiment, and messages for mistakes.

OmegaConf checks types; `check` checks choices and ranges, from each field's metadata in `foura/schema.py`. Light on purpose:
a wrong key, choice or type ends the program before torch is imported.
"""

import dataclasses
import difflib
import hashlib
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foura.errors import UserError, first_line
from foura.families import family_of
from foura.methods import method_of
from foura.metrics import with_margins
from foura.schema import Config, defaults_since

# Keys that name a run and say where it is kept, and cannot change its numbers.
UNSCIENTIFIC: tuple[str, ...] = ("sweep", "tune", "margins", "force", "plan", "outputs")
UNSCIENTIFIC += ("trainer.enable_progress_bar", "trainer.profiler", "dataset.num_workers")
# Hydra's launchers that are not installed with foura, and the extra that has each
LAUNCHERS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}


def register() -> None:
    """Register the schema and the resolvers of conf/ with Hydra and OmegaConf."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("foura.times", lambda a, b: float(a) * float(b), replace=True)
    OmegaConf.register_new_resolver("foura.folder", folder_name, replace=True)
    OmegaConf.register_new_resolver("foura.sweep", _sweep_name, use_cache=True, replace=True)


def check(cfg: DictConfig) -> None:
    """Check every field of `Config` against its choices and range, and backbone, data and method against each other.

    Raises:
        UserError: the first key that is missing or unknown, or value that is not allowed, with the choices or the range.
    """
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    _check_node(cfg, Config, "")
    _check_family(cfg)
    method_of(cfg).check(cfg, causal=family_of(cfg).causal)
    _check_margins(cfg.margins)
    name = cfg.sweep
    if name is not None and not re.fullmatch(r"[\w.+-]{1,100}", name):
        raise UserError(f"sweep={name!r} must be 1 to 100 letters, digits, '.', '_', '+' or '-': it names a folder.")


def _check_family(cfg: DictConfig) -> None:
    """Refuse data, formats, metrics and settings that the backbone's family does not have."""
    family, data = family_of(cfg), cfg.dataset
    if data.source not in family.sources:
        raise UserError(
            f"dataset={data.name} does not go with backbone={family.name}. Its data: {', '.join(family.sources)}."
        )
    if data.format is not None and data.format not in family.formats:
        raise UserError(
            f"dataset.format={data.format} does not go with backbone={family.name}; choose one of "
            f"{', '.join(family.formats)}."
        )
    for name in map(str, cfg.backbone.options):
        if name not in family.options:
            has = f"It has: {', '.join(family.options)}." if family.options else "It has none."
            raise UserError(f"backbone.options.{name} is not a setting of backbone={family.name}. {has}")
    selectable = family.selectable(data.format)
    if cfg.select not in selectable:
        raise UserError(
            f"select={cfg.select} is not a metric of backbone={family.name}; choose {', '.join(selectable)}."
        )
    if data.source not in family.bundled and data.path is None:
        raise UserError(f"dataset.path is not set: dataset={data.name} needs dataset.path=… to say where the data is.")


def _check_margins(margins: DictConfig) -> None:
    """Refuse a margin that no difference can be within."""
    for key, value in margins.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"margins.{key!s} must be a number above 0, got {value}.")


def _check_node(node: DictConfig, schema: type, prefix: str) -> None:
    names = [spec.name for spec in dataclasses.fields(schema)]
    for name in node:
        if name not in names:
            raise UserError(_unknown_key(prefix + str(name)))
    for spec in dataclasses.fields(schema):
        key = prefix + spec.name
        if OmegaConf.is_missing(node, spec.name):
            raise UserError(f"{key} is not set, and has no default: add {key}=… to the command.")
        if isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            _check_node(node[spec.name], spec.type, key + ".")
        elif node[spec.name] is not None or spec.default is not None:
            _check_value(key, node[spec.name], spec.metadata)


def _check_value(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Check a value against the metadata of its field in the schema."""
    if "choices" in limits and value not in limits["choices"]():
        raise UserError(f"{key}={value} is not known. {_suggest(str(value), limits['choices']())}")
    if "at_least" in limits and value is not None:
        if value >= limits["at_least"] and limits["above"] < value < limits["below"]:
            return
        bounds = (("at least", limits["at_least"]), ("above", limits["above"]), ("below", limits["below"]))
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
        raise UserError(f"{key} must be {wanted}, got {value}.")


def scientific(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without the keys that cannot change a result, flat: {"adapter.lr": 0.001, ...}."""
    container = OmegaConf.to_container(cfg, resolve=True)
    return {key: value for key, value in sorted(_flatten(container)) if not _unscientific(key)}


def _unscientific(key: str) -> bool:
    return key in UNSCIENTIFIC or key.startswith("margins.")


def run_key(cfg: DictConfig) -> str:
    """Hash of the scientific config (16 hex digits): equal keys are the same experiment.

    A key of the schema that is marked by `since` enters where it is not at its default, so that configs of before have the
    hash that they had.
    """
    silent = [key for key, default in defaults_since(Config).items() if OmegaConf.select(cfg, key) == default]
    told = [
        (key, value)
        for key, value in sorted(scientific(cfg).items())
        if not any(key == one or key.startswith(f"{one}.") for one in silent)
    ]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def explain(error: Exception) -> str:
    """One sentence for a mistake that Hydra or OmegaConf found in the command line or in conf/, with the valid choices."""
    text, cause = str(error), error.__cause__
    ended = re.match(r"Job (\S+) \(task: \d+\) with path (\S+)/\S+\s+has not produced any output \(state: (\w+)", text)
    if ended:  # submitit then does not wait for the other jobs
        job, folder, state = ended.groups()
        return (
            f"job {job} ended before its run did (state: {state}; its output: {folder}). Other jobs of this sweep may still "
            "be running; the same command resumes what is missing."
        )
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and not unknown.group(1).startswith("hydra"):
        return _unknown_key(unknown.group(1).split("@")[0])
    missing = re.search(r"Could not find '([^']+)/([^/']+)'", text)
    if missing:
        return _unknown_choice(missing.group(1), missing.group(2), text)
    if cause is not None and "full_key" in str(cause):
        key = re.search(r"full_key: (\S+)", str(cause))
        return f"{key.group(1) if key else ''}: {first_line(cause)}."
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _unknown_choice(group: str, choice: str, text: str) -> str:
    """The sentence for a choice that a group of conf/ does not have; `text` is Hydra's, with a line per choice."""
    if group == "hydra/launcher" and choice in LAUNCHERS:
        return f"{group}={choice} needs a package that is not installed: pip install 'foura[{LAUNCHERS[choice]}]'."
    found = re.findall(r"^\t(\w+)$", text, flags=re.MULTILINE)
    choices = [name for name in found if not name.startswith("for_")]  # a backbone's default, under another name
    return f"{group}={choice} is not known. {_suggest(choice, choices)}"


def _unknown_key(key: str) -> str:
    """The sentence for a key that does not exist, with the keys that exist at its level."""
    schema: Any = Config
    if key.startswith("margins."):
        known = [metric.margin_key for metric in with_margins()]
        return f"{key} is not the margin of a metric. {_suggest(key.removeprefix('margins.'), known)}"
    parts = key.split(".")
    for depth, part in enumerate(parts):
        types = {spec.name: spec.type for spec in dataclasses.fields(schema)}
        nested, where = types.get(part), ".".join(parts[:depth])
        if typing.get_origin(nested) is dict:
            return f"{key} is not set yet; a plus sign adds it: +{where}.{part}.NAME=VALUE."
        if not (isinstance(nested, type) and dataclasses.is_dataclass(nested)):
            break
        schema = nested
    return f"{key} is not a key{' of ' + where if where else ''}. {_suggest(part, types)}"


def _suggest(word: str, choices: Any) -> str:
    close = difflib.get_close_matches(word, choices, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Valid choices: {', '.join(choices)}."


def _flatten(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(prefix.rstrip("."), node)]
    if not node:
        return [(prefix.rstrip("."), "{}")]
    return [pair for key, value in node.items() for pair in _flatten(value, f"{prefix}{key}.")]


def folder_name(overrides: str) -> str:
    """A folder name for a list of overrides: the same overrides give the same folder, on every machine."""
    name = re.sub(r"[^\w.,=+-]+", "_", overrides) or "default"
    if len(name) <= 120 and name == (overrides or "default"):
        return name
    return f"{name[:100]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


def _sweep_name(given: str | None, overrides: list[str]) -> str:
    """The name of a sweep: as given, or a hash of its overrides, so that the same command is the same sweep.

    Hydra copies cached values of resolvers from the sweep to its jobs, which is how a job gets a name that was made here.
    """
    if given:
        return given
    told = [text for text in overrides if not _unscientific(text.lstrip("+").partition("=")[0])]
    return "sweep-" + hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()[:8]


def outputs_dir(cfg: DictConfig) -> Path:
    """The absolute path of the folder for stores, runs and sweeps."""
    return Path(cfg.outputs).expanduser().absolute()
