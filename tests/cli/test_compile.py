"""`backbone.compile=true`: the same results to rounding."""

import pytest

from foura.tracking.status import read_json


@pytest.mark.slow
def test_a_compiled_run_has_the_results_of_an_eager_one(train) -> None:
    command = ("adapter=foura_dct_gated", "rank=4", "dataset.limit=40", "dataset.epochs=2")
    eager, fast = train(*command, into="eager"), train(*command, "backbone.compile=true", into="compiled")
    assert eager.code == fast.code == 0, fast.out
    of_eager, of_fast = (read_json(ended.folder() / "status.json")["metrics"] for ended in (eager, fast))
    for key in ("best/loss", "test/loss"):
        assert of_fast[key] == pytest.approx(of_eager[key], abs=1e-4)
