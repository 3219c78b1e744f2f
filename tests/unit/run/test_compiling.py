"""backbone.compile: training steps run compiled, and nothing else does."""

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from foura.errors import UserError
from foura.run.compiling import compiled


class Task:
    def __init__(self, compiles: bool) -> None:
        self.compiles, self.model = compiles, nn.Sequential(nn.Linear(3, 3), nn.Tanh())


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
    assert list(task.model.state_dict()) == ["0.weight", "0.bias"]


def test_a_failure_of_the_compiler_is_a_sentence() -> None:
    task = Task(True)
    with pytest.raises(UserError, match=r"Leave backbone\.compile out"), compiled(task):
        raise BackendCompilerFailed("inductor", RuntimeError("no C++ compiler"), [])
    assert task.model._compiled_call_impl is None
