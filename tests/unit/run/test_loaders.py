"""The order in which a run sees its data: drawn by its seed for training, fixed for evaluations."""

from collections import Counter

from foura.data.run_data import RunData
from foura.run.loop import Loaders
from tests.helpers.config import composed

DATA = RunData(
    train=list(range(5)),
    train_eval=[0, 1, 2],
    validation=[10, 11, 12, 13, 14],
    test=[20, 21, 22],
    sizes={},
    fingerprint="",
    collate=list,
)


def loaders(*overrides: str) -> Loaders:
    return Loaders(DATA, composed("dataset.batch_size=2", "dataset.eval_batch_size=2", *overrides))


def test_an_epoch_has_every_item_as_often_as_it_is_repeated() -> None:
    epoch = list(loaders("dataset.repeats=3").train)
    assert [len(batch) for batch in epoch] == [2] * 7 + [1]
    assert Counter(item for batch in epoch for item in batch) == dict.fromkeys(range(5), 3)


def test_the_order_is_that_of_the_seed_and_new_in_every_epoch() -> None:
    def epochs(*overrides: str) -> list[list[list[int]]]:
        train = loaders("dataset.repeats=4", *overrides).train
        return [list(train), list(train)]

    first, second = epochs("seed=0", "adapter=lora")
    assert first != second
    assert epochs("seed=0", "adapter=foura") == [first, second] != epochs("seed=1", "adapter=lora")
    assert epochs("trainer.overfit_batches=2")[0][:3] == [[0, 1], [2, 3], [4, 0]]


def test_evaluations_are_of_their_data_in_its_order() -> None:
    some = loaders()
    assert [list(loader) for loader in some.evaluation()] == [[[0, 1], [2]], [[10, 11], [12, 13], [14]]]
    assert list(some.test()) == [[20, 21], [22]]
