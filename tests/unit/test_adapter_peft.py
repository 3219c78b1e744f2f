"""FouRA behind PEFT: no-op at the start, save and load, merge and unmerge, freezing, export, and clear refusals."""

import copy
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model
from torch import nn

import foura
from foura import FouraConfig

TRANSFORMS = ("dct", "dft", "identity", "random")


class Block(nn.Module):
    """A fused projection and a rectangular one, with a head; inputs (S, T, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(10, 12)
        self.out = nn.Linear(12, 7, bias=False)
        self.head = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.out(torch.tanh(self.qkv(x)))))


@pytest.fixture
def base() -> Block:
    return Block().double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 6, 10, dtype=torch.float64)


def adapt(base: nn.Module, train: bool = True, **fields) -> PeftModel:
    settings = {"r": 4, "foura_alpha": 3, "target_modules": ["qkv", "out"], "output_splits": {"qkv": 3}, **fields}
    model = get_peft_model(copy.deepcopy(base), FouraConfig(**settings), autocast_adapter_dtype=False)
    if train:
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.5)
    return model


QUICK = (("none", "dft"), ("frozen", "dct"))  # the others are slow


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gate", ["none", "adaptive", "frozen"])
def test_a_fresh_adapter_is_an_exact_no_op(base, x, transform, gate) -> None:
    model = adapt(base, train=False, transform=transform, gate=gate)
    assert torch.equal(model(x), base(x))
    assert not torch.equal(adapt(base, train=False, transform=transform, gate=gate, init_weights=False)(x), base(x))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gate", ["none", "adaptive", "frozen"])
def test_save_and_load_round_trip(base, x, transform, gate, tmp_path) -> None:
    model = adapt(base, transform=transform, gate=gate, modules_to_save=["head"], transform_seed=7)
    if gate == "frozen":
        for layer in (model.base_model.model.qkv, model.base_model.model.out):
            layer.foura_gate_mask["default"] = torch.tensor([True, False, False, True])
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path), adapter_name="another")
    assert torch.equal(loaded(x), model(x))
    assert not torch.allclose(model(x), base(x))


def test_the_checkpoint_holds_the_contracts_tensors_and_no_matrix(base, tmp_path) -> None:
    from safetensors.torch import load_file

    adapt(base, transform="dft", gate="adaptive").save_pretrained(str(tmp_path))
    shapes = {
        key.removeprefix("base_model.model."): tuple(value.shape)
        for key, value in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    assert shapes["qkv.foura_A"] == (4, 10 // 2 + 1, 2)
    assert shapes["qkv.foura_B"] == (3 * (4 // 2 + 1), 4, 2)
    others = {key.split(".", 1)[1] for key in shapes} - {"foura_A", "foura_B"}
    assert all(name.startswith("foura_gate") for name in others)
    adapt(base).save_pretrained(str(tmp_path / "real"))
    shapes = {
        key.removeprefix("base_model.model."): tuple(value.shape)
        for key, value in load_file(tmp_path / "real" / "adapter_model.safetensors").items()
    }
    assert shapes == {"qkv.foura_A": (4, 10), "qkv.foura_B": (12, 4), "out.foura_A": (4, 12), "out.foura_B": (7, 4)}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gate", ["none", "frozen"])
def test_merged_is_unmerged(base, x, transform, gate) -> None:
    model = adapt(base, transform=transform, gate=gate)
    before = model(x)
    weight = model.base_model.model.qkv.base_layer.weight.detach().clone()
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    assert not torch.equal(model.base_model.model.qkv.base_layer.weight, weight)
    model.unmerge_adapter()
    torch.testing.assert_close(model.base_model.model.qkv.base_layer.weight, weight, rtol=0, atol=1e-12)
    merged = model.merge_and_unload()
    assert type(merged.qkv) is nn.Linear
    torch.testing.assert_close(merged(x), before, rtol=0, atol=1e-12)


def test_an_adaptive_gate_refuses_to_merge_and_to_export(base, x, tmp_path) -> None:
    model = adapt(base, gate="adaptive")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for attempt in (model.merge_adapter, model.merge_and_unload, lambda: foura.to_lora(model)):
        with pytest.raises(ValueError, match=r"adaptive gate.*freeze_gates"):
            attempt()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_freezing_gates_keeps_the_open_ranks_and_makes_the_adapter_mergeable(base, x, tmp_path) -> None:
    model = adapt(base, gate="adaptive")
    gate = model.base_model.model.qkv.foura_gate["default"]
    with torch.no_grad():  # ranks 0 and 2 look at nothing (entropy at its maximum), 1 and 3 at single tokens
        gate.weight_out.zero_()
        gate.weight_out[1::2] = 40.0
    kept = foura.freeze_gates(model, [x])
    assert kept["qkv"] == 2 and set(kept) == {"qkv", "out"}
    assert model.base_model.model.qkv.foura_gate_mask["default"].tolist() == [True, False, True, False]
    assert model.peft_config["default"].gate == "frozen"
    assert foura.effective_rank(model, [x]) == {name: float(count) for name, count in kept.items()}
    before = model(x)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))(x), before)
    torch.testing.assert_close(model.merge_and_unload()(x), before, rtol=0, atol=1e-12)


def test_gates_frozen_in_inference_mode_are_frozen_for_good(base, x) -> None:
    one, other = (adapt(copy.deepcopy(base), gate="adaptive") for _ in range(2))
    other.load_state_dict(one.state_dict())
    with torch.inference_mode():
        kept = foura.freeze_gates(one, [x])
    assert kept == foura.freeze_gates(other, [x])
    for _ in range(2):
        assert torch.equal(one(x), other(x))
        one(x).square().sum().backward()
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


def test_batches_may_be_tensors_tuples_or_mappings(base, x) -> None:
    model = adapt(base, gate="adaptive", train=False)
    assert foura.effective_rank(model, [x, (x, "labels"), [x], {"x": x}]) == {"qkv": 4.0, "out": 4.0}
    assert foura.effective_rank(adapt(base), []) == {"qkv": 4.0, "out": 4.0}
    with pytest.raises(ValueError, match="no data"):
        foura.effective_rank(model, [])
    with pytest.raises(ValueError, match="no active FouRA adapter"):
        foura.freeze_gates(adapt(base), [x])


def test_the_gate_starts_open(base, x) -> None:
    model = adapt(base, gate="adaptive", train=False)
    statistics = foura.adapter.freeze.gate_statistics(model, [x])
    assert min(float(layer["default"]["mean"].min()) for layer in statistics.values()) > 0.9


def test_a_token_gate_is_causal_and_a_sequence_gate_is_not(base, x) -> None:
    changed = x.clone()
    changed[:, -1] += 1.0
    token = adapt(base, gate="adaptive", gate_scope="token")
    assert torch.equal(token(x)[:, :-1], token(changed)[:, :-1])
    sequence = adapt(base, gate="adaptive", gate_scope="sequence")
    assert not torch.equal(sequence(x)[:, :-1], sequence(changed)[:, :-1])


def test_a_sequence_gate_does_not_depend_on_the_rest_of_the_batch(base, x) -> None:
    model = adapt(base, gate="adaptive")
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 10), (4, 2, 3, 10), (4, 1, 10)])
@pytest.mark.parametrize("scope", ["sequence", "token"])
def test_inputs_of_any_rank(base, shape, scope) -> None:
    out = adapt(base, gate="adaptive", gate_scope=scope)(torch.randn(shape, dtype=torch.float64))
    assert out.shape == (*shape[:-1], 3) and torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("transform", "gate"),
    [
        pytest.param(transform, gate, marks=pytest.mark.slow if (gate, transform) not in QUICK else ())
        for transform in TRANSFORMS
        for gate in ("none", "frozen")
    ],
)
def test_an_export_is_the_same_function_without_foura(base, x, transform, gate, tmp_path) -> None:
    model = adapt(
        base,
        transform=transform,
        gate=gate,
        modules_to_save=["head"],
        rank_pattern={"out": 2},
        alpha_pattern={"out": 5},
    )
    if gate == "frozen":
        model.base_model.model.qkv.foura_gate_mask["default"] = torch.tensor([True, False, False, True])
        model.base_model.model.out.foura_gate_mask["default"] = torch.tensor([False, False])
    torch.save(base.state_dict(), tmp_path / "base.pt")
    torch.save({"x": x, "y": model(x).detach()}, tmp_path / "io.pt")
    foura.save_as_lora(model, tmp_path / "as_lora")
    script = f"""
import sys, torch
from torch import nn
from peft import PeftModel
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(10, 12), nn.Linear(12, 7, bias=False), nn.Linear(7, 3)
    def forward(self, x):
        return self.head(torch.tanh(self.out(torch.tanh(self.qkv(x)))))
base = Block().double()
base.load_state_dict(torch.load({str(tmp_path / "base.pt")!r}, weights_only=True))
model = PeftModel.from_pretrained(base, {str(tmp_path / "as_lora")!r}, autocast_adapter_dtype=False)
io = torch.load({str(tmp_path / "io.pt")!r}, weights_only=True)
assert "foura" not in sys.modules
assert type(model.base_model).__name__ == "LoraModel"
print(float((model(io["x"]) - io["y"]).abs().max()))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert float(answer.stdout) < 1e-12
    _, state = foura.to_lora(model)
    parts = 2 if transform == "dft" else 1
    kept = 2 if gate == "frozen" else 4
    assert state["base_model.model.qkv.lora_A.weight"].shape[0] == parts * kept


def test_wrong_configs_are_refused_in_a_sentence(base) -> None:
    for wrong, said in (
        ({"r": 0}, "r must be a positive integer, got 0"),
        ({"r": -3}, "positive integer"),
        ({"rank_pattern": {"out": 0}}, "rank_pattern"),
        ({"transform": "dwt"}, "choose one of dct, dft, identity, random"),
        ({"gate": "hard"}, "choose one of none, adaptive, frozen"),
        ({"gate_scope": "batch"}, "choose one of sequence, token"),
        ({"foura_dropout": 1.5}, "foura_dropout"),
    ):
        with pytest.raises(ValueError, match=said):
            FouraConfig(**wrong)
    with pytest.raises(ValueError, match="linear layers of this model are: qkv, out, head"):
        adapt(base, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="12 features cannot be cut into 5"):
        adapt(base, output_splits={"qkv": 5})


def test_registration_is_known_to_peft_and_idempotent() -> None:
    import pickle

    from foura.adapter.peft_type import foura_peft_type

    assert foura_peft_type() is foura_peft_type() is PeftType.FOURA is PeftType("FOURA")
    assert "FOURA" in PeftType.__members__ and pickle.loads(pickle.dumps(PeftType.FOURA)) is PeftType.FOURA


@pytest.mark.parametrize("order", ["import foura, peft", "import peft, foura"])
def test_registered_whichever_is_imported_first(order, root) -> None:
    script = f"{order}\nprint(peft.PeftType('FOURA') in peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert answer.stdout.strip() == "True"


def test_rslora_and_alpha_scale_as_in_peft(base) -> None:
    layer = adapt(base, r=4, foura_alpha=3).base_model.model.qkv
    assert layer.scaling["default"] == 3 / 4
    assert adapt(base, r=4, foura_alpha=3, use_rslora=True).base_model.model.qkv.scaling["default"] == 3 / 2
