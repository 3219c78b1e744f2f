"""torch.compile of whole models: no graph breaks, one fold per width, equal to eager, few recompilations."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from foura import FouraConfig
from foura.adapter.gate import GATE_SCOPES
from foura.adapter.gate_forms import GATE_FORMS
from tests.helpers.tiny_models import tiny_llama

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GATES = {"none": {}, "token": {"gate": "adaptive", "gate_scope": "token"}, "frozen": {"gate": "frozen"}}


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n, m) for n, m in ((24, 32), (32, 24)) * 3])
        self.conv, self.embed = nn.Conv1d(24, 24, 3, padding=1), nn.Embedding(5, 24)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = x + self.embed(ids)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.conv(x.transpose(1, 2))


def adapted(**fields) -> nn.Module:
    torch.manual_seed(0)
    targets = r"layers\.\d|conv|embed"
    return get_peft_model(
        Blocks(), FouraConfig(r=4, foura_alpha=3, target_modules=targets, init_weights=False, **fields)
    )


def inputs(rows: int = 3, tokens: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, tokens, 24), torch.randint(0, 5, (rows, tokens))


def graphs_of(model: nn.Module, *args) -> tuple[list[torch.fx.Graph], Callable]:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(*args)
    return [module.graph for module in counter.graphs], compiled


def folds(graph: torch.fx.Graph) -> int:
    return sum("foura.fold" in str(node.target) for node in graph.nodes)


FAST = {("dct", "none"), ("dct", "token"), ("dct", "sequence"), ("dft", "token"), ("random", "frozen")}
PAIRS = [
    pytest.param(*pair, marks=[] if pair in FAST else pytest.mark.slow)
    for pair in itertools.product(["dct", "dft", "identity", "random"], [*GATES, "sequence"])
]


@pytest.mark.parametrize(("transform", "gate"), PAIRS)
def test_compiled_is_eager_and_folds_each_width_once(transform, gate) -> None:
    fields = GATES.get(gate, {"gate": "adaptive", "gate_scope": "sequence"})
    model, args = adapted(transform=transform, **fields), inputs()
    eager = copy.deepcopy(model)
    (graph,), compiled = graphs_of(model, *args)
    assert folds(graph) == 4 + 2 + 1  # two widths on each side; the convolution folds alone, as does the embedding's B
    one, other = compiled(*args), eager(*args)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    one.square().sum().backward()
    other.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and "bias_out" not in name:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert not any(layer.traced for layer in model.base_model.model.layers)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*args), other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", GATE_FORMS)
@pytest.mark.parametrize("scope", GATE_SCOPES)
def test_every_form_of_gate_is_one_graph_with_the_price_in_its_gradient(form, scope) -> None:
    model, args = adapted(gate="adaptive", gate_scope=scope, gate_form=form, gate_sparsity=2.0), inputs()
    eager = copy.deepcopy(model)
    _, compiled = graphs_of(model, *args)
    found = []
    for run in (compiled, eager):
        torch.manual_seed(1)  # hard_concrete draws
        out = run(*args)
        out.square().mean().backward()
        found.append(out)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    for (name, p), q in zip(model.named_parameters(), eager.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_llama_is_one_graph_that_folds_each_width_once() -> None:
    config = FouraConfig(r=2, target_modules=TARGETS, init_weights=False, gate="adaptive", gate_scope="token")
    model = get_peft_model(tiny_llama(), config)
    ids = torch.randint(0, 64, (2, 9))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    torch.testing.assert_close(compiled(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    # inputs of 32 and 48 features, outputs of 32, 16 (keys and values) and 48
    assert sum(folds(module.graph) for module in counter.graphs) == 2 + 3


def test_other_batches_and_lengths_do_not_compile_again() -> None:
    model = adapted(gate="adaptive", gate_scope="token")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for rows, tokens in ((3, 7), (4, 9), (5, 11), (6, 3), (2, 8)):
        args = inputs(rows, tokens)
        torch.testing.assert_close(compiled(*args), model(*args), rtol=1e-5, atol=1e-5)
    assert counter.frame_count <= 3


def test_a_compiled_model_follows_what_is_done_to_its_adapter(tmp_path) -> None:
    import foura

    model, args = adapted(), inputs()
    other = adapted()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5) if parameter.requires_grad else None
    other.save_pretrained(str(tmp_path))
    _, compiled = graphs_of(model, *args)
    first = compiled(*args).detach()
    foura.hotswap_adapter(model, tmp_path)
    torch.testing.assert_close(compiled(*args), other(*args), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(compiled(*args), first)
    model.base_model.model.layers[0].set_scale("default", 3.0)
    torch.testing.assert_close(compiled(*args), model(*args), rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(compiled(*args), model(*args), rtol=1e-5, atol=1e-5)
    wanted = model(*args)
    model.merge_adapter()
    torch.testing.assert_close(compiled(*args), wanted, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(compiled(*args), wanted, rtol=1e-4, atol=1e-5)


def test_a_layer_compiled_by_itself_folds_alone() -> None:
    layer, (x, _) = adapted(transform="dft").base_model.model.layers[0], inputs()
    (graph,), compiled = graphs_of(layer, x)
    assert folds(graph) == 2
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
