"""Reading a config: checks beyond types, the key that identifies an experiment, and messages for mistakes.

Light on purpose: no torch in here. A wrong key, choice or type ends the program before anything heavy is imported.
Types are checked by OmegaConf, choices and ranges by `check`, from each field's metadata in `foura/schema.py`.
"""

import dataclasses
import difflib
import hashlib
import math
import re
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foura.errors import UserError
from foura.families import family_of
from foura.methods import method_of
from foura.metrics import with_margins
from foura.schema import Config

# Keys that say where and under which name a run is kept, not what it computes.
UNSCIENTIFIC: tuple[str, ...] = ("sweep", "tune", "margins", "force", "plan", "outputs")
UNSCIENTIFIC += ("trainer.enable_progress_bar", "trainer.profiler", "dataset.num_workers")
# Hydra's launchers that are not installed with foura, and the extra that brings each
LAUNCHERS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}


def register() -> None:
    """Make the schema and the resolvers of conf/ known to Hydra."""
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
    """Refuse data, formats and metrics that the backbone's family does not have."""
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
    if cfg.select not in family.selectable:
        raise UserError(
            f"select={cfg.select} is not a metric of backbone={family.name}; choose {', '.join(family.selectable)}."
        )
    if data.source not in family.bundled and data.path is None:
        raise UserError(f"dataset.path is not set: dataset={data.name} needs dataset.path=… to say where the data is.")


def _check_margins(margins: DictConfig) -> None:
    """Refuse a margin that no difference can be within."""
    for key, value in margins.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"margins.{key} must be a number above 0, got {value}.")


def _check_node(node: DictConfig, schema: type, prefix: str) -> None:
    names = [spec.name for spec in dataclasses.fields(schema)]
    for name in node:
        if name not in names:
            raise UserError(_unknown_key(prefix + str(name)))
    for spec in dataclasses.fields(schema):
        key = prefix + spec.name
        if OmegaConf.is_missing(node, spec.name):
            raise UserError(f"{key} is not set, and has no default: add {key}=… to the command.")
        value = node[spec.name]
        if isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            _check_node(value, spec.type, key + ".")
        elif (
            "choices" in spec.metadata
            and value not in spec.metadata["choices"]()
            and not (value is spec.default is None)
        ):
            raise UserError(f"{key}={value} is not known. {_suggest(str(value), spec.metadata['choices']())}")
        elif "at_least" in spec.metadata and value is not None:
            limits = spec.metadata
            if not (value >= limits["at_least"] and limits["above"] < value < limits["below"]):
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
    """Hash of the scientific config (16 hex digits): equal keys are the same experiment."""
    text = repr(sorted(scientific(cfg).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def explain(error: Exception) -> str:
    """One sentence for what Hydra or OmegaConf found wrong in the command line or in conf/, with the valid choices."""
    text = str(error)
    cause = error.__cause__
    ended = re.match(r"Job (\S+) \(task: \d+\) with path (\S+)/\S+\s+has not produced any output \(state: (\w+)", text)
    if ended:  # submitit waits for no other job then
        job, folder, state = ended.groups()
        return (
            f"job {job} ended before its run did (state: {state}; what it said: {folder}). Other jobs of this sweep may "
            "still be at it; the same command goes on with what is missing."
        )
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and not unknown.group(1).startswith("hydra"):
        return _unknown_key(unknown.group(1).split("@")[0])
    missing = re.search(r"Could not find '([^']+)/([^/']+)'", text)
    if missing:
        group, choice = missing.groups()
        if group == "hydra/launcher" and choice in LAUNCHERS:
            return f"{group}={choice} needs a package that is not installed: pip install 'foura[{LAUNCHERS[choice]}]'."
        found = re.findall(r"^\t(\w+)$", text, flags=re.MULTILINE)
        choices = [name for name in found if not name.startswith("for_")]  # a backbone's default, under another name
        return f"{group}={choice} is not known. {_suggest(choice, choices)}"
    if cause is not None and "full_key" in str(cause):
        first, key = str(cause).splitlines()[0], re.search(r"full_key: (\S+)", str(cause))
        return f"{key.group(1) if key else ''}: {first}."
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _unknown_key(key: str) -> str:
    """The sentence for a key that does not exist, with the keys that do at its level."""
    schema: Any = Config
    *parents, last = key.split(".")
    if key.startswith("margins"):
        return f"{key} is not the margin of a metric. {_suggest(last, [metric.margin_key for metric in with_margins()])}"
    for depth, part in enumerate(parents):
        fields = {spec.name: spec for spec in dataclasses.fields(schema)}
        nested = fields[part].type if part in fields else None
        if not (isinstance(nested, type) and dataclasses.is_dataclass(nested)):
            last, parents = part, parents[:depth]
            break
        schema = nested
    names = [spec.name for spec in dataclasses.fields(schema)]
    where = ".".join(parents)
    return f"{key} is not a key{' of ' + where if where else ''}. {_suggest(last, names)}"


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
    """The name of a sweep: as given, or made from its overrides, so that the same command is the same sweep.

    Hydra copies cached resolver values from the sweep to its jobs; that is how a job learns a name made here.
    """
    if given:
        return given
    told = [text for text in overrides if not _unscientific(text.lstrip("+").partition("=")[0])]
    return "sweep-" + hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()[:8]


def outputs_dir(cfg: DictConfig) -> Path:
    """The absolute folder that everything made goes to."""
    return Path(cfg.outputs).expanduser().absolute()
