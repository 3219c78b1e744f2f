"""Every form of the adaptive gate: the textbook's numbers, scopes, precision, saving, freezing; and the price of open ranks."""

import copy
import json
import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import foura
from foura import FouraConfig
from foura.adapter.freeze import foura_layers, gate_statistics, open_counts, spread_of
from foura.adapter.gate import GATE_SCOPES, Gate
from foura.adapter.gate_forms import GATE_FORMS, HardConcreteGate
from foura.adapter.gates import GATES
from tests.reference import foura as textbook

every_form = pytest.mark.parametrize("form", GATE_FORMS)
every_scope = pytest.mark.parametrize("scope", GATE_SCOPES)
NEW = [form for form in GATE_FORMS if form != "entropy"]


def gate_of(form: str, scope: str, rank: int = 6, price: float = 0.0) -> Gate:
    """A gate whose scores are far from equal."""
    torch.manual_seed(3)
    config = FouraConfig(gate="adaptive", gate_scope=scope, gate_form=form, gate_sparsity=price)
    gate = GATES["adaptive"].make(rank, config).double()
    with torch.no_grad():
        for parameter in gate.parameters():
            nn.init.normal_(parameter, std=1.5)
    return gate


def weights(gate: Gate) -> tuple[Tensor, ...]:
    return gate.weight_in, gate.bias_in, gate.weight_out, gate.bias_out


def coordinates(*shape: int) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(*shape, dtype=torch.float64)


def wrapped(form: str, scope: str = "token", **fields) -> PeftModel:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 7)).double()
    settings = {"r": 4, "target_modules": ["0", "2"], "init_weights": False, "gate": "adaptive", **fields}
    config = FouraConfig(gate_scope=scope, gate_form=form, **settings)
    return get_peft_model(base, config, autocast_adapter_dtype=False)


# -- the forms


@pytest.mark.parametrize("form", NEW)
@every_scope
def test_a_form_is_the_textbook(form, scope) -> None:
    gate, u = gate_of(form, scope).eval(), coordinates(3, 5, 6)
    wanted = textbook.form_gate(form, scope, u, *weights(gate)).detach()
    assert 0.2 < float((wanted > 0.5).double().mean()) < 0.95  # some open, some closed
    torch.testing.assert_close(gate(u), wanted, rtol=0, atol=1e-10)


@every_form
@every_scope
def test_shapes_and_leading_axes(form, scope) -> None:
    gate, u = gate_of(form, scope).eval(), coordinates(2, 3, 4, 6)
    out = gate(u)
    assert out.shape == ((2, 3, 4, 6) if scope == "token" else (2, 1, 1, 6))
    torch.testing.assert_close(out.flatten(1, -2), gate(u.flatten(1, -2)), rtol=0, atol=1e-12)
    torch.testing.assert_close(gate(u[:, 0, 0]), gate(u[:, :1, 0])[:, 0], rtol=0, atol=1e-12)  # samples of one token
    assert bool((out >= 0).all() and (out <= 1).all())


@every_form
@every_scope
def test_a_gate_starts_open(form, scope) -> None:
    config = FouraConfig(gate="adaptive", gate_scope=scope, gate_form=form)
    means = [
        float(GATES["adaptive"].make(rank, config).eval()(torch.randn(8, 20, rank)).mean()) for rank in (4, 16, 64)
    ]
    assert min(means) > 0.8, means


@every_form
def test_a_token_gate_is_causal_and_a_sequence_gate_is_not(form) -> None:
    u = coordinates(2, 6, 6)
    later = u.clone()
    later[:, 4:] = coordinates(2, 2, 6) * 3
    token, sequence = gate_of(form, "token").eval(), gate_of(form, "sequence").eval()
    assert torch.equal(token(u)[:, :4], token(later)[:, :4]) and not torch.equal(token(u)[:, 4:], token(later)[:, 4:])
    if form != "hard":  # whose few bits may be the same
        assert not torch.allclose(sequence(u), sequence(later))


@every_form
def test_a_sequence_gate_depends_neither_on_padding_nor_on_repetition(form) -> None:
    gate, u = gate_of(form, "sequence").eval(), coordinates(3, 5, 6)
    gate.padding_mask = torch.arange(9)[None] < torch.tensor([[5], [5], [0]])  # a sample of padding alone stays finite
    long = torch.cat([u, 100 * coordinates(3, 4, 6)], dim=1)
    found = gate(long)
    gate.padding_mask = None
    torch.testing.assert_close(found[:2], gate(u)[:2], rtol=0, atol=1e-12)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(gate(u.repeat(1, 3, 1)), gate(u), rtol=0, atol=1e-12)


@every_form
@every_scope
@pytest.mark.parametrize("autocast", [False, True])
def test_a_gate_is_computed_in_float32(form, scope, autocast) -> None:
    gate, u = gate_of(form, scope).float().eval(), coordinates(3, 5, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = gate(u)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, gate(u.float()).bfloat16())


@every_form
@every_scope
def test_gradients_are_the_differences(form, scope) -> None:
    """Of every parameter and of u, but for the hard gate's, whose are the sigmoid's by definition."""
    gate, u = gate_of(form, scope).eval(), coordinates(2, 4, 6).requires_grad_()
    soft = gate_of("sigmoid", scope).eval()

    def value(u: Tensor, *parameters: Tensor) -> Tensor:
        names = [name for name, _ in gate.named_parameters()]
        return torch.func.functional_call(gate, dict(zip(names, parameters, strict=True)), (u,))

    if form == "hard":
        factor = coordinates(*gate(u).shape)
        found = [torch.autograd.grad((one(u) * factor).sum(), [u, *one.parameters()]) for one in (gate, soft)]
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
        assert set(gate(u).unique().tolist()) == {0.0, 1.0}
    else:
        inputs = (u, *(p.detach().clone().requires_grad_() for p in gate.parameters()))
        assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6)


def test_hard_concrete_draws_in_training_alone() -> None:
    gate, u = gate_of("hard_concrete", "token"), coordinates(200, 40, 6)
    assert torch.equal(gate.eval()(u), gate(u))
    gate.train()
    torch.manual_seed(1)
    first = gate(u)
    assert not torch.equal(gate(u), first)
    torch.manual_seed(1)
    assert torch.equal(gate(u), first)
    # Louizos et al., eq. 12: the probability that a gate is not 0
    score = textbook._mlp(u, *weights(gate))
    wanted = torch.sigmoid(score - 2 / 3 * math.log(0.1 / 1.1)).mean()
    assert abs(float((first > 0).double().mean()) - float(wanted)) < 0.01


def test_an_adapter_that_is_added_to_a_model_in_evaluation_draws_nothing() -> None:
    model, x = wrapped("entropy", target_modules=["0"]).eval(), coordinates(4, 5, 10)
    fields = {"gate": "adaptive", "gate_form": "hard_concrete", "gate_scope": "token", "init_weights": False}
    model.add_adapter("same", FouraConfig(r=4, target_modules=["0"], **fields))
    model.add_adapter("other", FouraConfig(r=4, target_modules=["2"], **fields))
    for name in ("same", "other"):
        model.set_adapter(name)
        assert torch.equal(model(x), model(x))
        assert not torch.equal(model.train()(x), model.train()(x))
        model.eval()
    loaded = get_peft_model(
        nn.Sequential(nn.Linear(10, 10)), FouraConfig(target_modules=["0"], inference_mode=True, **fields)
    )
    assert torch.equal(loaded(x.float()), loaded(x.float()))


def test_equal_scores_open_every_rank_of_a_softmax_and_never_all_close() -> None:
    gate = gate_of("softmax", "token", rank=16).eval()
    with torch.no_grad():
        gate.weight_out.zero_()
        gate.bias_out.zero_()
        torch.testing.assert_close(gate(coordinates(1, 16)), torch.full((1, 16), 1 / (1 + math.exp(-4))).double())
        gate.bias_out[3] = 20.0
        found = gate(coordinates(1, 16))[0]
        assert found[3] > 0.98 and float(found.sum() - found[3]) < 1e-6


# -- with the rest of the library


@every_form
@every_scope
def test_a_form_saves_loads_copies_freezes_and_merges(form, scope, tmp_path) -> None:
    model, x = wrapped(form, scope, gate_sparsity=0.25).eval(), coordinates(4, 5, 10)
    out = model(x)
    torch.testing.assert_close(copy.deepcopy(model)(x), out, rtol=0, atol=0)
    model.save_pretrained(str(tmp_path / "one"))
    saved = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert (saved["gate_form"], saved["gate_sparsity"]) == (form, 0.25)
    loaded = PeftModel.from_pretrained(wrapped(form).unload(), str(tmp_path / "one")).eval()
    torch.testing.assert_close(loaded(x), out, rtol=0, atol=1e-12)
    assert type(foura_layers(loaded)["0"].gate("default")) is GATE_FORMS[form]
    with pytest.raises(ValueError, match=r"adaptive gate.*freeze_gates"):
        model.merge_adapter()
    kept = foura.freeze_gates(model, [x])
    assert set(kept) == {"0", "2"} and model.peft_config["default"].gate_sparsity == 0.0
    frozen = model(x)
    model.save_pretrained(str(tmp_path / "two"))
    again = PeftModel.from_pretrained(wrapped(form).unload(), str(tmp_path / "two")).eval()
    torch.testing.assert_close(again(x), frozen, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.merge_and_unload()(x), frozen, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["entropy", "sigmoid", "hard", "hard_concrete"])
def test_a_layer_whose_ranks_all_close_adapts_nothing_and_stays_valid(form, tmp_path) -> None:
    model, x = wrapped(form).eval(), coordinates(4, 5, 10)
    layers = foura_layers(model)
    with torch.no_grad():
        layers["2"].gate("default").weight_out.zero_()
        layers["2"].gate("default").bias_out.fill_(-20.0)
    with pytest.warns(
        UserWarning, match=r"1 of 2 layers have no rank whose mean gate is above 0.5.* adapt nothing \(2\)"
    ):
        kept = foura.freeze_gates(model, [x])
    assert kept["2"] == 0 and kept["0"] > 0
    out = model(x)
    torch.testing.assert_close(layers["2"](y := coordinates(4, 5, 12)), layers["2"].base_layer(y))
    model.save_pretrained(str(tmp_path / "foura"))
    again = PeftModel.from_pretrained(wrapped(form).unload(), str(tmp_path / "foura")).eval()
    torch.testing.assert_close(again(x), out, rtol=0, atol=1e-12)
    foura.save_as_lora(model, tmp_path / "lora", per_layer_ranks=True)
    lora = PeftModel.from_pretrained(
        wrapped(form).unload(), str(tmp_path / "lora"), autocast_adapter_dtype=False
    ).eval()
    torch.testing.assert_close(lora(x), out, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.merge_and_unload()(x), out, rtol=0, atol=1e-10)


def test_how_many_inputs_open_how_many_ranks() -> None:
    """Four inputs and three ranks: 3, 1, 1 and 0 open; mean 1.25, variance (9 + 1 + 1) / 4 - 1.25²."""
    gates = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.1, 0.5], [0.2, 0.3, 0.6], [0.1, 0.1, 0.1]])
    counts = open_counts(gates)
    assert counts.tolist() == [1, 2, 0, 1]
    assert spread_of(counts) == pytest.approx(math.sqrt(2.75 - 1.5625))
    assert open_counts(gates.view(2, 2, 3)).tolist() == counts.tolist()


def test_an_adapter_saved_without_a_form_is_the_entropy_gate(tmp_path) -> None:
    model, x = wrapped("entropy").eval(), coordinates(4, 5, 10)
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: value for key, value in fields.items() if key not in ("gate_form", "gate_sparsity")})
    )
    loaded = PeftModel.from_pretrained(wrapped("entropy").unload(), str(tmp_path)).eval()
    assert loaded.peft_config["default"].gate_form == "entropy"
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


def test_another_form_is_not_swapped_in(tmp_path) -> None:
    wrapped("hard").save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="its gate_form is 'hard', that of 'default' is 'sigmoid'"):
        foura.hotswap_adapter(wrapped("sigmoid"), tmp_path)


def test_a_form_from_outside(monkeypatch) -> None:
    class Half(GATE_FORMS["sigmoid"]):
        def _gates(self, score):
            return torch.full_like(score, 0.5) + 0 * score, None

    with pytest.raises(
        ValueError, match="gate_form='half' is not known; choose one of entropy, sigmoid, softmax, hard"
    ):
        FouraConfig(gate="adaptive", gate_form="half")
    monkeypatch.setitem(GATE_FORMS, "half", Half)
    model, x = wrapped("half").eval(), coordinates(4, 5, 10)
    assert float(gate_statistics(model, [x])["0"]["default"]["mean"].mean()) == 0.5


# -- the price of open ranks


@every_form
@every_scope
def test_the_price_is_the_gradient_of_lambda_times_the_mean_gate(form, scope) -> None:
    """And the gates themselves do not change."""
    free, priced, u = gate_of(form, scope), gate_of(form, scope, price=0.7), coordinates(3, 5, 6)
    factor = coordinates(*free.eval()(u).shape)
    grads, outs = [], []
    for gate in (free.train(), priced.train()):
        torch.manual_seed(9)
        out = gate(u)
        loss = (out * factor).square().sum()
        if gate is free:
            paid = out
            if form == "hard_concrete":  # L0: the probability of not being 0
                score = textbook._mlp(u, *weights(gate))
                score = score if scope == "token" else score.mean(1, keepdim=True)
                paid = torch.sigmoid(score - HardConcreteGate.temperature * math.log(0.1 / 1.1))
            loss = loss + 0.7 * paid.mean()
        loss.backward()
        outs.append(out.detach())
        grads.append([parameter.grad for parameter in gate.parameters()])
    assert torch.equal(*outs)
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_padding_pays_nothing() -> None:
    gate, u = gate_of("sigmoid", "token", price=0.7).train(), coordinates(3, 5, 6)
    gate.padding_mask = torch.arange(5)[None] < torch.tensor([[5], [2], [0]])
    (0.0 * gate(u)).sum().backward()
    found = [parameter.grad.clone() for parameter in gate.parameters()]
    gate.zero_grad()
    (0.7 * gate.eval()(u)[gate.padding_mask].mean()).backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in gate.parameters()], rtol=1e-10, atol=1e-12)


def test_a_peft_model_tells_its_token_gates_what_is_padding_when_it_is_paid_for() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 4)

        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.layer(x)

    fields = {"target_modules": ["layer"], "gate": "adaptive", "gate_scope": "token", "gate_form": "sigmoid"}
    torch.manual_seed(0)
    model = get_peft_model(Net(), FouraConfig(r=4, gate_sparsity=0.5, **fields)).train()
    x, mask = torch.randn(2, 5, 10), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    gate = model.base_model.model.layer.gate("default")
    grads = []
    for padding in (x, torch.where(mask[..., None].bool(), x, 100 * torch.randn_like(x))):
        (0.0 * model(padding, attention_mask=mask)).sum().backward()
        grads.append(gate.bias_out.grad.clone())
        model.zero_grad()
    torch.testing.assert_close(*grads)
    assert float(grads[0].abs().sum()) > 0


@every_form
def test_nobody_pays_outside_training(form) -> None:
    for price, mode in ((0.0, True), (0.7, False)):
        gate, u = gate_of(form, "token", price=price).train(mode), coordinates(2, 4, 6)
        (0.0 * gate(u)).sum().backward()
        assert all(float(parameter.grad.abs().sum()) == 0 for parameter in gate.parameters())


@pytest.mark.parametrize("form", ["entropy", "sigmoid", "hard", "hard_concrete"])
def test_a_higher_price_closes_more_ranks(form) -> None:
    """On a regression that two of eight ranks solve."""
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(12, 12)), torch.randn(64, 4, 12)
    low_rank = torch.randn(12, 2) @ torch.randn(2, 12) / 4
    target = base(x).detach() + x @ low_rank
    open_ranks = []
    for price in (0.0, 0.02, 0.2, 2.0):
        torch.manual_seed(1)
        fields = {"gate": "adaptive", "gate_form": form, "gate_scope": "token", "gate_sparsity": price}
        model = get_peft_model(copy.deepcopy(base), FouraConfig(r=8, foura_alpha=8, target_modules=["0"], **fields))
        optimizer = torch.optim.Adam(foura.param_groups(model, lr=0.02, gate_lr=0.05))
        for _ in range(150):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
        open_ranks.append(foura.effective_rank(model, [x])["0"])
    assert open_ranks == sorted(open_ranks, reverse=True) and open_ranks[-1] < 0.5 * open_ranks[0], open_ranks


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gate": "adaptive", "gate_sparsity": -0.1}, "gate_sparsity must be a finite number of at least 0, got -0.1"),
        ({"gate": "adaptive", "gate_sparsity": math.nan}, "finite number of at least 0, got nan"),
        ({"gate": "adaptive", "gate_sparsity": math.inf}, "finite number of at least 0, got inf"),
        ({"gate": "none", "gate_sparsity": 0.1}, "gate_sparsity=0.1 is a price for gates .* gate='none' has none"),
        ({"gate": "frozen", "gate_sparsity": 0.1}, "gate='frozen' has none"),
        ({"gate": "adaptive", "gate_form": "soft"}, "choose one of entropy, sigmoid, softmax, hard, hard_concrete"),
    ],
)
def test_a_wrong_price_or_form_is_refused_in_a_sentence(fields, said) -> None:
    with pytest.raises(ValueError, match=said):
        FouraConfig(**fields)


def test_a_gate_without_a_price_refuses_one(monkeypatch) -> None:
    class Open(Gate):
        def forward(self, u: Tensor) -> Tensor:
            return torch.ones_like(u)

    monkeypatch.setitem(GATES, "open", Open)
    with pytest.raises(ValueError, match=r"gate_sparsity=0.1, but Open has no price for open ranks"):
        get_peft_model(
            nn.Sequential(nn.Linear(4, 4)), FouraConfig(target_modules=["0"], gate="open", gate_sparsity=0.1)
        )


@pytest.mark.parametrize(("value", "kind"), [("0.1", TypeError), (True, TypeError), (None, TypeError)])
def test_a_price_of_another_type_is_refused(value, kind) -> None:
    with pytest.raises(kind, match="gate_sparsity must be float"):
        FouraConfig(gate="adaptive", gate_sparsity=value)
