"""Rounds of tuning runs, with results worked out by hand: what runs next, what is chosen, and what is refused."""

import itertools

import pytest

from foura.errors import UserError
from foura.sweep import sweeper
from foura.sweep.tuning import UNTESTED, Result, Tuning

# validation accuracies of lora at rank 4, by learning rate and tuning seed
LORA = {"1e-4": (0.2, 0.3, 0.3), "1e-3": (0.6, 0.8, 0.7), "1e-2": (0.7, 0.6, 0.9), "1e-1": (0.1, 0.1, 0.1)}


def product(rates=tuple(LORA), adapters=("lora",), seeds=range(5)) -> list[list[str]]:
    """The overrides of a sweep; the rates stand in no order."""
    grid = itertools.product(adapters, sorted(rates), seeds)
    return [[f"adapter={adapter}", f"adapter.lr={rate}", "rank=4", f"seed={seed}"] for adapter, rate, seed in grid]


class Store:
    """Results of tuning runs, as they come in."""

    def __init__(self, scores, metric: str = "acc") -> None:
        self.scores, self.metric = scores, metric
        self.done: set[tuple[str, ...]] = set()
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, job):
        self.asked.append(job)
        if job not in self.done:
            return None
        values = dict(text.split("=") for text in job)
        return Result(self.metric, self.scores[values["adapter.lr"]][int(values["seed"]) - 1000])


def tuning(store, jobs=None, seeds=(1000, 1001, 1002)) -> Tuning:
    return Tuning(jobs or product(), ["adapter.lr"], seeds, 0, store)


def ready(one: Tuning) -> list[tuple[str, ...]]:
    return [job.overrides for job in one.jobs() if not job.undecided]


def tried(jobs) -> list[tuple[str, str]]:
    """(rate, seed) of the tuning runs among the jobs."""
    found = [dict(text.split("=") for text in job) for job in jobs if UNTESTED in job]
    return [(one["adapter.lr"], one["seed"]) for one in found]


def run_all(one: Tuning, store: Store) -> list[int]:
    """Execute what is ready, until nothing new is; the number of runs of each time."""
    launched: set = set()
    counts = []
    while new := set(ready(one)) - launched:
        launched |= new
        store.done |= new
        counts.append(len(new))
    return counts


def test_four_rates_are_halved_after_two_seeds_and_the_best_of_three_is_compared() -> None:
    store = Store(LORA)
    one = tuning(store)
    assert tried(ready(one)) == [(rate, seed) for rate in LORA for seed in ("1000", "1001")]
    assert len(one.jobs()) == 8 + 2 + 5 and one.most() == (10, 5)
    store.done |= set(ready(one))
    # means of two seeds: 0.25, 0.7, 0.65, 0.1
    assert tried(ready(one))[8:] == [("1e-3", "1002"), ("1e-2", "1002")]
    store.done |= set(ready(one))
    # means of three: 0.7 and 0.7333
    assert [job for job in ready(one) if UNTESTED not in job] == [
        ("adapter=lora", "adapter.lr=1e-2", "rank=4", f"seed={seed}") for seed in range(5)
    ]
    (cell,) = one.cells
    assert cell.chosen == ("adapter.lr=1e-2",) and cell.seeds == 3
    assert one.said(cell) == "tuned the adapter: adapter.lr=1e-2 (validation accuracy 0.733 over 3 seeds)"


def test_of_losses_the_smaller_half_stays() -> None:
    store = Store(LORA, metric="loss")
    one = tuning(store)
    assert run_all(one, store) == [8, 2, 5]
    assert tried(ready(one))[8:] == [("1e-1", "1002"), ("1e-4", "1002")]
    assert one.cells[0].chosen == ("adapter.lr=1e-1",)


def test_the_best_rate_at_the_edge_of_the_grid_is_said() -> None:
    store = Store({"1e-4": (0.1,) * 3, "1e-3": (0.2,) * 3, "1e-2": (0.3,) * 3, "1e-1": (0.4,) * 3})
    one = tuning(store)
    run_all(one, store)
    assert one.said(one.cells[0]).endswith("at the edge of its grid: widen it, as with adapter.lr=1")


def test_a_killed_sweep_resumes_with_what_is_missing() -> None:
    """A new process asks for the runs without a result alone, in the middle of the first round and of the second."""
    store = Store(LORA)
    store.done = set(ready(tuning(store))[:3])
    first = ready(tuning(store))
    assert [job for job in first if job not in store.done] == first[3:] and len(first) == 8
    store.done = set(first)
    store.done.add(ready(tuning(store))[8])
    again = ready(tuning(store))
    assert [job for job in again if job not in store.done] == [
        ("adapter=lora", "rank=4", "adapter.lr=1e-2", "seed=1002", UNTESTED)
    ]
    store.done |= set(again)
    assert tuning(store).jobs() == tuning(store).jobs() and len(ready(tuning(store))) == 15


def test_a_failed_run_holds_up_its_own_cell_alone() -> None:
    store = Store(LORA)
    one = tuning(store, product(adapters=("lora", "foura")))
    for _ in range(3):
        store.done |= {job for job in ready(one) if "adapter=foura" not in job or "seed=1000" in job}
    assert [cell.decided for cell in one.cells] == [True, False]
    assert sum(bool(job.undecided) for job in one.jobs()) == 2 + 5
    assert one.most() == (20, 10)


def test_a_rate_that_diverged_is_out_and_a_cell_without_any_is_not_compared() -> None:
    store = Store({"1e-4": (0.2, 0.2, 0.2), "1e-3": (0.9, None, 0.9), "1e-2": (None,) * 3, "1e-1": (None,) * 3})
    one = tuning(store)
    assert run_all(one, store) == [8, 5]  # after the first round 1e-4 is the only one that is left
    assert one.cells[0].chosen == ("adapter.lr=1e-4",)
    lost = Store(dict.fromkeys(LORA, (None,) * 3))
    one = tuning(lost)
    assert run_all(one, lost) == [8]
    assert [job for job in one.jobs() if UNTESTED not in job.overrides] == []
    assert "every value of adapter.lr diverged, so that it is left out of the comparison" in one.said(one.cells[0])


def test_two_finalists_that_diverge_leave_the_next_best() -> None:
    store = Store({**LORA, "1e-3": (0.6, 0.8, None), "1e-2": (0.7, 0.6, None)})
    one = tuning(store)
    run_all(one, store)
    assert one.cells[0].chosen == ("adapter.lr=1e-4",) and one.cells[0].seeds == 2


def test_each_adapter_has_its_own_rate_and_its_name_is_what_varies() -> None:
    store = Store(LORA)
    one = tuning(store, product(adapters=("lora", "foura")))
    run_all(one, store)
    assert one.said(one.cells[1]).startswith("tuned adapter=foura: adapter.lr=1e-2")
    assert len(ready(one)) == sum(one.most()) == 30


def test_two_texts_of_one_number_are_one_value() -> None:
    one = tuning(Store(LORA), product(rates=("1e-3", "0.001", "1e-2")))
    assert one.grid == [("adapter.lr=0.001",), ("adapter.lr=1e-2",)]
    assert one.most() == (2 * 3, 5)


def test_two_keys_are_tuned_together() -> None:
    jobs = [[*job, f"adapter.dropout={rate}"] for job in product(rates=("1e-3", "1e-2")) for rate in ("0.0", "0.1")]
    scores = {"1e-3": (0.1, 0.1, 0.1), "1e-2": (0.2, 0.2, 0.2)}
    store = Store(scores)
    one = Tuning(jobs, ["adapter.lr", "adapter.dropout"], [1000, 1001, 1002], 0, store)
    run_all(one, store)
    assert one.cells[0].chosen == ("adapter.lr=1e-2", "adapter.dropout=0.0")
    assert one.beyond(one.cells[0].chosen) == {"adapter.lr": 0.1}


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        (product(rates=("1e-3",)), "the sweep has the one value 1e-3: write adapter.lr=A,B,C"),
        (product(rates=("1e-3", "0.001")), "the sweep has the one value 0.001"),
        ([["adapter=lora", "seed=0"]], "the sweep has no value of its own"),
        (product(seeds=(0, 1, 1000)), "seed 1000 is both in tuning_seeds and in the comparison"),
        (product(seeds=(0,)), r"takes 4 runs of each adapter and condition, more than 2 times the 1 .*seed=range\(2\)"),
    ],
)
def test_a_grid_that_tunes_nothing_or_too_much_is_refused(jobs, said) -> None:
    with pytest.raises(UserError, match=said):
        tuning(Store(LORA), jobs)


def test_a_sweep_without_seeds_is_compared_at_the_configs() -> None:
    jobs = [[text for text in job if "seed" not in text] for job in product(rates=("1e-3", "1e-2"), seeds=(0,))]
    with pytest.raises(UserError, match="seed 1000 is both"):
        Tuning(jobs, ["adapter.lr"], [1000], 1000, Store(LORA))
    assert Tuning(jobs, ["adapter.lr"], [1000], 0, Store(LORA)).most() == (2, 1)


def test_a_value_is_judged_by_the_selected_epoch_on_validation_data(monkeypatch) -> None:
    """The best epoch's 0.7, and not the last one's or the test's; a diverged run has a result without a value."""
    found = {"best/acc": 0.7, "final/acc": 0.6, "test/acc": 0.9, "best/loss": 0.1}
    statuses = {
        "finished": {"state": "finished", "curve": "acc", "metrics": found},
        "diverged": {"state": "diverged", "curve": "acc", "metrics": found},
        "odd": {"state": "finished", "metrics": found},
    }
    monkeypatch.setattr(sweeper, "job_folder", lambda config, job: job[0])
    monkeypatch.setattr(sweeper, "run_status", lambda folder: statuses[folder])
    results = sweeper.Results(None)
    monkeypatch.setattr(results, "done", lambda job: True)
    assert results(("finished",)) == Result("acc", 0.7) and results(("odd",)) is None
    assert results(("diverged",)).value is None
    monkeypatch.setattr(results, "done", lambda job: False)
    assert results(("finished",)) is None
