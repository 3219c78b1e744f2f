"""Untrusted run folders and checkpoints: used or refused in one sentence, and nothing in them is executed."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import strategies as st
from omegaconf import OmegaConf

from foura import schema
from foura.cli import main
from foura.run.export import export
from foura.run.load import read_config
from foura.run.resume import KEYS, usable
from tests.helpers.hostile import BYTES, damaged, in_time, is_a_sentence, mutated, payload, refused, try_all
from tests.helpers.survives import record
from tests.helpers.untrusted import HEADERS, LIKELY, run_folder

YAMLS, CHECKPOINTS, COMMANDS = 600, 1200, 60  # examples of make test-all
BOMB = "a: &a [x,x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.fixture
def run(tmp_path) -> Path:
    return run_folder(tmp_path / "run", "foura_dct")


def test_any_config_of_a_run(run) -> None:
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
    try_all(nearly.map(json.dumps).map(str.encode) | damaged(path.read_bytes()) | BYTES, check, YAMLS)
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


def test_any_checkpoint_is_usable_or_not_and_runs_nothing(tmp_path) -> None:
    path, mark = tmp_path / "checkpoint.pt", tmp_path / "executed"

    def is_usable(content: bytes) -> bool:
        path.write_bytes(content)
        with in_time():
            return usable(path, {})

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
    try_all(BYTES | damaged(whole), is_usable, CHECKPOINTS)
    assert not mark.exists() and not usable(tmp_path, {}) and not usable(tmp_path / "absent", {})
    record("bad input", "pickles, paths and bombs as a checkpoint", f"{len(bad)} files, none used, nothing executed")


def test_a_run_over_an_untrusted_checkpoint_starts_anew(train, tmp_path) -> None:
    quick = ("adapter=lora", "rank=4", "dataset.limit=20", "trainer.max_epochs=1")
    folder = train(*quick).folder()
    status, mark = json.loads((folder / "status.json").read_text()), tmp_path / "executed"
    (folder / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    (folder / "checkpoint.pt").write_bytes(zipped({"a/data.pkl": payload(mark), "a/version": b"3"}))
    again = train(*quick)
    assert again.code == 0 and "resumes" not in again.out and not mark.exists()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


def test_a_checkpoint_of_another_model_is_not_resumed_from(train, monkeypatch) -> None:
    quick = ("adapter=lora", "rank=4", "dataset.limit=20", "trainer.max_epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr("foura.run.recorder.Recorder.restore", Mock(side_effect=SystemExit(143)))
        stopped = train(*quick)
    assert stopped.code == 143
    path = stopped.folder() / "checkpoint.pt"
    kept = torch.load(path, weights_only=True)
    name = next(iter(kept["state_dict"]))
    kept["state_dict"][name] = torch.ones(3)
    torch.save(kept, path)
    again = train(*quick)
    assert again.code == 0 and "checkpoint.pt in the run's folder is damaged or of another model" in again.out


def test_the_export_command_says_it_in_a_sentence(run, tmp_path, monkeypatch, capsys) -> None:
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

    try_all(mutated(described, LIKELY), check, COMMANDS)


@pytest.mark.parametrize("option", ["--experimental-rerun", "--experimental-rerun=", "--exp"])
def test_hydra_unpickles_no_run(option, train, tmp_path) -> None:
    """Hydra's own option reads the pickle that its callback leaves in a run's folder."""
    mark = tmp_path / "executed"
    (tmp_path / "config.pickle").write_bytes(payload(mark))
    place = str(tmp_path / "config.pickle")
    ended = train(*([option + place] if option.endswith("=") else [option, place]))
    assert ended.code.startswith("error: --experimental-rerun executes") and not mark.exists()


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
