"""Several adapters in one model: active together, by row, weighted into one, swapped, scaled."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

import foura
from foura import FouraConfig

CONFIGS = {
    "dct": {"transform": "dct"},
    "dft": {"transform": "dft", "r": 3},
    "gated": {"gate": "adaptive"},
    "token": {"gate": "adaptive", "gate_scope": "token"},
    "frozen": {"gate": "frozen"},
}


def perturbed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "foura_" in name:
                nn.init.normal_(parameter, std=0.5)
    return model.eval()


def config(**fields) -> FouraConfig:
    return FouraConfig(**{"r": 4, "foura_alpha": 3, "target_modules": ["0", "2"], **fields})


@pytest.fixture
def base() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 6)).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 7, 10, dtype=torch.float64)


@pytest.fixture
def many(base):
    """A model that carries one adapter of each kind."""
    model = get_peft_model(copy.deepcopy(base), config(**CONFIGS["dct"]), "dct", autocast_adapter_dtype=False)
    for name, fields in list(CONFIGS.items())[1:]:
        model.add_adapter(name, config(**fields), autocast_adapter_dtype=False)
    return perturbed(model)


def output(model, name, x):
    model.set_adapter(name)
    return model(x)


def test_active_adapters_add_up(many, x) -> None:
    layer, base = many.base_model.model[0], many.base_model.model[0].base_layer
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            layer.set_adapter(["dct", "dft", "gated"])
            together = layer(x) - base(x)
            apart = torch.zeros_like(together)
            for name in ("dct", "dft", "gated"):
                layer.set_adapter(name)
                apart += layer(x) - base(x)
            torch.testing.assert_close(together, apart, rtol=0, atol=1e-10)


def test_rows_go_through_their_own_adapters(many, base, x) -> None:
    names = ["dct", "__base__", "dft", "gated", "token"]
    rows = many(x, adapter_names=names)
    torch.testing.assert_close(rows[1:2], base(x[1:2]), rtol=0, atol=1e-10)
    for row, name in enumerate(names):
        if name != "__base__":
            torch.testing.assert_close(rows[row : row + 1], output(many, name, x[row : row + 1]), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="non-existing adapter"):
        many(x, adapter_names=["dct", "typo", "dft", "dft", "dft"])
    with pytest.raises(ValueError, match="training mode"):
        many.train()(x, adapter_names=names)


@pytest.mark.parametrize("combination", ["cat", "svd", "linear"])
def test_one_adapter_of_weight_one_is_that_adapter(many, x, combination) -> None:
    for name in ("dct", "dft", "frozen"):
        if combination == "linear" or name != "dft":
            many.add_weighted_adapter([name], [1.0], f"{name}_{combination}", combination_type=combination)
            torch.testing.assert_close(
                output(many, f"{name}_{combination}", x), output(many, name, x), rtol=0, atol=1e-9
            )


@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_weighted_adapters_are_the_weighted_sum_of_updates(many, combination) -> None:
    weights = {"dct": 0.7, "dft": -1.3, "frozen": 0.4}
    many.add_weighted_adapter(list(weights), list(weights.values()), "sum", combination_type=combination, svd_rank=12)
    for layer in (many.base_model.model[0], many.base_model.model[2]):
        wanted = sum(weight * layer.get_delta_weight(name) for name, weight in weights.items())
        torch.testing.assert_close(layer.get_delta_weight("sum"), wanted, rtol=0, atol=1e-10)
    assert many.peft_config["sum"].transform == "identity"


def test_a_truncated_svd_is_the_best_of_its_rank(many) -> None:
    many.add_weighted_adapter(["dct", "frozen"], [1.0, 1.0], "best", combination_type="svd", svd_rank=2)
    layer = many.base_model.model[0]
    wanted = layer.get_delta_weight("dct") + layer.get_delta_weight("frozen")
    error = torch.linalg.svdvals(wanted - layer.get_delta_weight("best"))
    torch.testing.assert_close(error[0], torch.linalg.svdvals(wanted)[2], rtol=1e-8, atol=0)


def test_what_cannot_be_combined_is_refused(many) -> None:
    for names, kind, said in (
        (["dct", "gated"], "cat", "freeze_gates"),
        (["dct", "dft"], "linear", "same r, transform"),
        (["dct", "typo"], "cat", "does not exist"),
        (["dct"], "ties", "choose one of cat, svd, linear"),
    ):
        with pytest.raises(ValueError, match=said):
            many.add_weighted_adapter(names, [1.0] * len(names), "new", combination_type=kind)
        assert "new" not in many.peft_config


FIRST = {"layers_to_transform": [0]}
DIFFERENT = {
    "layers": ({"layers_to_transform": 0}, {"layers_to_transform": [1, 2]}),
    "one of two": ({"layers_to_transform": [1]}, {}),
    "pattern": ({**FIRST, "layers_pattern": "blocks"}, {**FIRST, "layers_pattern": "more"}),
    "exclude": ({"exclude_modules": ["one"]}, {"exclude_modules": ["two"]}),
    "kinds": ({"target_modules": r".*0\.one"}, {"target_modules": ["two"]}),
}


@pytest.mark.parametrize("combination", ["cat", "svd", "linear"])
@pytest.mark.parametrize("fields", DIFFERENT.values(), ids=DIFFERENT)
def test_adapters_of_different_layers_combine(fields, combination) -> None:
    torch.manual_seed(0)
    block = lambda: nn.ModuleDict({"one": nn.Linear(6, 6), "two": nn.Linear(6, 6)})  # noqa: E731
    base = nn.ModuleDict({part: nn.ModuleList([block() for _ in range(3)]) for part in ("blocks", "more")})
    one, two = (config(**{"target_modules": ["one", "two"], **own}) for own in fields)
    model = get_peft_model(nn.ModuleDict({"net": base}).double(), one, "a", autocast_adapter_dtype=False)
    model.add_adapter("b", two, autocast_adapter_dtype=False)
    perturbed(model)
    model.add_weighted_adapter(["a", "b"], [0.5, 2.0], "sum", combination_type=combination, svd_rank=8)
    weights, layers = {"a": 0.5, "b": 2.0}, foura.adapter.freeze.foura_layers(model)
    for layer in layers.values():
        present = {name: weight for name, weight in weights.items() if name in layer.r}
        if combination == "linear" and len(present) > 1:
            continue
        wanted = sum(weight * layer.get_delta_weight(name) for name, weight in present.items())
        torch.testing.assert_close(layer.get_delta_weight("sum"), wanted, rtol=0, atol=1e-10)


def test_a_layer_that_only_shares_an_ending_stays_as_it_is() -> None:
    base = nn.ModuleDict(
        {"one": nn.Linear(6, 6), "two": nn.Linear(6, 6), "net": nn.ModuleDict({"one": nn.Linear(6, 6)})}
    )
    model = get_peft_model(base.double(), config(target_modules="one"), "a", autocast_adapter_dtype=False)
    model.add_adapter("b", config(target_modules=["two"]), autocast_adapter_dtype=False)
    perturbed(model).add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    x = torch.randn(2, 6, dtype=torch.float64)
    inner, outer = base["net"]["one"], base["one"]
    assert torch.equal(inner(x), getattr(inner, "base_layer", inner)(x))
    assert not torch.allclose(outer(x), outer.base_layer(x))


def test_a_combined_adapter_is_whole_or_not_there(many) -> None:
    for names, weights, said in (
        (["dct", "frozen"], [1.0], "2 adapters were named with 1 weights"),
        (["dct", "dct"], [1.0, 1.0], "named twice"),
    ):
        with pytest.raises(ValueError, match=said):
            many.add_weighted_adapter(names, weights, "new", combination_type="cat")
    with torch.no_grad():
        many.base_model.model[2].foura_A["dct"].fill_(torch.inf)
    with pytest.raises(RuntimeError):
        many.add_weighted_adapter(["dct", "frozen"], [1.0, 1.0], "new", combination_type="svd")
    assert "new" not in many.peft_config
    assert all("new" not in layer.foura_A for layer in (many.base_model.model[0], many.base_model.model[2]))


def test_scales_multiply_the_update(many, base, x) -> None:
    layer = many.base_model.model[0]
    layer.set_adapter("dct")
    delta = layer(x) - layer.base_layer(x)
    for change, factor in (
        (lambda: layer.set_scale("dct", 2.0), 2.0),
        (lambda: layer.scale_layer(0.5), 1.0),
        (lambda: layer.scale_layer(3.0), 3.0),
        (lambda: layer.unscale_layer(2.0), 1.5),
        (lambda: layer.unscale_layer(), 1.0),
    ):
        change()
        torch.testing.assert_close(layer(x) - layer.base_layer(x), factor * delta, rtol=0, atol=1e-10)
    layer.set_scale("absent", 2.0)  # diffusers asks every layer


def test_a_swapped_adapter_is_the_other_one(many, base, x, tmp_path) -> None:
    fields = {"gate": "adaptive", "foura_alpha": 7, "alpha_pattern": {"2": 5}}
    other = perturbed(get_peft_model(copy.deepcopy(base), config(**fields), autocast_adapter_dtype=False))
    other.save_pretrained(str(tmp_path / "other"))
    many.set_adapter("gated")
    with torch.no_grad():
        before = many(x[:1, :3])  # keeps folded factors
        foura.hotswap_adapter(many, tmp_path / "other", "gated")
        torch.testing.assert_close(many(x[:1, :3]), other(x[:1, :3]), rtol=0, atol=1e-12)
    assert not torch.allclose(many(x[:1, :3]), before)
    untouched = many(x)
    for name, said in (("dct", "its gate is 'adaptive'"), ("typo", "must both be FouRA")):
        with pytest.raises(ValueError, match=said):
            foura.hotswap_adapter(many, tmp_path / "other", name)
    smaller = get_peft_model(copy.deepcopy(base), config(**fields, rank_pattern={"2": 2}))
    smaller.save_pretrained(str(tmp_path / "smaller"))
    with pytest.raises(ValueError, match="do not fit"):
        foura.hotswap_adapter(many, tmp_path / "smaller", "gated")
    torch.testing.assert_close(many(x), untouched)


def test_parameter_groups_by_role(base) -> None:
    model = get_peft_model(base, config(gate="adaptive", modules_to_save=None))
    groups = foura.param_groups(model, lr=1e-3, lr_ratio=16, gate_lr=2e-2)
    assert [group["lr"] for group in groups] == [1e-3, 16e-3, 2e-2]
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    layers = (model.base_model.model[0], model.base_model.model[2])
    assert sizes[0] == sum(layer.foura_A["default"].numel() for layer in layers)
    assert sizes[1] == sum(layer.foura_B["default"].numel() for layer in layers)
    assert sum(sizes) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="no trainable parameters"):
        foura.param_groups(nn.Linear(2, 2).requires_grad_(False), lr=1.0)


@pytest.mark.parametrize("combination", ["cat", "svd", "linear"])
@pytest.mark.parametrize("first", ["with", "without"])
def test_a_combined_adapter_has_the_head_that_one_of_them_trained(base, x, combination, first) -> None:
    fields = {"target_modules": ["0"]}
    heads = {"with": {"modules_to_save": ["2"]}, "without": {}}
    names = [first, *heads.keys() - {first}]
    model = get_peft_model(base, config(**fields, **heads[first]), first, autocast_adapter_dtype=False)
    model.add_adapter(names[1], config(**fields, **heads[names[1]]), autocast_adapter_dtype=False)
    with torch.no_grad():
        perturbed(model).base_model.model[2].modules_to_save["with"].bias.fill_(100.0)
    model.add_weighted_adapter(names, [1.0, 1.0], "sum", combination_type=combination, svd_rank=8)
    assert (output(model, "sum", x) > 50).all() and not (output(model, "without", x) > 50).any()
    assert model.peft_config["sum"].modules_to_save == ["2"]
