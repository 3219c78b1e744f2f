"""Tuned keys: the best value of each adapter and condition, picked on validation data."""

from collections.abc import Sequence

import pandas as pd


def pick(
    runs: pd.DataFrame, conditions: Sequence[str], keys: Sequence[str], column: str, label: str, more_is_better: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the picked values with their validation score, the runs that have them); without keys an empty table and all runs.

    The value with the best mean over seeds wins; one that finished for fewer seeds than another cannot.

    Args:
        keys: the tuned keys. column: the validation metric of the runs. label: its heading.
    """
    if not keys:
        return pd.DataFrame(), runs
    picked, kept = [], []
    for values, part in runs.groupby(["adapter", *conditions], sort=False, dropna=False):
        done = part[part["state"] == "finished"]
        score = done.groupby(list(keys))[column].agg(["mean", "count"])
        score = score[score["count"] == score["count"].max()]["mean"]
        if score.empty:
            continue
        best = score.idxmax() if more_is_better else score.idxmin()
        chosen = dict(zip(keys, best if isinstance(best, tuple) else (best,), strict=True))
        row = {**dict(zip(["adapter", *conditions], values, strict=True)), **chosen, label: score[best]}
        row |= {f"tried {key}": ", ".join(f"{value:g}" for value in sorted(part[key].unique())) for key in keys}
        row["did not finish"] = int((part["state"] != "finished").sum())
        picked.append(row)
        kept.append(part[(part[list(keys)] == pd.Series(chosen)).all(axis=1)])
    return pd.DataFrame(picked), pd.concat(kept, ignore_index=True)
