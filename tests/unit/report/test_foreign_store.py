"""A store that others can write to: what no run writes in it ends a report in a sentence, and never in a traceback."""

from pathlib import Path

import pytest

from foura.errors import UserError
from foura.report.page import report
from foura.tracking.store import open_store, parent_run
from tests.helpers.sweeps import grid, synthetic


def stored(outputs: Path):
    """(client, id of the sweep's parent run, id of one of its runs)."""
    synthetic(outputs, "s", grid(0.0, range(2)), items=40)
    client, experiment = open_store(outputs)
    (run, *_) = client.search_runs([experiment], "tags.role = 'run'")
    return client, parent_run(outputs, "s"), run.info.run_id


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("margins", "["),
        pytest.param(*("margins", '{"acc": "wide"}'), marks=pytest.mark.slow),
        pytest.param(*("margins", "[" * 4000), marks=pytest.mark.slow),
        ("looks", '[{"finished": 1}]'),
        pytest.param(*("looks", "5"), marks=pytest.mark.slow),
        ("rank", "abc"),
        pytest.param(*("seed", "nan"), marks=pytest.mark.slow),
        ("test_items", "many"),
    ],
)
def test_a_tag_that_no_run_writes_is_named(tag, value, tmp_path) -> None:
    client, parent, run = stored(tmp_path)
    owner = parent if tag in ("margins", "looks") else run
    client.set_tag(owner, tag, value)
    with pytest.raises(UserError, match=f"the run {owner} has the tag {tag}="):
        report(tmp_path, "s")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("layers.csv", '\x01"""\n,,,"', "is not a table of a run"),
        pytest.param(*("layers.csv", "a,b\n1,2\n", "it has no column effective_rank"), marks=pytest.mark.slow),
        ("layers.csv", "layer,rank,effective_rank,gate_std\nx,abc,1,1\n", "is not a table of a run"),
        pytest.param(*("spectra.csv", "layer,index,value\nx,y,z\n", "is not a table of a run"), marks=pytest.mark.slow),
        ("strengths.csv", "strength,kernel\n1.0,much\n", "is not a table of a run"),
        pytest.param(*("layers.csv", "", "is not a table of a run"), marks=pytest.mark.slow),
    ],
)
def test_an_artifact_that_is_no_table_is_named(name, text, said, tmp_path) -> None:
    client, _, run = stored(tmp_path)
    (tmp_path / name).write_text(text)
    client.log_artifact(run, str(tmp_path / name))
    with pytest.raises(
        UserError, match=f"the artifact {name} of the run {run} is.* {said}|{name} of the run {run} {said}"
    ):
        report(tmp_path, "s")


def test_markup_in_the_store_is_text_on_the_page(tmp_path) -> None:
    client, _, run = stored(tmp_path)
    client.set_tag(run, "adapter", "<img src=x onerror=alert(1)>")
    client.set_tag(run, "mlflow.runName", "<script>alert(2)</script>")
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page and "&lt;script&gt;alert(2)" in page
    assert not any(b"<img src=x" in path.read_bytes() for path in tmp_path.glob("sweeps/s/report/*.svg"))
