"""Tuned keys: the best value of each adapter and condition, chosen on validation data."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from foura.analysis.tuning import beyond, choose

WIDEN, TRIED, SEEDS, LOST = "widen with", "tried", "tuning seeds", "did not finish"
OWN = "those compared"  # in place of tuning seeds


def pick(
    runs: pd.DataFrame,
    tuning: pd.DataFrame,
    conditions: Sequence[str],
    keys: Sequence[str],
    score: tuple[str, str, bool],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the chosen values with their validation score, the runs that have them); without keys an empty table and all runs.

    By the tuning runs; in a condition without any, by the compared runs' own validation data. The rule is that of
    `foura.analysis.tuning.choose`, among the values that were compared.

    Args:
        runs, tuning: with a column for each condition and key. keys: the tuned ones.
        score: the validation metric of the runs: its column, its heading, and true if more is better.
    """
    if not keys:
        return pd.DataFrame(), runs
    by, picked, kept = ["adapter", *conditions], [], []
    groups = {_cell(cell): part for cell, part in tuning.groupby(by, dropna=False)} if len(tuning) else {}
    for cell, part in runs.groupby(by, sort=False, dropna=False):
        evidence = groups.get(_cell(cell), part)
        results = _results(evidence, keys, score[0])
        # a value that was chosen since the last report may have no result yet; that it diverged is one
        done = part[part["state"].isin(["finished", "diverged"])]
        compared = (set(_values(done, keys)) & set(results)) or set(_values(part, keys))
        chosen = choose({value: found for value, found in results.items() if value in compared}, 1 if score[2] else -1)
        if chosen is None:
            continue
        mean = pd.Series([one for one in results[chosen] if one is not None]).mean()
        row = {**dict(zip(by, cell, strict=True)), **dict(zip(keys, chosen, strict=True)), score[1]: mean}
        for at, key in enumerate(keys):
            tried = sorted({value[at] for value in results})
            row |= {f"{TRIED} {key}": ", ".join(map(_text, tried)), f"{WIDEN} {key}": _wider(tried, chosen[at])}
        row[SEEDS] = ", ".join(map(str, sorted(evidence["seed"].unique()))) if _cell(cell) in groups else OWN
        row[LOST] = int((evidence["state"] != "finished").sum())
        picked.append(row)
        kept.append(part[[value == chosen for value in _values(part, keys)]])
    return pd.DataFrame(picked), pd.concat(kept, ignore_index=True) if kept else runs.iloc[:0]


def hopeless(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The cells whose every run diverged or failed, a row each with the columns `by`: nothing can be chosen there."""
    lost = runs["state"].isin(["diverged", "failed"]).groupby([runs[key] for key in by], sort=False, dropna=False).all()
    return lost[lost].index.to_frame(index=False)[list(by)]


def _results(evidence: pd.DataFrame, keys: Sequence[str], column: str) -> dict[tuple, list[float | None]]:
    """{value of the keys: the score at each seed, None where a run did not finish}, smaller values first."""
    done = evidence["state"] == "finished"
    scores = evidence[column].where(done) if column in evidence else pd.Series(math.nan, evidence.index)
    found: dict[tuple, list[float | None]] = {}
    for value, score in zip(_values(evidence, keys), scores, strict=True):
        found.setdefault(value, []).append(None if math.isnan(score) else score)
    return dict(sorted(found.items()))


def _cell(values: Any) -> tuple:
    """Values of a group as a key: a missing one is None, which equals itself."""
    return tuple(None if pd.isna(value) else value for value in values)


def _values(rows: pd.DataFrame, keys: Sequence[str]) -> list[tuple]:
    return list(rows[list(keys)].itertuples(index=False, name=None))


def _wider(tried: Sequence[float | str], chosen: float | str) -> str:
    """The value by which to widen a grid whose edge is best; "" inside of it, and for values that are not numbers."""
    if any(isinstance(value, str) for value in tried):
        return ""
    wider = beyond([float(value) for value in tried], float(chosen))
    return "" if wider is None else "other values" if math.isnan(wider) else f"{wider:g}"


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
