"""Where a run starts: every state that an earlier process can have left."""

import itertools
from unittest.mock import Mock

import pytest
import torch

from foura.errors import UserError
from foura.run import resume
from foura.tracking.status import RunStatus, read_json, write_json

KEY = "0123456789abcdef"


def left(folder, state: str | None, key: str = KEY, **fields) -> RunStatus:
    """The status of a run in a folder that an earlier process left in this state, with a checkpoint."""
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint.pt").write_bytes(b"a checkpoint")
    if state is not None:
        write_json(folder / "status.json", {"state": state, "key": key, "run_id": "r", **fields})
    return RunStatus(folder)


STATES = ("running", "interrupted", "failed", "diverged", "finished", None, "nonsense")


@pytest.mark.parametrize(("state", "same", "force"), itertools.product(STATES, (True, False), (True, False)))
def test_a_checkpoint_is_kept_for_the_same_experiment_without_a_result(state, same, force, tmp_path) -> None:
    with left(tmp_path, state, KEY if same else "another") as status:
        resume.clear(status, KEY, force)
    kept = (tmp_path / "checkpoint.pt").exists()
    assert kept == (state in ("running", "interrupted", "failed") and same and not force)


@pytest.mark.parametrize(("state", "again"), itertools.product(STATES, (True, False)))
def test_a_result_is_not_made_twice_unless_asked_for(state, again, tmp_path) -> None:
    with left(tmp_path, state) as status:
        assert resume.needed(status, KEY, again) == (again or state not in ("finished", "diverged"))
        assert resume.needed(status, "another", again)


def test_a_run_that_is_killed_at_one_place_is_given_up_once_and_keeps_its_checkpoint(tmp_path) -> None:
    with left(tmp_path, "running") as status:
        kept = status.fields["kept"]
    write_json(tmp_path / "status.json", {"state": "running", "key": KEY, "run_id": "r", "kept": kept, "killed": 1})
    with pytest.raises(UserError, match="was killed 2 times before it got any further"), RunStatus(tmp_path) as status:
        resume.needed(status, KEY, again=False)
    given_up = read_json(tmp_path / "status.json")
    assert given_up["state"] == "failed" and given_up["key"] == KEY and given_up["run_id"] == "r"
    with RunStatus(tmp_path) as status:  # the same command once more
        assert resume.needed(status, KEY, again=False)
        resume.clear(status, KEY, force=False)
    assert (tmp_path / "checkpoint.pt").exists()


def test_a_new_checkpoint_counts_as_progress(tmp_path) -> None:
    fields = {"kept": [1, 2], "killed": 1}
    with left(tmp_path, "running", **fields) as status:
        assert status.killed == 0


def checkpoint(path, **tensors) -> None:
    state = {f"model.{name}": tensor for name, tensor in tensors.items()}
    callbacks = {"Checkpoint": {"within": {"batches": 0}}}
    torch.save({**{key: {} for key in resume.KEYS}, "epoch": 3, "state_dict": state, "callbacks": callbacks}, path)


@pytest.mark.parametrize(
    ("stage", "expected"), [("there", True), ("lost", True), ("", True), ("hidden", False), ("none", False)]
)
def test_a_run_resumes_unless_a_user_has_deleted_it(stage, expected, tmp_path) -> None:
    path, say = tmp_path / "checkpoint.pt", Mock()
    checkpoint(path, a=torch.ones(2))
    assert resume.resumes(path, lambda: {"a": torch.zeros(2)}, lambda: stage, say) == expected == path.exists()
    say.assert_not_called()


def test_a_checkpoint_of_another_model_is_said_and_deleted(tmp_path) -> None:
    path, said = tmp_path / "checkpoint.pt", []
    checkpoint(path, a=torch.ones(2))
    assert not resume.resumes(path, lambda: {"a": torch.ones(3)}, lambda: "there", said.append)
    assert said == ["checkpoint.pt in the run's folder is damaged or of another model: the run starts anew"]
    assert not path.exists()


def test_without_a_checkpoint_neither_model_nor_store_is_asked(tmp_path) -> None:
    ask = Mock(side_effect=AssertionError)
    assert not resume.resumes(tmp_path / "checkpoint.pt", ask, ask, ask)


@pytest.mark.parametrize(("batches", "said"), [(0, "epoch 4"), (7, "batch 7 of epoch 4")])
def test_the_place_of_a_checkpoint_in_words(batches, said, tmp_path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "callbacks": {"Checkpoint{…}": {"within": {"batches": batches}}, "Cost": {}}}, path)
    assert resume.place(path) == said
