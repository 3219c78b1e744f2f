"""Arguments stay the caller's: configs, modes of modules, random numbers. And the scope of a gate that nobody named."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model, inject_adapter_in_model
from torch import nn

import foura
from foura import FouraConfig
from tests.helpers.tiny_models import tiny_llama


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Dropout(), nn.BatchNorm1d(6), nn.Linear(6, 4))


def config(**fields) -> FouraConfig:
    return FouraConfig(r=4, target_modules=["0", "3"], init_weights=False, **fields)


def frozen(model: nn.Module, _given: FouraConfig, _folder) -> None:
    foura.freeze_gates(model, [torch.randn(5, 8)])


def counted(model: nn.Module, _given: FouraConfig, _folder) -> None:
    foura.effective_rank(model, [torch.randn(5, 8)])


def swapped(model: nn.Module, given: FouraConfig, folder) -> None:
    settings = {
        "foura_alpha": 3.0,
        "alpha_pattern": {"0": 5.0},
        "use_rslora": True,
        "gate": given.gate,
        "rank_pattern": {"3": 2},
    }
    get_peft_model(net(), config(**settings)).save_pretrained(str(folder / "other"))
    foura.hotswap_adapter(model, folder / "other")


def exported(model: nn.Module, _given: FouraConfig, folder) -> None:
    frozen(model, _given, folder)
    foura.save_as_lora(model, folder / "lora")


def merged(model: nn.Module, _given: FouraConfig, folder) -> None:
    frozen(model, _given, folder)
    model.merge_and_unload()


def combined(model: nn.Module, _given: FouraConfig, folder) -> None:
    frozen(model, _given, folder)
    model.add_weighted_adapter(["default"], [0.5], "weaker", combination_type="linear")


@pytest.mark.parametrize("use", [frozen, counted, swapped, exported, merged, combined])
def test_the_config_that_was_passed_is_left_as_it_was(use: Callable, tmp_path) -> None:
    given = config(gate="adaptive", rank_pattern={"3": 2})
    model = get_peft_model(net(), given)
    before = copy.deepcopy(given.to_dict())
    use(model, given, tmp_path)
    assert given.to_dict() == before
    second = get_peft_model(net(), given)
    assert "default" in second.base_model.model[0].foura_gate and not second.base_model.model[0].foura_gate_mask


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_model_s_own_config_says_that_its_gate_is_frozen(wrapped, tmp_path) -> None:
    given = config(gate="adaptive")
    model = get_peft_model(net(), given) if wrapped else inject_adapter_in_model(given, net(), "default")
    foura.freeze_gates(model, [torch.randn(5, 8)])
    configs = [module.peft_config["default"] for module in model.modules() if hasattr(module, "peft_config")]
    assert [one.gate for one in configs] == ["frozen"] * len(configs)
    if wrapped:
        assert len(configs) >= 2 and len({id(one) for one in configs}) == 1
        model.save_pretrained(str(tmp_path))
        assert PeftConfig.from_pretrained(str(tmp_path)).gate == "frozen"


@pytest.mark.parametrize("use", [frozen, counted])
def test_modules_keep_the_mode_that_they_were_in(use: Callable, tmp_path) -> None:
    model = get_peft_model(net(), config(gate="adaptive")).train()
    model.base_model.model[2].eval()  # a norm whose statistics are not to move
    before = {name: module.training for name, module in model.named_modules() if "foura_gate" not in name}
    use(model, config(), tmp_path)
    assert {name: module.training for name, module in model.named_modules() if "foura_gate" not in name} == before


# -- gate_scope


@pytest.mark.parametrize(
    ("fields", "scope"),
    [
        ({}, "sequence"),
        ({"task_type": "CAUSAL_LM"}, "token"),
        ({"task_type": TaskType.CAUSAL_LM}, "token"),
        ({"task_type": "SEQ_CLS"}, "sequence"),
        ({"gate_scope": "token"}, "token"),
        ({"gate_scope": "sequence", "task_type": "SEQ_CLS"}, "sequence"),
    ],
)
def test_the_scope_that_is_left_out_follows_from_the_task(fields, scope) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert FouraConfig(gate="adaptive", **fields).gate_scope == scope


def test_a_sequence_gate_for_a_causal_task_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="later tokens change earlier outputs; use gate_scope='token'"):
        asked = FouraConfig(gate="adaptive", gate_scope="sequence", task_type="CAUSAL_LM")
    assert asked.gate_scope == "sequence"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        FouraConfig(gate_scope="sequence", task_type="CAUSAL_LM")  # no gate, nothing leaks


def test_a_sequence_gate_on_a_model_that_generates_is_warned_of_though_no_task_is_named() -> None:
    with pytest.warns(UserWarning, match="later tokens change earlier outputs"):
        get_peft_model(tiny_llama(), FouraConfig(gate="adaptive", target_modules=["q_proj"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        get_peft_model(tiny_llama(), FouraConfig(gate="adaptive", target_modules=["q_proj"], task_type="CAUSAL_LM"))
        get_peft_model(net(), config(gate="adaptive"))


def test_by_default_no_later_token_changes_an_earlier_output_of_a_causal_model() -> None:
    settings = {"gate": "adaptive", "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(tiny_llama(), FouraConfig(init_weights=False, **settings)).eval()
    ids = torch.arange(12)[None]
    changed = ids.clone()
    changed[0, -1] = 50
    with torch.no_grad():
        one, other = model(input_ids=ids).logits, model(input_ids=changed).logits
    assert torch.equal(one[:, :-1], other[:, :-1]) and not torch.allclose(one[:, -1], other[:, -1])


@pytest.mark.filterwarnings("ignore:gate_scope")
def test_an_old_adapter_stays_what_it_is(tmp_path) -> None:
    """0.1.0 had one default, and wrote it."""
    asked = FouraConfig(gate="adaptive", gate_scope="sequence", task_type="CAUSAL_LM", target_modules=["q_proj"])
    get_peft_model(tiny_llama(), asked).save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    assert loaded.peft_config["default"].gate_scope == "sequence"
    assert {gate.scope for gate in loaded.modules() if isinstance(gate, foura.adapter.gate.Gate)} == {"sequence"}
