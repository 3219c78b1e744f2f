"""Replicas of nn.DataParallel, whose weights are attributes and not parameters, are the model; so transformers' Trainer trains
on several GPUs when it is started as one process.
"""

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from foura import FouraConfig

KINDS = {
    "plain": {},
    "dft": {"transform": "dft"},
    "gated": {"gate": "adaptive"},
    "frozen": {"gate": "frozen"},
    "dropout of nothing": {"foura_dropout": 1e-9},
}


def adapted(**fields) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 10, bias=False))
    settings = {"r": 4, "foura_alpha": 3, "target_modules": ["0", "2"], "init_weights": False, **fields}
    return get_peft_model(base.double(), FouraConfig(**settings), autocast_adapter_dtype=False)


def replicated(model: nn.Module) -> nn.Module:
    """What torch.nn.parallel.replicate makes, which takes GPUs alone: shallow copies with tensors in place of parameters."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else copies[child]
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.clone() if parameter.requires_grad else parameter.detach())
    return copies[model]


def step(model: nn.Module, run: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    inputs = x.clone().requires_grad_()
    out = run(inputs)
    out.square().sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    return [out.detach(), inputs.grad, *grads]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_replica_is_the_models(kind, training) -> None:
    model, x = adapted(**KINDS[kind]).train(training), torch.randn(3, 5, 10, dtype=torch.float64)
    wanted = step(model, model, x)
    for _ in range(2):
        torch.testing.assert_close(step(model, replicated(model), x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(replicated(model)(x), wanted[0])
        for parameter in model.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(step(model, replicated(model), x), step(model, model, x))
