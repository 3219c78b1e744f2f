"""Untrusted adapters: used or refused in one sentence, and nothing in them is executed."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from foura import FouraConfig
from foura.errors import UserError
from foura.families import build
from foura.run.export import export
from foura.run.load import load_adapter, load_bare, read_config
from tests.helpers.hostile import BYTES, damaged, few, in_time, mutated, payload, refused, try_all
from tests.helpers.survives import record
from tests.helpers.untrusted import HEADERS, LIKELY, run_folder

CONFIGS, WEIGHTS = 400, 200  # examples of make test-all
ADAPTERS = (
    "foura_dct",
    "foura",
    "foura_dft_gated",
    "lora",
    "dora",
    "adalora",
    "sora",
    "vera",
    "fourierft",
    "full",
    "head",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return run_folder(tmp_path_factory.mktemp("made") / "run", "foura_dct")


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="module")
def parts(made):
    return build(read_config(made))


def fresh(parts):
    import copy

    return copy.deepcopy(parts.backbone.model)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_a_run_left_is_taken(adapter, tmp_path, parts) -> None:
    run = run_folder(tmp_path / "run", adapter)
    cfg = read_config(run)
    if adapter in ("full", "head"):
        load_bare(run, build(cfg).backbone, cfg)
    else:
        load_adapter(fresh(parts), run, cfg)
    export(run, "peft", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {
        path.name for path in (run / "adapter").glob("*.safetensors")
    }


def library(call) -> None:
    """FouRA's own entry points: an error says in one line of what kind it is; PEFT's own may take several."""
    with in_time():
        try:
            call()
        except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            assert str(error) and len(str(error)) < 20_000  # noqa: PT017 (all of them or none may be raised)


def test_any_config_of_an_adapter(run, parts) -> None:
    path, cfg = run / "adapter" / "adapter_config.json", read_config(run)
    described = json.loads(path.read_text())

    def check(changed: dict) -> None:
        path.write_text(json.dumps(changed))
        refused(lambda: load_adapter(fresh(parts), run, cfg))
        library(lambda: FouraConfig.from_pretrained(str(run / "adapter")))
        library(lambda: PeftModel.from_pretrained(fresh(parts), str(run / "adapter")))
        try:
            FouraConfig(**{key: value for key, value in changed.items() if key in described})
        except (TypeError, ValueError) as error:
            assert "\n" not in str(error)  # noqa: PT017

    for name, values in LIKELY.items():
        for value in few(values):
            check({**described, name: value})
    try_all(mutated(described, LIKELY), check, CONFIGS)
    for text in ("", "[]", "3", "[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\ufeff{}", "{"):
        path.write_text(text)
        assert refused(lambda: load_adapter(fresh(parts), run, cfg))


@pytest.mark.parametrize("adapter", ["lora", "adalora", "vera", "fourierft"])
def test_any_config_of_a_peer(adapter, tmp_path, parts, monkeypatch) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = run_folder(tmp_path / "run", adapter)
    path, cfg = run / "adapter" / "adapter_config.json", read_config(run)
    described = json.loads(path.read_text())
    likely = {**LIKELY, "init_r": LIKELY["r"], "n_frequency": LIKELY["r"], "lora_dropout": [2.0, "x"]}
    likely |= {"n_frequency_pattern": [{"qkv": 10**12}, {"(a+)+$": 3}], "init_lora_weights": ["evil", 3]}

    def check(changed: dict) -> bool:
        path.write_text(json.dumps(changed))
        return refused(lambda: load_adapter(fresh(parts), run, cfg))

    for name, values in likely.items():
        for value in few(values):
            check({**described, name: value})
    assert check({**described, "megatron_config": {"a": 1}, "megatron_core": "evil"})
    assert "evil" not in sys.modules and not (tmp_path / "executed").exists()


def test_any_weights_of_an_adapter(run, parts) -> None:
    path, mark, cfg = run / "adapter" / "adapter_model.safetensors", run / "executed", read_config(run)
    whole, state = path.read_bytes(), load_file(path)
    name = min(state)

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        return refused(lambda: load_adapter(fresh(parts), run, cfg))

    assert not check(whole)
    for content in (*HEADERS, payload(mark), whole[:500], whole[:-1]):
        assert check(content)
    for changed in (
        {key: value for key, value in state.items() if key != name},
        {**state, "further": torch.ones(2)},
        {**state, name: state[name][:-1].contiguous()},
        {**state, name: torch.ones(state[name].shape, dtype=torch.int64)},
        {},
    ):
        save_file(changed, path)
        assert refused(lambda: load_adapter(fresh(parts), run, cfg)), list(changed)
    try_all(BYTES | damaged(whole), check, WEIGHTS)
    path.unlink()
    path.with_name("adapter_model.bin").write_bytes(payload(mark))
    with pytest.raises(UserError, match="is a pickle"):
        load_adapter(fresh(parts), run, cfg)
    assert not mark.exists()
    files = f"{len(HEADERS) + 2} files, all refused, nothing executed"
    record("bad input", "pickles, and headers that lie, as an adapter's weights", files)
