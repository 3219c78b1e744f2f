"""backbone.compile: training steps run compiled, and nothing else does."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from foura.errors import UserError
from foura.run.compiling import compiled


class Model(nn.Module):  # torch 2.11 does not compile modules of torch.nn by themselves
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Task:
    def __init__(self, compiles: bool) -> None:
        self.compiles, self.model = compiles, Model()


@pytest.mark.parametrize("compiles", [True, False])
def test_the_model_runs_compiled_within_the_context_alone(compiles, monkeypatch) -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda call, real=torch.compile: real(call, backend=backend))
    task, x = Task(compiles), torch.ones(2, 3)
    wanted = task.model(x)
    with compiled(task):
        torch.testing.assert_close(task.model(x), wanted)
    assert len(graphs) == int(compiles)
    task.model(torch.ones(5, 3))
    assert len(graphs) == int(compiles)
    assert list(task.model.state_dict()) == ["layers.0.weight", "layers.0.bias"]


def test_a_failure_of_the_compiler_is_a_sentence() -> None:
    task = Task(True)
    with pytest.raises(UserError, match=r"Leave backbone\.compile out"), compiled(task):
        raise BackendCompilerFailed("inductor", RuntimeError("no C++ compiler"), [])
    assert task.model._compiled_call_impl is None


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where torch.compile keeps its code by default, in a folder for temporary files with nothing in it."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    return Path(default_cache_dir())


@pytest.mark.parametrize("made_by", ["another user", "a link"])
def test_compiled_code_that_another_user_put_there_is_not_executed(made_by, cache, tmp_path, monkeypatch) -> None:
    if made_by == "a link":
        (tmp_path / "elsewhere").mkdir()
        cache.symlink_to(tmp_path / "elsewhere")
    else:
        cache.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    said = f"{cache}, from which .* was made by another user.*TORCHINDUCTOR_CACHE_DIR"
    with pytest.raises(UserError, match=said), compiled(Task(True)):
        pytest.fail("it would run compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    with compiled(Task(True)):
        pass


def test_the_folder_of_compiled_code_is_made_for_the_user_alone(cache) -> None:
    assert cache.name.startswith("torchinductor_")
    for _ in range(2):
        with compiled(Task(True)):
            assert cache.stat().st_mode & 0o777 == 0o700
