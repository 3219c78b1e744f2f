"""Mistakes in a command or in conf/, in a sentence with the valid choices: what Hydra and OmegaConf found, and wrong keys."""

import dataclasses
import difflib
import re
import typing
from typing import Any

from foura.errors import first_line
from foura.metrics import with_margins
from foura.schema import Config

# words of other frameworks for the last part of a key
SYNONYMS = {"learning_rate": "lr", "num_epochs": "epochs", "steps": "max_steps", "r": "rank"}
# Hydra's launchers that are not installed with foura, and the extra that has each
LAUNCHERS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}


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
    if isinstance(error, FileExistsError):
        return f"{error.filename} is not a folder: a file, or a link to a disk that is not mounted. Take it out or mount it."
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and not unknown.group(1).startswith("hydra"):
        return unknown_key(unknown.group(1).split("@")[0])
    if "hydra.cc/docs" in text and "grammar" in text:
        told = text.partition("See https")[0].split("Error parsing override")[-1]
        return (
            f"the command cannot be read ({first_line(ValueError(told))}): a value with special characters, such as a "
            """folder's name with '=' or ',' in it, needs two pairs of quotes: 'outputs="a=b"'."""
        )
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
    return f"{group}={choice} is not known. {suggest(choice, choices)}"


def unknown_key(key: str) -> str:
    """The sentence for a key that does not exist, with the keys that exist at its level."""
    schema: Any = Config
    if key.startswith("margins."):
        known = [metric.margin_key for metric in with_margins()]
        return f"{key} is not the margin of a metric. {suggest(key.removeprefix('margins.'), known)}"
    parts = key.split(".")
    for depth, part in enumerate(parts):
        types = {spec.name: spec.type for spec in dataclasses.fields(schema)}
        nested, where = types.get(part), ".".join(parts[:depth])
        if typing.get_origin(nested) is dict:
            return f"{key} is not set yet; a plus sign adds it: +{where}.{part}.NAME=VALUE."
        if not (isinstance(nested, type) and dataclasses.is_dataclass(nested)):
            break
        schema = nested
    said, close = f"{key} is not a key{' of ' + where if where else ''}.", difflib.get_close_matches(part, types, n=1)
    elsewhere = _elsewhere(parts[-1])
    if elsewhere and not close:
        return f"{said} Did you mean {', '.join(elsewhere)}?"
    return f"{said} {suggest(part, types)}"


def _elsewhere(word: str) -> list[str]:
    """Keys anywhere in the schema whose last part is this word, or ends in it: adapter.lr and optimizer.lr for lr."""
    word = SYNONYMS.get(word, word)
    exact = [key for key in _keys(Config) if key.rpartition(".")[2] == word]
    ending = [key for key in _keys(Config) if key.rpartition(".")[2].endswith(f"_{word}")]
    found = exact if len(exact) > 1 else exact + ending
    return found or (_elsewhere(word.partition("_")[2]) if "_" in word else [])


def _keys(schema: Any, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted."""
    keys = []
    for spec in dataclasses.fields(schema):
        nested = isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type)
        keys += _keys(spec.type, f"{prefix}{spec.name}.") if nested else [prefix + spec.name]
    return keys


def suggest(word: str, choices: Any) -> str:
    """The choices in a sentence, the one that the word resembles first."""
    close = difflib.get_close_matches(word, choices, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Valid choices: {', '.join(choices)}."
