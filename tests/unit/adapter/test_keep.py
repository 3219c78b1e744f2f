"""Kept factors follow every change of what they were folded from, and every copy of the model."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from foura import FouraConfig
from foura.adapter.keep import FoldingLayer


def adapted(base: nn.Module | None = None, **fields) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 10)) if base is None else base
    settings = {"r": 4, "foura_alpha": 3, "target_modules": ["0", "2"], "init_weights": False, **fields}
    return get_peft_model(base.double(), FouraConfig(**settings), autocast_adapter_dtype=False)


def layers(model: nn.Module) -> list[FoldingLayer]:
    return [module for module in model.modules() if isinstance(module, FoldingLayer)]


def fresh(model: nn.Module, x: Tensor) -> Tensor:
    """The output from the weights as they are."""
    one, two = layers(model)

    def out(layer: FoldingLayer, x: Tensor) -> Tensor:
        return layer.base_layer(x) + sum(x @ layer.get_delta_weight(name).T for name in layer.names())

    return out(two, torch.tanh(out(one, x)))


def assert_fresh(model: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(model(x), fresh(model, x), rtol=0, atol=1e-11)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 10, dtype=torch.float64)


def factors(model: nn.Module) -> list[Tensor]:
    return [kept.factor for layer in layers(model) for kept in layer._kept["default"].values()]


@torch.no_grad()
def in_place(model: nn.Module) -> None:
    layers(model)[0].foura_A["default"].mul_(0.5)


def replaced_data(model: nn.Module) -> None:
    for layer in layers(model):
        layer.foura_B["default"].data = layer.foura_B["default"].data * 2


def replaced_parameter(model: nn.Module) -> None:
    layers(model)[1].foura_A["default"] = nn.Parameter(torch.randn(4, 12, dtype=torch.float64))


def through_data_and_mode(model: nn.Module) -> None:
    layers(model)[0].foura_A["default"].data.mul_(3.0)
    model.train(model.training)


def through_data_and_forgotten(model: nn.Module) -> None:
    for layer in layers(model):
        layer.foura_A["default"].data.mul_(3.0)
        layer.forget_factors()


def loaded(model: nn.Module) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def assigned(model: nn.Module) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()}, assign=True)


def scaled(model: nn.Module) -> None:
    layers(model)[0].set_scale("default", 2.5)


def another_adapter(model: nn.Module) -> None:
    if "second" not in model.peft_config:
        model.add_adapter("second", FouraConfig(r=2, transform="dft", target_modules=["0", "2"], init_weights=False))
    model.double().base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change",
    [in_place, replaced_data, replaced_parameter, through_data_and_mode, through_data_and_forgotten, loaded, assigned,
     scaled, another_adapter],
)  # fmt: skip
def test_factors_follow_every_change(change, training, x) -> None:
    model = adapted().train(training)
    with torch.set_grad_enabled(training):
        assert_fresh(model, x)
        kept = factors(model)
        model(x)
        assert all(one is other for one, other in zip(factors(model), kept, strict=True))
        before = model(x)
        change(model)
        assert_fresh(model, x)
        assert not torch.allclose(model(x), before)
        change(model)
        assert_fresh(model, x)


def test_a_mask_that_changes_is_seen(x) -> None:
    model = adapted(gate="frozen")
    assert_fresh(model, x)
    layers(model)[0].foura_gate_mask["default"][1] = False
    assert_fresh(model, x)
    layers(model)[1].foura_gate_mask["default"] = torch.tensor([True, False, True, False])
    assert_fresh(model, x)


# -- training that autograd does not see


class SGDThroughData(torch.optim.SGD):
    """Writes to `.data`, as several optimizers outside torch do."""

    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=-group["lr"])


def by_optimizer(model: nn.Module, parameters: list[Tensor]) -> None:
    SGDThroughData(parameters, lr=0.1).step()


def by_hand_cleared(model: nn.Module, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.data.sub_(0.1 * parameter.grad)
    model.zero_grad()


def by_hand_zeroed(model: nn.Module, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.data.sub_(0.1 * parameter.grad)
        parameter.grad.data.zero_()


def by_hand(model: nn.Module, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.data.sub_(0.1 * parameter.grad)


@pytest.mark.parametrize("update", [by_optimizer, by_hand_cleared, by_hand_zeroed, by_hand])
def test_updates_through_data_are_seen_on_the_cpu(update, x) -> None:
    model = adapted().train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in range(3):
        before = model(x)
        before.square().sum().backward()
        update(model, parameters)
        assert_fresh(model, x)
        assert not torch.allclose(model(x), before)


@pytest.mark.parametrize("update", [by_optimizer, by_hand_cleared])
def test_updates_through_data_are_seen_where_values_are_not_compared(update, x) -> None:
    """On a GPU, comparing would wait for the device."""
    model = adapted().train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in range(3):
        loss = model(x).square().sum()
        for layer in layers(model):
            for kept in layer._kept["default"].values():
                kept.fold.stacked = None
        loss.backward()
        update(model, parameters)
        assert_fresh(model, x)


def test_accumulated_gradients_keep_factors_where_values_are_not_compared(x) -> None:
    model = adapted().train()
    loss = model(x).square().sum()
    for layer in layers(model):
        for kept in layer._kept["default"].values():
            kept.fold.stacked = None
    kept = factors(model)
    loss.backward()
    model.train()
    model(x)
    assert all(one is other for one, other in zip(factors(model), kept, strict=True))
    model.eval()
    assert not any(layer._kept for layer in layers(model))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    ],
    ids=["sgd", "foreach", "fused"],
)
def test_torchs_optimizers_move_the_counter_themselves(optimizer, x) -> None:
    model = adapted()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer(parameters)
    for _ in range(2):
        model(x).square().sum().backward()
        versions = [parameter._version for parameter in parameters]
        optimizer.step()
        assert all(parameter._version > was for parameter, was in zip(parameters, versions, strict=True))
        assert_fresh(model, x)


def test_gradients_taken_by_hand(x) -> None:
    model = adapted().train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in range(2):
        gradients = torch.autograd.grad(model(x).square().sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data.sub_(0.1 * gradient)
        assert_fresh(model, x)


# -- copies, devices, dtypes, threads


def test_copies_fold_for_themselves(x) -> None:
    model = adapted()
    model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert layers(other)[0].folds is layers(other)[1].folds is not layers(model)[0].folds
        assert layers(other)[0].folds.layers() == layers(other)
        assert torch.equal(other(x), model(x))
        in_place(other)
        assert_fresh(other, x)
        assert_fresh(model, x)
    alone = copy.deepcopy(layers(model)[0])
    assert alone.folds.layers() == [alone]
    torch.testing.assert_close(alone(x), layers(model)[0](x))


def test_layers_fold_together_however_they_are_injected(x) -> None:
    from peft import inject_adapter_in_model

    base = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)).double()
    config = FouraConfig(r=2, target_modules=["0", "1"], init_weights=False)
    model = inject_adapter_in_model(config, base)
    model(x)
    one, two = layers(model)
    assert one.folds is two.folds and one._kept["default"]["down"].fold is two._kept["default"]["down"].fold


def test_a_model_that_is_dropped_is_freed() -> None:
    """The shared `Folds` does not keep layers alive."""
    model = adapted()
    model(torch.randn(2, 10, dtype=torch.float64)).sum().backward()
    weight = weakref.ref(layers(model)[0].base_layer.weight)
    del model
    gc.collect()
    assert weight() is None


def test_dtypes_and_inference_mode(x) -> None:
    model = adapted().eval()
    with torch.inference_mode():
        model(x)
    out = model(x)
    out.sum().backward()
    assert_fresh(model, x)
    torch.testing.assert_close(copy.deepcopy(model).float()(x.float()), out.float(), rtol=1e-4, atol=1e-4)
    model.float().double()
    assert_fresh(model, x)
    with torch.inference_mode():
        born = adapted()
        torch.testing.assert_close(born(x), fresh(born, x))


def test_a_parameter_given_by_functional_call_is_used_and_not_kept(x) -> None:
    model = adapted()
    model(x)
    double = {name: p.detach() * 2 for name, p in model.named_parameters() if "foura_" in name}
    out = torch.func.functional_call(model, double, (x,))
    twin = copy.deepcopy(model)
    twin.load_state_dict(double, strict=False)
    torch.testing.assert_close(out, fresh(twin, x), rtol=0, atol=1e-11)
    assert_fresh(model, x)


def test_two_layers_that_share_their_parameters(x) -> None:
    model = adapted(nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 10)))
    one, two = layers(model)
    two.foura_A["default"], two.foura_B["default"] = one.foura_A["default"], one.foura_B["default"]
    two.adopt()
    out = model(x)
    torch.testing.assert_close(out, fresh(model, x), rtol=0, atol=1e-11)
    out.square().sum().backward()
    gradient = one.foura_A["default"].grad.clone()
    model.zero_grad()
    fresh(model, x).square().sum().backward()
    torch.testing.assert_close(gradient, one.foura_A["default"].grad, rtol=1e-9, atol=1e-11)


def test_threads_with_models_of_their_own_and_with_one(x) -> None:
    models = [adapted(), adapted(transform="dft")]
    wanted = [fresh(model, x).detach() for model in models]
    failures = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                model = models[(number + turn) % 2]
                if turn % 7 == 0:
                    for layer in layers(model):
                        layer.forget_factors()
                with torch.set_grad_enabled(turn % 3 == 0):
                    torch.testing.assert_close(model(x).detach(), wanted[(number + turn) % 2], rtol=0, atol=1e-10)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_unloaded_model_has_nothing_of_ours_left(x) -> None:
    model = adapted()
    merged = model.merge_and_unload()
    assert not merged._forward_pre_hooks and not merged._forward_hooks
    assert b"foura" not in pickle.dumps(merged)
