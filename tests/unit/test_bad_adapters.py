"""Adapters, runs' folders and checkpoints from somebody else: used or refused in one sentence, nothing of them is executed."""

import io
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file, save_file

from foura import FouraConfig, schema
from foura.attach import adapter_parameters, attach
from foura.cli import main
from foura.config import check
from foura.errors import UserError
from foura.families import build
from foura.saved import load_adapter, load_bare, read_config
from foura.served import export
from foura.sora import fold
from foura.tasks.checkpoint import KEYS, usable
from tests.hostile import BYTES, TIMES, damaged, in_time, is_a_sentence, mutated, payload, refused, try_all
from tests.unit.test_bad_weights import HEADERS
from tests.unit.test_config import composed

CONFIGS, YAMLS, CHECKPOINTS, COMMANDS = 30, 60, 80, 3  # examples tried
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
EVIL = ["(a+)+$", "(.*a){30}", ".*.*.*.*.*.*.*x", "(", "(?:(?:a*)*)*b", "a" * 10**5]
LIKELY = {
    "peft_type": ["LORA", "PREFIX_TUNING", "EVIL", None, 3, [], "XLORA"],
    "r": [0, -1, 10**9, 10**30, "8", 8.5, True, None, [8]],
    "foura_alpha": ["x", None, float("nan"), float("inf"), 10**400],
    "target_modules": [*EVIL, "all-linear", [], ["nothing"], [3], {"a": 1}, ["../../x"], None, "head"],
    "exclude_modules": [*EVIL, 3],
    "layers_pattern": EVIL,
    "layers_to_transform": [[10**9], "x", -1],
    "rank_pattern": [{"(a+)+$": 3}, {"qkv": 10**9}, {"qkv": "x"}, 3, []],
    "alpha_pattern": [{"(a+)+$": 3}, {"qkv": "x"}],
    "output_splits": [{"qkv": 7}, {"qkv": 0}, {"(a+)+$": 3}],
    "transform": ["evil", None, 3],
    "gate": ["adaptive", "frozen", "evil"],
    "modules_to_save": [["head", "../x"], "head", [3], ["blocks"]],
    "auto_mapping": [{"base_model_class": "system", "parent_library": "os"}],
    "base_model_name_or_path": ["../../../etc", "/etc/passwd", 3, "http://127.0.0.1:9/x"],
    "task_type": ["CAUSAL_LM", "EVIL", 3],
    "bias": ["evil", "all", 3],
    "runtime_config": [{"a": 1}, 3],
    "megatron_config": [{"a": 1}],
    "init_weights": [False, "x"],
    "unknown": [1],
}


def run_folder(folder: Path, adapter: str, *overrides: str) -> Path:
    """What a run of the adapter leaves, without the training."""
    cfg = composed(f"adapter={adapter}", "rank=4", "dataset.limit=20", *overrides)
    check(cfg)
    parts = build(cfg)
    model = attach(parts.backbone, cfg, steps=10)
    folder.mkdir()
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    fold(model)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    else:
        (folder / "adapter").mkdir()
        save_file(
            {key: value.contiguous() for key, value in adapter_parameters(model).items()},
            folder / "adapter/model.safetensors",
        )
    return folder


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
        load_bare(run, build(cfg), cfg)
    else:
        load_adapter(fresh(parts), run, cfg.adapter.method)
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


@TIMES
def test_any_config_of_an_adapter(times, run, parts) -> None:
    path = run / "adapter" / "adapter_config.json"
    described = json.loads(path.read_text())

    def check(changed: dict) -> None:
        path.write_text(json.dumps(changed))
        refused(lambda: load_adapter(fresh(parts), run, "foura"))
        library(lambda: FouraConfig.from_pretrained(str(run / "adapter")))
        library(lambda: PeftModel.from_pretrained(fresh(parts), str(run / "adapter")))
        try:
            FouraConfig(**{key: value for key, value in changed.items() if key in described})
        except (TypeError, ValueError) as error:
            assert "\n" not in str(error)  # noqa: PT017

    for name, values in LIKELY.items():
        for value in values:
            check({**described, name: value})
    try_all(mutated(described, LIKELY), check, CONFIGS * times)
    for text in ("", "[]", "3", "[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\ufeff{}", "{"):
        path.write_text(text)
        assert refused(lambda: load_adapter(fresh(parts), run, "foura"))


@pytest.mark.parametrize("adapter", ["lora", "adalora", "vera", "fourierft"])
def test_any_config_of_a_peer(adapter, tmp_path, parts, monkeypatch) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = run_folder(tmp_path / "run", adapter)
    path = run / "adapter" / "adapter_config.json"
    described = json.loads(path.read_text())
    likely = {**LIKELY, "init_r": LIKELY["r"], "n_frequency": LIKELY["r"], "lora_dropout": [2.0, "x"]}
    likely |= {"n_frequency_pattern": [{"qkv": 10**12}, {"(a+)+$": 3}], "init_lora_weights": ["evil", 3]}

    def check(changed: dict) -> bool:
        path.write_text(json.dumps(changed))
        return refused(lambda: load_adapter(fresh(parts), run, adapter))

    for name, values in likely.items():
        for value in values[:3]:
            check({**described, name: value})
    assert check({**described, "megatron_config": {"a": 1}, "megatron_core": "evil"})
    assert "evil" not in sys.modules and not (tmp_path / "executed").exists()


@TIMES
def test_any_weights_of_an_adapter(times, run, parts) -> None:
    path, mark = run / "adapter" / "adapter_model.safetensors", run / "executed"
    whole, state = path.read_bytes(), load_file(path)
    name = min(state)

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        return refused(lambda: load_adapter(fresh(parts), run, "foura"))

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
        assert refused(lambda: load_adapter(fresh(parts), run, "foura")), list(changed)
    try_all(BYTES | damaged(whole), check, CONFIGS // 2 * times)
    path.unlink()
    path.with_name("adapter_model.bin").write_bytes(payload(mark))
    with pytest.raises(UserError, match="is a pickle"):
        load_adapter(fresh(parts), run, "foura")
    assert not mark.exists()


BOMB = "a: &a [x,x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@TIMES
def test_any_config_of_a_run(times, run) -> None:
    path = run / "config.yaml"
    whole = OmegaConf.to_container(OmegaConf.load(path))
    mark = run / "executed"
    evil = [
        f"!!python/object/apply:os.system ['touch {mark}']",
        f"a: !!python/object/new:os.system ['touch {mark}']",
        BOMB,
    ]
    evil += [
        "",
        "3",
        "- 1",
        "[" * 5000,
        "a: b: c",
        "\t",
        "? [1]\n: 2",
        "{rank: 3}",
        "rank: ${oc.env:NOTHING}",
        "a: *b",
        "rank: 1e999",
    ]
    evil += [
        OmegaConf.to_yaml(whole).replace("rank: 4", f"rank: {value}") for value in ("x", "-1", "null", "${rank}", "[1]")
    ]

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        return refused(lambda: read_config(run))

    for text in evil:
        assert check(text.encode()), text[:80]
    nearly = st.sampled_from(list(schema.Config.__dataclass_fields__)).flatmap(
        lambda name: (
            mutated(whole[name]).map(lambda value: {**whole, name: value})
            if isinstance(whole[name], dict)
            else mutated(whole)
        )
    )
    try_all(nearly.map(json.dumps).map(str.encode) | damaged(path.read_bytes()) | BYTES, check, YAMLS * times)
    assert not mark.exists()


def checkpoint(**fields) -> bytes:
    out = io.BytesIO()
    torch.save({**{key: {} for key in KEYS}, "epoch": 1, **fields}, out)
    return out.getvalue()


def zipped(names: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as file:
        for name, content in names.items():
            file.writestr(name, content)
    return out.getvalue()


@TIMES
def test_any_checkpoint_is_usable_or_not_and_runs_nothing(times, tmp_path) -> None:
    path, mark = tmp_path / "checkpoint.pt", tmp_path / "executed"

    def is_usable(content: bytes) -> bool:
        path.write_bytes(content)
        with in_time():
            return usable(path)

    whole, evil = checkpoint(), payload(mark)
    assert is_usable(whole)
    bad = [evil, whole[:-100], b"", *HEADERS, checkpoint(epoch="x"), pickle.dumps({"epoch": 1})]
    bad.append(zipped({"checkpoint/data.pkl": evil, "checkpoint/version": b"3", "checkpoint/byteorder": b"little"}))
    bad.append(zipped({"../../../executed": b"x", "archive/data.pkl": evil, "archive/version": b"3"}))
    bad.append(
        zipped(
            {"a/data.pkl": pickle.dumps(list(range(9)), 2), "a/version": b"3", "a/data/0": bytes(10**8)},
            zipfile.ZIP_DEFLATED,
        )
    )
    for number, content in enumerate(bad):
        assert not is_usable(content), number
    try_all(BYTES | damaged(whole), is_usable, CHECKPOINTS * times)
    assert not mark.exists() and not usable(tmp_path) and not usable(tmp_path / "absent")


def test_a_run_over_a_checkpoint_of_somebody_else_starts_anew(train, tmp_path) -> None:
    quick = ("adapter=lora", "rank=4", "dataset.limit=20", "trainer.max_epochs=1")
    folder = train(*quick).folder()
    status, mark = json.loads((folder / "status.json").read_text()), tmp_path / "executed"
    (folder / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    (folder / "checkpoint.pt").write_bytes(zipped({"a/data.pkl": payload(mark), "a/version": b"3"}))
    again = train(*quick)
    assert again.code == 0 and "goes on" not in again.out and not mark.exists()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


@TIMES
def test_the_export_command_says_it_in_a_sentence(times, run, tmp_path, monkeypatch, capsys) -> None:
    described = json.loads((run / "adapter" / "adapter_config.json").read_text())
    number = iter(range(10**6))

    def check(changed: dict) -> None:
        (run / "adapter" / "adapter_config.json").write_text(json.dumps(changed))
        for to in ("lora", "merged"):
            monkeypatch.setattr(
                "sys.argv", ["foura", "export", str(run), "--to", to, str(tmp_path / f"out{next(number)}")]
            )
            with in_time():
                try:
                    main()
                except SystemExit as ended:
                    is_a_sentence(str(ended.code))

    try_all(mutated(described, LIKELY), check, COMMANDS * times)


def test_what_lies_beside_an_adapter_is_not_copied(run, tmp_path) -> None:
    (run / "adapter" / "link").symlink_to("/etc/passwd")
    (run / "adapter" / "evil.py").write_text("")
    export(run, "peft", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }


def test_merge_eval_says_it_in_a_sentence(run, tmp_path, monkeypatch) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    (other / "adapter" / "adapter_model.safetensors").write_bytes(b"no weights")
    for runs in ([run, other], [other, run], [tmp_path, run], [run, tmp_path / "absent"]):
        monkeypatch.setattr("sys.argv", ["foura", "merge-eval", *map(str, runs), "--out", str(tmp_path / "out")])
        with in_time(), pytest.raises(SystemExit) as ended:
            main()
        is_a_sentence(str(ended.value.code))
