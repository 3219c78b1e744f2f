"""Errors in our callbacks of Hydra, which turns the exceptions of callbacks into warnings and ends with status 0."""

import pytest

from foura.sweep import callback
from foura.sweep.callback import SweepCallback
from foura.sweep.requeue import RequeueCallback
from foura.tracking.store import open_store
from tests.helpers.runs import client, statuses

QUICK = ("-m", "sweep=s", "adapter=head", "dataset.limit=40", "dataset.epochs=1", "seed=0,1")


@pytest.mark.parametrize(
    ("at", "ran"), [("job_folder", 0), ("parent_run", 0), ("_result", 1), ("states", 0), ("plan_lines", 0)]
)
def test_a_bug_in_a_callback_ends_the_sweep(at, ran, train, monkeypatch) -> None:
    def broken(*arguments, **named):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(
        "foura.tracking.store.parent_run" if at == "parent_run" else f"foura.sweep.callback.{at}", broken
    )
    ended = train(*QUICK, *(["plan=true"] if at == "plan_lines" else []))
    assert ended.code not in (0, None) and "RuntimeError: a bug of ours" in str(ended.code)
    assert "Traceback" in ended.code and "failed, see above; the sweep ends here" in ended.code
    assert len(statuses(ended.outputs, "s")) == ran


def test_every_method_that_hydra_calls_is_guarded() -> None:
    for kind in (SweepCallback, RequeueCallback):
        own = [name for name in vars(kind) if name.startswith("on_")]
        assert own
        for name in own:
            assert vars(kind)[name].__wrapped__.__qualname__ == f"{kind.__name__}.{name}"


@pytest.mark.slow
def test_a_sweep_whose_experiment_was_deleted_says_so_before_the_first_run(train, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    _, experiment = open_store(outputs)
    client(outputs).delete_experiment(experiment)
    ended = train(*QUICK, fresh=True)
    assert "the experiment foura was deleted in the tracking store" in ended.code
    assert f"mlflow experiments restore --experiment-id {experiment}" in ended.code
    assert statuses(outputs, "s") == {}
    single = train("adapter=head", "dataset.limit=40", fresh=True)
    assert "the experiment foura was deleted in the tracking store" in single.code
    client(outputs).restore_experiment(experiment)
    assert train(*QUICK, fresh=True).code == 0
    assert callback.DONE and len(statuses(outputs, "s")) == 2
