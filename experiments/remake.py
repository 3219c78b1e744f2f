"""Remake a study's comparisons and figures from its committed CSV files, without the tracking store.

    python experiments/remake.py experiments/rank_sweep experiments/overfitting

For when the statistics of reports have changed: runs.csv has every number that they need. What only the store has (spectra,
measures by epoch) is left as it is. `foura report STUDY --into experiments/STUDY` makes all of it after a sweep.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from foura.report.collect import Sweep
from foura.report.page import PARTS, Section, make_overview, prefixes
from foura.report.study import studies

CONFIGS = Path(__file__).resolve().parents[1] / "conf" / "experiment"
# sizes of validation and test data, which runs of 0.1.0 did not record
SIZES = {"digits": {"validation_items": 539, "test_items": 719}}


class Committed(Sweep):
    """A sweep as its study's folder has it."""

    folder: Path
    prefix: str  # of the files of one of several studies
    metric: str  # the one whose history is in curves.csv

    def history(self, run_id: str, metric: str) -> pd.Series:
        column = {f"{part}/{self.metric}": name for name, part in PARTS.items()}.get(metric)
        if column is None:
            return pd.Series(dtype=float)
        curves = pd.read_csv(self.folder / f"{self.prefix}curves.csv")
        return curves[curves["run_id"] == run_id].set_index("epoch")[column]

    def tables(self, run_ids, name: str) -> pd.DataFrame:
        path = self.folder / f"{self.prefix}{name}.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame()

    def artifact(self, run_id: str, name: str, into: Path) -> Path | None:
        return None


def _read(path: Path) -> pd.DataFrame:
    """A table of runs; an empty one where there is none."""
    if not path.exists():
        return pd.DataFrame()
    return pd.read_csv(path, keep_default_na=False, na_values=[""])  # "None" is a value of the config


def remake(folder: Path) -> None:
    runs = _read(folder / "runs.csv")
    for dataset, sizes in SIZES.items():
        if (runs["dataset"] == dataset).all():
            runs = runs.assign(**sizes)
    config = yaml.safe_load((CONFIGS / f"{folder.name}.yaml").read_text(encoding="utf-8"))
    nothing: Any = None  # of the store
    sweep = Committed(
        name=folder.name,
        client=nothing,
        artifacts=nothing,
        parent_id="",
        experiment_id="",
        runs=runs,
        tuning=_read(folder / "tuning.csv"),
        tune=config.get("tune", []),
        commands=[],
        margins={},
        looks=[],
        ui="",
    )
    found = studies(sweep.runs, sweep.tune, tuning=sweep.tuning)
    for study, prefix in zip(found, prefixes(found), strict=True):
        sweep.folder, sweep.prefix, sweep.metric = folder, prefix, study.selection.column.split("/")[1]
        made = Section(sweep, study, folder, prefix).made([])
        print(f"\n{study.title}", *(line for answer in made["answers"] for line in answer), sep="\n")
        print(made["more"] or "", *filter(None, made["notes"]), sep="\n")
    if overview := make_overview(found, folder):
        print(*overview["lines"], sep="\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"\n## {name}")
        remake(Path(name).resolve())
