"""One rule says by which metric a run is judged: in the run's lines, in the sweep's line, and in the report."""

import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from foura.families import FAMILIES
from foura.metrics import EPOCH, METRICS, TABLE
from foura.report.study import judged_by
from foura.run.artifacts import print_result
from foura.sweep.callback import _result
from tests.helpers.config import composed

# (family, format): (judged by, at the end; shown while it trains)
JUDGED = {
    ("vit", "classes"): ("acc", "acc"),
    ("llama_small", "text"): ("loss", "loss"),
    ("llama_small", "completion"): ("loss", "loss"),
    ("llama_small", "commonsense"): ("acc", "acc"),
    ("llama_small", "verbalizer"): ("acc", "acc"),
    ("unet", "captions"): ("kernel", "loss"),
    ("bert", "classification"): ("acc", "acc"),
    ("bert", "regression"): ("spearman", "spearman"),
}
CASES = [(family, form) for family, record in FAMILIES.items() for form in record.formats]


def test_every_format_is_listed_here() -> None:
    assert set(CASES) == set(JUDGED)


@pytest.mark.parametrize(("family", "form"), CASES)
def test_the_same_metric_everywhere(family, form) -> None:
    cfg = composed(f"backbone={family}", f"dataset.format={form}")
    end, epoch = (METRICS[key] for key in JUDGED[family, form])
    values = {end.column: 0.25, f"test/{epoch.key}": 0.25, f"best/{epoch.key}": 0.5, f"best/train_{epoch.key}": 0.75}
    assert _result({"state": "finished", "metrics": values}, cfg) == (f"finished, validation {epoch.label} 0.500:")
    runs = pd.DataFrame({"param:backbone.family": [family], "param:dataset.format": [form]})
    assert judged_by(runs) == (end, epoch)
    said = printed(values, cfg)
    assert f"{epoch.label} of the selected epoch" in said and f"{epoch.gap(0.75, 0.5):+.3f}" in said
    assert epoch == end or end.label in said


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_format_the_first_one_counts(family) -> None:
    """A config has null, and a store of MLflow has the text "None"."""
    record = FAMILIES[family]
    first = next(iter(record.formats))
    for none in (None, "None"):
        assert record.headline(none) == record.headline(first) and record.curve(none) == record.curve(first)
        runs = pd.DataFrame({"param:backbone.family": [family], "param:dataset.format": [none]})
        assert judged_by(runs) == (record.headline(first), record.curve(first))


@pytest.mark.parametrize(("family", "form"), CASES)
def test_metrics_of_formats_are_records_and_one_has_curves(family, form) -> None:
    record = FAMILIES[family]
    assert all(key in METRICS for key in record.formats[form])
    assert EPOCH in record.curve(form).shown and record.curve(form).key == record.selectable(form)[0]
    headline = record.headline(form)
    assert EPOCH in headline.shown or TABLE in headline.shown  # so that the last table of a run has it


def printed(values: dict[str, float], cfg) -> str:
    costs = {"cost/trainable_params": 1.0, "cost/step_time_ms": 1.0, "cost/peak_memory_mb": 1.0}
    out = io.StringIO()
    print_result(Console(file=out, width=200), "title", {**values, **costs}, [], cfg, Path("runs/one"))
    return out.getvalue()
