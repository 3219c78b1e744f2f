"""Folding for all layers at once: how much is computed, and that gradients are right whatever takes part in a backward pass."""

import copy
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from foura import FouraConfig
from foura.adapter.fold import Fold
from foura.adapter.transforms import RandomBasis
from tests.reference import foura as textbook

LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRANSFORMS = ("dct", "dft", "identity", "random")
TOKENS = 7  # of a sequence, so that activations and stacked factors differ in their number of rows


def llama(hidden: int, intermediate: int, dtype: torch.dtype = torch.float32, **fields) -> nn.Module:
    """12 layers with 84 adapted linear layers, of two distinct widths on each side."""
    torch.manual_seed(0)
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 12, "vocab_size": 32}
    base = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2)).to(dtype)
    return get_peft_model(
        base, FouraConfig(r=4, target_modules=LLAMA_TARGETS, init_weights=False, gate_scope="token", **fields)
    )


def transform_calls(run: Callable[[], object]) -> int:
    """FFTs, gathers and products with a basis that the profiler sees."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    return sum(is_transform(event.name, event.input_shapes) for event in profiler.events())


def is_transform(name: str, shapes: list) -> bool:
    if name in ("aten::index_select", "aten::gather"):
        return shapes[0][0] != 32  # the embedding's
    if name == "aten::mm":
        return len(set(shapes[1])) == 1 and shapes[0][0] != TOKENS
    return name in ("aten::_fft_r2c", "aten::_fft_c2r", "aten::_fft_c2c")


@pytest.mark.parametrize(
    ("transform", "widths"),
    [("dct", (516, 520)), ("dft", (16, 24)), ("dct", (16, 24)), ("random", (16, 24))],
    ids=["dct by FFT", "dft", "dct by matrix", "random"],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_forward_transforms_each_width_once(transform, widths, training) -> None:
    model = llama(*widths, transform=transform).train(training)
    ids = torch.randint(0, 32, (1, TOKENS))

    def forward() -> Tensor:
        with torch.set_grad_enabled(training):
            return model(input_ids=ids, labels=ids).loss

    assert 4 <= transform_calls(forward) <= 12 * 2 * 2  # two widths on each of two sides
    assert transform_calls(forward) == 0


def test_float32_adapters_that_peft_puts_into_a_half_precision_model_fold_together() -> None:
    model = llama(16, 24, torch.bfloat16).train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    ids = torch.randint(0, 32, (1, TOKENS))
    with torch.autocast("cpu", torch.bfloat16):
        assert 4 <= transform_calls(lambda: model(input_ids=ids, labels=ids).loss.backward()) <= 2 * 12 * 2 * 2


@pytest.mark.parametrize("fields", [{"transform": "dct"}, {"transform": "dft", "gate": "adaptive"}], ids=str)
def test_a_second_micro_batch_folds_nothing_and_a_step_folds_again(fields) -> None:
    model = llama(16, 24, **fields).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = lambda ids: model(input_ids=ids, labels=ids).loss  # noqa: E731
    one, two, three = torch.randint(0, 32, (3, 1, TOKENS))
    loss(one).backward()
    model.train()  # as transformers' Trainer says before every micro-batch
    assert transform_calls(lambda: loss(two)) == 0
    loss(two).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert transform_calls(lambda: loss(three)) > 0


# -- gradients


class Net(nn.Module):
    """Layers of two widths; `skip` leaves one out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n, m) for n, m in ((10, 12), (12, 10), (10, 12), (12, 10), (10, 10))])
        self.skip: set[int] = set()
        self.checkpointed: bool | None = None  # reentrant or not

    def forward(self, x: Tensor, upto: int = 4) -> Tensor:
        for first in range(0, upto, 2):
            block = lambda h, i=first: h + torch.tanh(self.layers[i + 1](torch.tanh(self.layers[i](h))))  # noqa: E731
            if first not in self.skip:
                x = block(x) if self.checkpointed is None else checkpoint(block, x, use_reentrant=self.checkpointed)
        return x


def adapted(transform: str = "dct", **fields) -> nn.Module:
    torch.manual_seed(3)
    config = FouraConfig(
        r=3, foura_alpha=4, transform=transform, target_modules=r"layers\.\d", init_weights=False,
        rank_pattern={"layers.1": 2}, output_splits={"layers.0": 3, "layers.3": 2}, transform_seed=5, **fields,
    )  # fmt: skip
    return get_peft_model(Net().double(), config, autocast_adapter_dtype=False)


def textbook_twin(model: nn.Module, transform: str) -> nn.Module:
    """The same model, each layer as the paper writes it."""
    twin = copy.deepcopy(model)

    def forward(layer, x: Tensor) -> Tensor:
        A, B = layer.foura_A["default"], layer.foura_B["default"]
        splits, scaling = layer.transform["default"].splits, layer.scaling["default"]
        basis = lambda n: RandomBasis.basis(n, 5)  # noqa: E731
        return layer.base_layer(x) + textbook.delta(
            x, A, B, layer.out_features, transform, scaling, splits, basis=basis
        )

    for layer in twin.base_model.model.layers:
        layer.forward = forward.__get__(layer)
    return twin


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters() if "foura_" in name}


def assert_same_gradients(model: nn.Module, twin: nn.Module) -> None:
    for (name, one), other in zip(gradients(model).items(), gradients(twin).values(), strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


every_transform = pytest.mark.parametrize("transform", TRANSFORMS)


def x_of(seed: int = 0) -> Tensor:
    return torch.randn(2, 5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@every_transform
def test_a_step_is_the_textbooks(transform) -> None:
    model = adapted(transform)
    twin = textbook_twin(model, transform)
    for seed in (0, 1):  # the second is accumulated
        out, wanted = model(x_of(seed)), twin(x_of(seed))
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-11)
        out.square().sum().backward()
        wanted.square().sum().backward()
    assert_same_gradients(model, twin)
    assert gradients(model)["base_model.model.layers.4.foura_A.default"] is None  # never called


@every_transform
def test_layers_left_out_of_a_forward_get_no_gradient(transform) -> None:
    model = adapted(transform)
    twin = textbook_twin(model, transform)
    model(x_of())  # all of them are folded
    for net in (model, twin):
        net.base_model.model.skip = {2}
        net(x_of()).square().sum().backward()
        assert net.base_model.model.layers[2].foura_A["default"].grad is None
    assert_same_gradients(model, twin)
    for net in (model, twin):
        net.base_model.model.skip = {0}
        net(x_of(1)).square().sum().backward()
    assert_same_gradients(model, twin)


@every_transform
def test_two_losses_one_after_the_other_and_a_graph_that_is_kept(transform) -> None:
    model = adapted(transform)
    twin = textbook_twin(model, transform)
    for net in (model, twin):
        half, whole = net(x_of(), upto=2), net(x_of(1))
        half.square().sum().backward(retain_graph=True)
        whole.cos().sum().backward()
        half.sum().backward()
    assert_same_gradients(model, twin)


@every_transform
def test_gradients_of_one_layer_alone(transform) -> None:
    model = adapted(transform)
    results = []
    for net in (model, textbook_twin(model, transform)):
        layers, loss = net.base_model.model.layers, net(x_of()).square().sum()
        wanted = [layers[1].foura_B["default"], layers[2].foura_A["default"]]
        results.append(torch.autograd.grad(loss, wanted))
        assert all(p.grad is None for p in net.parameters())
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@every_transform
def test_parameters_that_are_not_trained_are_left_alone(transform) -> None:
    model = adapted(transform)
    model(x_of()).sum()  # folded while all are trained
    model.base_model.model.layers[0].foura_A["default"].requires_grad_(False)
    model.base_model.model.layers[3].foura_B["default"].requires_grad_(False)
    twin = textbook_twin(model, transform)
    for net in (model, twin):
        net(x_of()).square().sum().backward()
    assert_same_gradients(model, twin)
    model.requires_grad_(False)
    assert not model(x_of()).requires_grad


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_fold_once_and_have_the_same_gradients(reentrant, monkeypatch) -> None:
    model = adapted()
    twin = textbook_twin(model, "dct")
    twin(x_of()).square().sum().backward()
    model.base_model.model.checkpointed = reentrant
    model.base_model.model.layers[4](x_of())  # some layers of the group are not checkpointed
    loss, folds, fold = model(x_of().requires_grad_()).square().sum(), [], Fold.__call__
    monkeypatch.setattr(Fold, "__call__", lambda self, sources: folds.append(self) or fold(self, sources))
    loss.backward()
    assert folds == []  # nothing is folded again, neither in the recomputation nor for the adjoint
    assert_same_gradients(model, twin)
    model(x_of())
    assert len(folds) <= 4  # factors that reentrant blocks have used without gradients


def test_a_gradient_hook_sees_its_own_gradient_alone() -> None:
    model = adapted()
    seen = []
    parameter = model.base_model.model.layers[2].foura_A["default"]
    parameter.register_hook(lambda grad: seen.append(grad) or grad * 2)
    twin = textbook_twin(model, "dct")
    for net in (model, twin):
        net.base_model.model.skip = {2}
        net(x_of()).sum().backward()
    assert seen == []
    for net in (model, twin):
        net.base_model.model.skip = set()
        net(x_of()).sum().backward()
    assert len(seen) == 1 and torch.equal(parameter.grad, 2 * seen[0])
