"""The content of status.json and tracking.jsonl, typed: run folders are untrusted, and what has the wrong type is left out."""

import math
import re
from pathlib import PurePosixPath
from typing import Any

from foura.untrusted import is_name

STATES = ("running", "finished", "failed", "diverged", "interrupted")
DATASET = {"name", "digest", "source", "profile"}  # of the data that a run lists among its inputs
LONGEST = 100_000  # characters of a text
_ID = re.compile(r"[\w-]{1,64}")  # of a run in a store, and of an experiment


def status_of(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a status.json that have the type that a run gives them, and further ones that are plain values."""
    kept = {name: value for name, value in content.items() if _is_text(name) and _is_plain(value)}
    checks = {
        "state": lambda value: value in STATES,
        "key": lambda value: value is None or _is_id(value),
        "run_id": lambda value: value is None or _is_id(value),
        "parent_run_id": _is_id,
        "error": _is_text,
        "command": _is_text,
        "tune": _is_text,
        "sweep": is_name,
        "seconds": _is_number,
        "killed": _is_count,
        "kept": lambda value: isinstance(value, list) and len(value) <= 2 and all(map(_is_count, value)),
    }
    for name, check in checks.items():
        kept.pop(name, None)
        if name in content and check(content[name]):
            kept[name] = content[name]
    metrics = content.get("metrics")
    kept.pop("metrics", None)
    if isinstance(metrics, dict):
        kept["metrics"] = {name: value for name, value in metrics.items() if _is_text(name) and _is_real(value)}
    return kept


def is_item(item: dict[str, Any]) -> bool:
    """True for an item of a journal that a run could have written."""
    if "create" in item:
        return isinstance(item["create"], dict) and _is_description(item["create"])
    if "metrics" in item:
        return _are_metrics(item)
    if "params" in item:
        return _are_texts(item["params"])
    if "dataset" in item:
        return _are_texts(item["dataset"]) and item["dataset"].keys() == DATASET
    if "artifact" in item:
        return _is_inside(item["artifact"]) and (item.get("under") is None or _is_inside(item["under"]))
    return item.get("reopen") is True or item.get("end") in STATES


def is_delivered(item: dict[str, Any]) -> bool:
    """True for a line that says how many items the store has."""
    return _is_count(item.get("delivered")) and (item.get("run_id") is None or _is_id(item["run_id"]))


def _is_description(run: dict[str, Any]) -> bool:
    """True for what a run is created from."""
    tags, params = run.get("tags"), run.get("params", {})
    if not isinstance(tags, dict) or not _are_texts(tags) or not _are_texts(params):
        return False
    if tags.get("role", "run") != "run":  # the parent of a sweep is no run's to make
        return False
    named = run.get("sweep") is None or is_name(run["sweep"])
    ids = [tags.get("uid"), tags.get("key"), *([] if run.get("replaces") is None else [run["replaces"]])]
    return named and all(map(_is_id, ids)) and _is_text(run.get("name")) and _is_count(run.get("time"))


def _are_metrics(item: dict[str, Any]) -> bool:
    metrics = item["metrics"]
    if not isinstance(metrics, dict) or not _is_count(item.get("time")) or not _is_count(item.get("step")):
        return False
    return all(_is_text(name) and _is_real(value) for name, value in metrics.items())


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(name) and _is_text(text) for name, text in value.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool) or _is_text(value) or _is_real(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_real(value: Any) -> bool:
    """True for a number; NaN and infinities too, which a diverged run has."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_inside(value: Any) -> bool:
    """True for a relative path that stays where it begins."""
    if not _is_text(value) or not value.strip("/") or "\0" in value:
        return False
    return not PurePosixPath(value).is_absolute() and ".." not in PurePosixPath(value).parts
