"""Keys that go to Lightning's Trainer, and seeds: a sentence for what it would refuse with a traceback."""

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from foura import config, mistakes
from foura.errors import UserError
from foura.run.loop import trainer_of
from tests.helpers.config import composed

# what Lightning's Trainer takes, and what it refuses with a traceback of its own (or takes for something else)
TRAINER: dict[str, tuple[list[str], list[str]]] = {
    "max_time": (
        ["null", "'00:01:30:00'", "'100:00:00:00'", "{hours:1}", "{days:1,minutes:30}"],
        ["1h", "90", "'1:30:00'", "{hour:1}", "{}"],
    ),
    "limit_train_batches": (
        ["null", "0", "7", "0.5", "1.0", "7.0"],
        ["1.5", "-1", "-0.5", "abc", "nan", "[1]", "true"],
    ),
    "limit_val_batches": (["3"], ["1.5"]),
    "limit_test_batches": (["0.25"], ["all"]),
    "overfit_batches": (["0", "0.5", "2"], ["1.5", "null", "x"]),
    "fast_dev_run": (["true", "false", "3", "0"], ["-1", "1.5", "x", "null"]),
    "profiler": (["null", "simple", "advanced", "pytorch"], ["foo", "''"]),
    "deterministic": (["null", "true", "false", "warn"], ["yes_please", "2"]),
    "max_steps": (["-1", "0", "5"], ["-2", "x", "1.5"]),
    "min_steps": (["null", "3"], ["-3", "x"]),
    "min_epochs": (["null", "0", "3"], ["-1"]),
    "check_val_every_n_epoch": (["1", "5"], ["0", "null", "1.5"]),
    "gradient_clip_val": (["null", "0", "0.5", "1"], ["x", "nan", "-1"]),
    "max_epochs": (["null", "1"], ["0", "-1", "1.5"]),
    "accumulate_grad_batches": (["1", "4"], ["0", "{0:2}"]),
}


@pytest.mark.parametrize("key", TRAINER)
def test_the_trainer_gets_what_lightning_accepts_and_nothing_else(key, tmp_path) -> None:
    accepted, refused = TRAINER[key]
    for value in accepted:
        cfg = composed(f"trainer.{key}={value}")
        config.check(cfg)
        trainer_of(cfg, tmp_path, [])
    for value in refused:
        with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as said:
            config.check(composed(f"trainer.{key}={value}"))
        told = str(said.value) if isinstance(said.value, UserError) else mistakes.explain(said.value)
        assert told.startswith(f"trainer.{key}") and "\n" not in told


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=4294967295", ""),
        ("seed=4294967296", "seed must be at least 0 and below 4294967296, got 4294967296"),
        ("dataset.split_seed=4294967296", "dataset.split_seed must be at least 0 and below 4294967296"),
        ("adapter.transform_seed=9223372036854775808", "below 9223372036854775808"),
    ],
)
def test_a_seed_is_one_that_every_generator_takes(override, said) -> None:
    if not said:
        config.check(composed(override))
        return
    with pytest.raises(UserError) as refused:
        config.check(composed(override))
    assert said in str(refused.value)
