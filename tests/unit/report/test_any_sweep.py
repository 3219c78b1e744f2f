"""Sweeps as they come, drawn at random: whatever ran, finished or was measured, there are verdicts in words."""

import itertools
import math
import random
import re

import pandas as pd
import pytest

from foura.report import compare, verdicts
from foura.report.overview import over_tasks, overview_lines
from foura.report.study import studies

ADAPTERS = ("lora", "foura", "foura_dct", "head", "dora")
VARIED = {"rank": (4, 16), "adapter.lr": (1e-3, 1e-2), "dataset.limit": ("None", "100"), "dataset.style": ("ice",)}
MEASURED = (
    "test/acc",
    "test/loss",
    "best/acc",
    "best/loss",
    "final/loss",
    "final/gap_acc",
    "final/gap_loss",
    "drift/loss",
)
STATES = ("finished",) * 6 + ("diverged", "failed", "running", "interrupted")


def value(rng: random.Random, kind: str) -> float:
    if rng.random() < 0.05:
        return rng.choice((math.nan, math.inf))
    return {
        "normal": rng.gauss(0.8, 0.05),
        "constant": 0.8,
        "zero": rng.choice((0.0, 0.5)),
        "tiny": rng.gauss(0, 1e-12),
    }[kind]


def sweep(rng: random.Random) -> pd.DataFrame:
    """Runs of up to three data sets, which have some of the adapters and metrics each."""
    varied = {key: values for key, values in VARIED.items() if rng.random() < 0.4}
    kind, rows = rng.choice(("normal", "constant", "zero", "tiny")), []
    for dataset in rng.sample("abc", rng.randint(1, 3)):
        metrics = [name for name in MEASURED if rng.random() > 0.05]
        for adapter, *settings in itertools.product(rng.sample(ADAPTERS, rng.randint(1, 4)), *varied.values()):
            for seed in range(rng.randint(0, 5)):
                state, config = rng.choice(STATES), dict(zip(varied, settings, strict=True))
                row = {
                    "run_id": str(len(rows)),
                    "state": state,
                    "backbone": "vit",
                    "dataset": dataset,
                    "adapter": adapter,
                }
                row |= {"seed": seed, "rank": config.get("rank", 4), "param:backbone.family": "vit"}
                row |= {f"param:{key}": str(one) for key, one in config.items()} | {"param:dataset.format": "None"}
                if rng.random() < 0.9:
                    row |= {"test_items": 100, "validation_items": 100}
                rows.append(row | ({name: value(rng, kind) for name in metrics} if state == "finished" else {}))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("number", range(40))
def test_there_are_verdicts_in_words(number) -> None:
    rng = random.Random(number)
    runs, tune = sweep(rng), rng.choice(([], [], ["adapter.lr"]))
    found = studies(runs, tune, rng.choice(({}, {"acc": 0.02})))
    for study in found:
        summary = compare.summary(study)
        assert summary["seeds"].sum() == len(study.finished)
        for measure in study.measures:
            table = compare.comparisons(study, measure)
            lines = verdicts.answer(table, measure, study)
            assert len(lines) == 1 + len(table) and not any(re.search(r"\b(nan|inf)\b", line) for line in lines)
            compare.slopes(study, measure)
        verdicts.tuned(study)
    table = over_tasks(found) if len(found) > 1 else pd.DataFrame()
    if not table.empty:
        lines = overview_lines(table, found)
        assert len(lines) == 1 + len(table) and not any(re.search(r"\b(nan|inf)\b", line) for line in lines)
