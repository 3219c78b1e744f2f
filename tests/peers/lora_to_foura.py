"""A pytest plugin that runs PEFT's own tests on FouRA: wherever a test is parametrised with LoRA, it gets FouRA's rows.

No test body is altered. `pytest.mark.parametrize` is replaced while PEFT's test modules are imported, so that each row
that names LoraConfig becomes one row a variant with FouraConfig, its keywords translated; rows with options that FouRA
does not have, and tests without a row of ours, are left out. With FOURA_PEERS_CONTROL=lora the same rows keep LoraConfig.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from foura import FouraConfig

CONTROL = os.environ.get("FOURA_PEERS_CONTROL") == "lora"
TOKEN_GATE = {"gate": "adaptive", "gate_scope": "token"}
VARIANTS: dict[str, dict[str, Any]] = {
    "dct": {"transform": "dct"},
    "dft": {"transform": "dft"},
    "random": {"transform": "random"},
    "gated": TOKEN_GATE,
    "frozen": {"gate": "frozen"},
    **{form: {**TOKEN_GATE, "gate_form": form} for form in ("sigmoid", "softmax", "hard", "hard_concrete")},
}
GATED = tuple(name for name, fields in VARIANTS.items() if fields.get("gate") == "adaptive")
RENAMED = {"lora_alpha": "foura_alpha", "lora_dropout": "foura_dropout", "init_lora_weights": "init_weights"}
KNOWN = {field.name for field in fields(FouraConfig)}
NOT_OURS = {"Conv1dGroups", "Conv2dGroups", "Conv2dGroups2", "MlpUsingParameters"}  # groups; bare parameters
WITHOUT_GATE = {"MHA"}
# tests that look for a table or a message of LoRA's by its name, or for TIES and DARE
LORAS_OWN = {
    "test_weighted_combination_of_adapters",
    "test_default_target_modules_list_of_str",
    "test_default_target_modules_str",
    "test_mixed_adapter_batches_mha_raises",
}


class Unsupported(Exception):
    """A row that asks for what FouRA does not have."""


def translated(value: Any, variant: str) -> Any:
    """The value with LoRA replaced by the variant of FouRA; dicts are keywords of a config, or hold such."""
    if value is peft.LoraConfig:
        return FouraConfig
    if isinstance(value, peft.LoraConfig) and type(value) is peft.LoraConfig:
        plain = peft.LoraConfig()
        given = {
            f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != getattr(plain, f.name)
        }
        given.pop("peft_version", None)
        return FouraConfig(**translated(given, variant))
    if isinstance(value, str) and (value in NOT_OURS or (variant in GATED and value in WITHOUT_GATE)):
        raise Unsupported(value)
    if value == "lora":  # the name of the method, as some rows carry it
        return "foura"
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(inner, dict) for inner in value.values()) and "rank_pattern" not in value:
        return {key: translated(inner, variant) for key, inner in value.items()}
    keywords = {RENAMED.get(key, key): inner for key, inner in value.items()}
    if unknown := keywords.keys() - KNOWN:
        raise Unsupported(unknown)
    if not isinstance(keywords.get("init_weights", True), bool):
        raise Unsupported("init_weights")
    # alpha unlike r, so that a lost scaling shows
    return {"foura_alpha": 3, **VARIANTS[variant], **keywords}


def names_lora(values: tuple[Any, ...]) -> bool:
    return any(value is peft.LoraConfig or type(value) is peft.LoraConfig for value in values)


def rows_of(row: Any) -> Iterator[Any]:
    """FouRA's rows for one of PEFT's; none where it is not LoRA's or asks for too much."""
    values = getattr(row, "values", row) if not isinstance(row, dict) else (row,)
    values = values if isinstance(values, tuple) else (values,)
    if not names_lora(values):
        return
    has_keywords = any(isinstance(value, (dict, peft.LoraConfig)) for value in values)
    for variant in VARIANTS if has_keywords and not CONTROL else ["dct"]:
        try:
            ours = tuple(translated(value, variant) for value in values)
        except Unsupported:
            continue
        ours = values if CONTROL else ours
        yield pytest.param(*ours, id=f"{variant}-" + "-".join(str(value) for value in values if isinstance(value, str)))


def pytest_configure(config: pytest.Config) -> None:
    for marker in ("regression", "single_gpu_tests", "multi_gpu_tests", "bitsandbytes"):
        config.addinivalue_line("markers", f"{marker}: PEFT's")
    parametrize = pytest.mark.parametrize

    def with_our_rows(names: Any, values: Any, **options: Any) -> Any:
        rows = list(values)
        ours = [new for row in rows for new in rows_of(row)]
        if ours:
            return parametrize(names, ours)
        return parametrize(names, rows, **options)

    pytest.mark.parametrize = with_our_rows  # type: ignore[assignment]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regression", action="store_true", default=False, help="PEFT's conftest, which its sdist lacks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = peft.LoraConfig if CONTROL else FouraConfig

    def ours(item: pytest.Item) -> bool:
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        return any(value is wanted or type(value) is wanted for value in parameters)

    items[:] = [item for item in items if ours(item) and getattr(item, "originalname", "") not in LORAS_OWN]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """PEFT's tests leave models and inputs to chance, and compare to 1e-5: a fixed seed, so that no rounding is unlucky."""
    torch.manual_seed(0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Iterator[None]:
    """Where PEFT's tests ask whether a method is LoRA, to run or to skip, the answer for ours is yes.

    And one learning rate: PEFT takes 100 on one model for a list of methods with tiny gradients, and cannot list ours.
    """
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    with pytest.MonkeyPatch.context() as patch:
        if not CONTROL:
            for module in (item.module, sys.modules["tests.testing_common"]):
                if hasattr(module, "LoraConfig"):
                    patch.setattr(module, "LoraConfig", FouraConfig)
            if item.originalname == "test_only_params_are_updated" and parameters.get("model_id") == "EmbConv1D":
                sgd = torch.optim.SGD
                patch.setattr(torch.optim, "SGD", lambda parameters, lr: sgd(parameters, lr=100))
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """An adaptive gate that refuses to merge does what it should."""
    outcome: Any = yield
    report = outcome.get_result()
    refusal = call.excinfo is not None and call.excinfo.errisinstance(ValueError)
    gated = any(f"[{variant}-" in item.nodeid for variant in GATED)
    if refusal and report.failed and gated and "has an adaptive gate" in str(call.excinfo.value):
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, "refused: an adaptive gate cannot merge")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Counts for the outer test, file by file."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            name = report.nodeid.split("::")[0].rpartition("/")[2]
            refused = outcome == "skipped" and "refused: an adaptive gate" in str(report.longrepr)
            counts.setdefault(name, Counter())["refused" if refused else outcome] += 1
    Path(os.environ["FOURA_PEERS_COUNTS"]).write_text(json.dumps(counts))
