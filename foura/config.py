"""Reading a config: checks beyond types, and the key that identifies an experiment.

OmegaConf checks types; `check` checks choices and ranges, from each field's metadata in `foura/schema.py`. Light on purpose:
a wrong key, choice or type ends the program before torch is imported.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from foura.errors import UserError, reason
from foura.escape import names_credential
from foura.families import FAMILIES, family_of
from foura.families.family import Family
from foura.files import read_text
from foura.methods import OPTIONAL as METHOD_KEYS
from foura.methods import method_of
from foura.mistakes import explain, suggest, unknown_key
from foura.schema import Config, defaults_since, former_defaults
from foura.untrusted import CONFIG, Folder, is_name

# Keys that name a run and say where it is kept, and cannot change its numbers.
UNSCIENTIFIC: tuple[str, ...] = ("sweep", "tune", "tuning_seeds", "margins", "force", "plan", "outputs")
UNSCIENTIFIC += ("trainer.enable_progress_bar", "trainer.profiler", "dataset.num_workers")
DEEPEST = 16  # levels of a config
SWEEPER, TARGET = "foura", "hydra_plugins.foura.Sweeper"  # the choice of hydra/sweeper that is foura/sweep/sweeper.py


def register() -> None:
    """Register the schema, the sweeper and the resolvers of conf/ with Hydra and OmegaConf."""
    ConfigStore.instance().store(name="schema", node=Config)
    sweeper = {"_target_": TARGET, "max_batch_size": None, "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name=SWEEPER, node=sweeper)
    OmegaConf.register_new_resolver("foura.times", lambda a, b: float(a) * float(b), replace=True)
    OmegaConf.register_new_resolver("foura.gate_lr", gate_lr, replace=True)
    OmegaConf.register_new_resolver("foura.folder", folder_name, replace=True)
    OmegaConf.register_new_resolver("foura.sweep", _sweep_name, use_cache=True, replace=True)


def read(path: Path, folder: Folder) -> Any:
    """The config that a run left, merged into the schema, which gives its values their types. It is untrusted, and only data.

    Raises:
        UserError: it is not YAML, is larger or deeper than any config, has tags, aliases or interpolations, or does not fit
            the schema.
    """
    text = read_text(path, folder, CONFIG)
    try:
        _refuse_computed(text)
        return OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text))
    except OmegaConfBaseException as error:
        raise UserError(f"{path} is not the config of a run: {explain(error)}") from None
    except Exception as error:  # the parsers of YAML and OmegaConf raise many kinds
        raise UserError(f"{path} is not the config of a run: {reason(error)}") from None


def _refuse_computed(text: str) -> None:
    """Refuse YAML that has more than values in it.

    Raises:
        ValueError: it could grow when it is read, or would be computed.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError("it is nested deeper than any config")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it refers to its own parts, which no run writes and which can grow without end")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"it has the tag {event.tag[:40]}, and a run writes values alone")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise ValueError(f"{event.value[:40]!r} would be computed, and a run writes values alone")


def check(cfg: DictConfig) -> None:
    """Check every field of `Config` against its choices and range, and backbone, data and method against each other.

    Raises:
        UserError: the first key that is missing or unknown, or value that is not allowed, with the choices or the range.
    """
    try:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}=??? has no value; write {error.full_key}=VALUE.") from None
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    refuse_deleted(cfg)
    with flag_override(cfg, "readonly", False):
        _read_lists(cfg, Config, "")
    _check_node(cfg, Config, "")
    _check_family(cfg)
    method_of(cfg).check(cfg, causal=family_of(cfg).causal)
    _check_margins(cfg.margins)
    name = cfg.sweep
    if name is not None and not is_name(name):
        raise UserError(f"sweep={name!r} must be 1 to 100 letters, digits, '.', '_', '+' or '-': it names a folder.")


def refuse_deleted(node: DictConfig, schema: type = Config, prefix: str = "") -> None:
    """Refuse a config that lacks a key, as by ~rank in a command.

    Raises:
        UserError: the first key.
    """
    present = set(node)
    for spec in dataclasses.fields(schema):
        key = prefix + spec.name
        if spec.name not in present:
            raise UserError(f"{key} is deleted, and every run needs it: leave ~{key} out of the command.")
        if isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            refuse_deleted(node[spec.name], spec.type, f"{key}.")


def _read_lists(node: DictConfig, schema: type, prefix: str) -> None:
    """Make every list of the schema one of its kind of items, those given as a text ('[" bad"," good"]') too."""
    for spec in dataclasses.fields(schema):
        if isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            _read_lists(node[spec.name], spec.type, f"{prefix}{spec.name}.")
        elif "items" in spec.metadata and node[spec.name] is not None:
            node[spec.name] = _listed(prefix + spec.name, node[spec.name], spec.metadata["items"])


def _listed(key: str, value: Any, kind: type) -> list[Any]:
    found = value
    if isinstance(value, str):
        try:
            found = yaml.load(value, Loader=yaml.BaseLoader)  # scalars stay texts: "yes" is a word
        except yaml.YAMLError:
            found = None
    items: Any = OmegaConf.to_container(found) if isinstance(found, ListConfig) else found
    if not isinstance(items, list) or any(isinstance(item, dict | list) or item is None for item in items):
        raise UserError(f"{key}={value} is not a list of {'numbers' if kind is float else 'texts'}: write [one,two].")
    try:
        return [kind(item) for item in items]
    except ValueError:
        raise UserError(f"{key}={value} is not a list of numbers: write [0.5,1.0].") from None


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


def check_used(cfg: DictConfig) -> None:
    """Refuse a key that is set to something and has no effect in this run. (Configs of finished runs may have such keys.)

    Raises:
        UserError: the first one.
    """
    family, method = family_of(cfg), method_of(cfg)
    optional = {key for other in FAMILIES.values() for keys in other.uses.values() for key in keys}
    defaults = OmegaConf.structured(Config)
    for key in sorted(optional - family.used(cfg)) if family.uses else ():
        if OmegaConf.select(cfg, key) != OmegaConf.select(defaults, key):
            raise UserError(
                f"{key}={OmegaConf.select(cfg, key)} has no effect {_where_used(key, family)}; leave it out."
            )
    for name in METHOD_KEYS:
        value, default = cfg.adapter[name], OmegaConf.select(defaults, f"adapter.{name}")
        if name == "gate_scope":  # its default follows the backbone
            default = cfg.backbone.gate_scope
        if name not in method.used(cfg.adapter) and value != default:
            raise UserError(
                f"adapter.{name}={value} has no effect with adapter={cfg.adapter.name} (of adapter.method={method.name}); "
                "leave it out."
            )


def _where_used(key: str, family: Family) -> str:
    """In which runs a key has no effect, and in which it has: "with backbone=vit (it has with backbone=unet)"."""
    own = [name for name, keys in family.uses.items() if key in keys]
    if own:
        return f"here: for backbone={family.name} it needs {' or '.join(own)}"
    others = [other.name for other in FAMILIES.values() if any(key in keys for keys in other.uses.values())]
    return f"with backbone={family.name}: it is for backbone={' and '.join(others)}"


def _check_margins(margins: DictConfig) -> None:
    """Refuse a margin that no difference can be within."""
    for key, value in margins.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise UserError(f"margins.{key!s} must be a number above 0, got {value}.")


def _check_node(node: DictConfig, schema: type, prefix: str) -> None:
    names = [spec.name for spec in dataclasses.fields(schema)]
    for name in node:
        if name not in names:
            raise UserError(unknown_key(prefix + str(name)))
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
    if names_credential(str(value)):
        raise UserError(f"{key} has a password or a token in it, which the run's folder would keep; take it out.")
    if "choices" in limits and value not in limits["choices"]():
        raise UserError(f"{key}={value} is not known. {suggest(str(value), limits['choices']())}")
    if "accepts" in limits and not limits["accepts"](value):
        raise UserError(f"{key} must be {limits['told']}, got {value}.")
    if "at_least" in limits and value is not None:
        if value >= limits["at_least"] and limits["above"] < value < limits["below"]:
            return
        bounds = (("at least", limits["at_least"]), ("above", limits["above"]), ("below", limits["below"]))
        wanted = " and ".join(
            f"{word} {bound if isinstance(bound, int) else format(bound, 'g')}"
            for word, bound in bounds
            if math.isfinite(bound)
        )
        raise UserError(f"{key} must be {wanted}, got {value}.")


def scientific(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without the keys that cannot change a result, flat: {"adapter.lr": 0.001, ...}."""
    container = OmegaConf.to_container(cfg, resolve=True)
    return {key: value for key, value in sorted(_flatten(container)) if not _unscientific(key)}


def _unscientific(key: str) -> bool:
    return key in UNSCIENTIFIC or key.startswith("margins.")


def run_key(cfg: DictConfig) -> str:
    """Hash of the scientific config (16 hex digits): equal keys are the same experiment.

    A key of the schema that is marked by `since` enters where it is not at its default, and one that is marked by `formerly`
    with its former default, so that configs of before have the hash that they had.
    """
    former = former_defaults(Config)
    silent = [key for key, default in defaults_since(Config).items() if OmegaConf.select(cfg, key) == default]
    told = [
        (key, former[key][1] if key in former and value == former[key][0] else value)
        for key, value in sorted(scientific(cfg).items())
        if not any(key == one or key.startswith(f"{one}.") for one in silent)
    ]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _flatten(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(prefix.rstrip("."), node)]
    if not node:
        return [(prefix.rstrip("."), "{}")]
    return [pair for key, value in node.items() for pair in _flatten(value, f"{prefix}{key}.")]


def gate_lr(form: str, scope: str) -> float:
    """The learning rate of a gate with which it was seen to select (experiments/gates), by `adapter.gate_form` and scope.

    The gradient of a token's own gate is spread over more gates, and moves their common network less.
    """
    return (5e-2 if scope == "sequence" else 2e-1) if form == "softmax" else 2e-2


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
