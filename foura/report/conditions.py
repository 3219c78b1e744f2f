"""The conditions of a study: which keys of the config its runs are compared within."""

from collections.abc import Sequence

import pandas as pd
from omegaconf import OmegaConf

from foura.methods import METHODS, OPTIONAL

PREFERRED = ("rank", "alpha", "dataset.limit", "dataset.label_noise", "adapter.lr", "dataset.epochs", "dataset.style")
NO_CONDITION = ("seed", "evaluation.drift")  # keys that may vary within a condition: the latter changes no other number


def follows_seed(runs: pd.DataFrame, key: str) -> bool:
    """True if a key has the run's seed as its value in every run, of several seeds: it is no condition of its own.

    A key of an adapter may have one value in all runs of others, which do not use it.
    """
    column = f"param:{key}"
    if column not in runs or runs["seed"].nunique() < 2:
        return False
    follows = runs[column].astype(str) == runs["seed"].astype(str)
    if not key.startswith("adapter.") or follows.all():
        return bool(follows.all())
    by = runs["adapter"]
    constant = runs.groupby(by)[column].transform("nunique", dropna=False) == 1
    return bool((constant | follows.groupby(by).transform("all")).all() and not constant.all())


def conditions_of(runs: pd.DataFrame, tune: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(keys that vary within an adapter, tuned keys among them, those that follow another one, which are in neither)."""
    varying = []
    for column in runs:
        key = str(column).removeprefix("param:")
        if not str(column).startswith("param:") or key in NO_CONDITION or follows_seed(runs, key):
            continue
        if runs.groupby("adapter")[column].nunique(dropna=False).max() > 1:
            varying.append(key)
    known = [*tune, *PREFERRED]
    varying.sort(key=lambda key: (known.index(key) if key in known else len(known), key))
    kept: list[str] = []
    for key in varying:
        if not any(_follows(runs, key, other, other in tune) for other in kept):
            kept.append(key)
    derived = [key for key in varying if key not in kept]
    return [key for key in kept if key not in tune], [key for key in kept if key in tune], derived


def _follows(runs: pd.DataFrame, key: str, other: str, tuned: bool) -> bool:
    """True if the value of `other` says that of `key`.

    Where `other` is tuned, a value is chosen among all of its own, so that a condition must not vanish in it: ranks that
    were tuned in parts of a sweep, each over rates of its own, are told apart by the rates. What is computed from a tuned key
    has one value for each of its.
    """

    def says(one: str, another: str) -> bool:
        groups = runs.groupby(["adapter", f"param:{one}"], dropna=False)
        return bool(groups[f"param:{another}"].nunique(dropna=False).max() == 1)

    return says(other, key) and not (tuned and (key in PREFERRED or not says(key, other)))


def unused_by(runs: pd.DataFrame, conditions: Sequence[str]) -> list[str]:
    """The conditions among the keys of an adapter that an adapter with these runs has no use for."""
    if runs.empty:
        return []
    config = {key: str(runs[f"param:adapter.{key}"].iloc[0]) for key in OPTIONAL if f"param:adapter.{key}" in runs}
    method = METHODS.get(str(runs.get("param:adapter.method", pd.Series([""])).iloc[0]))
    known = OmegaConf.create({**dict.fromkeys(OPTIONAL, ""), **config})
    without = set(OPTIONAL) - set(() if method is None else method.used(known))
    found = []
    for key in conditions:
        unknown = key.startswith("adapter.") and runs[key].isna().all()  # an option of another method of PEFT's
        if unknown or (method is not None and key.removeprefix("adapter.") in without and runs[key].nunique() == 1):
            found.append(key)
    return found


def numeric(column: pd.Series) -> bool:
    """True if every value is a number."""
    return bool(pd.to_numeric(column, errors="coerce").notna().all())
