"""The same command started several times at once is a work queue: this is what the examples in docs/clusters/ stand on."""

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from tests.helpers.runs import children, start, statuses
from tests.helpers.survives import record

WORKERS = 3
GRID = ("sweep=s", "adapter=head,lora", "seed=0,1", "rank=4", "dataset.limit=40", "dataset.epochs=2")


@pytest.mark.slow
def test_three_workers_on_one_sweep_do_every_run_once(root, run_env, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    workers = [start(root, run_env, outputs, *GRID) for _ in range(WORKERS)]
    said = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * WORKERS, said
    assert [status["state"] for status in statuses(outputs, "s").values()] == ["finished"] * 4
    parents, runs = children(outputs, "s")
    assert len(parents) == 1 and len(runs) == len({run.data.tags["key"] for run in runs}) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parents[0].info.run_id}
    store = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("foura").experiment_id
    assert len(store.search_runs([experiment], run_view_type=ViewType.ALL)) == 5  # none was begun twice and hidden
    assert any("left to the other" in text for text in said)
    assert (
        sum("sweep s: 4 finished" in text and "report: " in text for text in said) >= 1
    )  # the last one makes the page
    record("schedulers", f"one command started {WORKERS} times at once (a work queue)", "4 runs, none twice")
