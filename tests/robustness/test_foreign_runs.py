"""Runs of other people: what is read and exported of one, and nothing in its config or adapter is computed or grows."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st
from omegaconf import OmegaConf

from foura.errors import UserError
from foura.run.export import export
from foura.run.load import check_adapter, read_config
from tests.helpers.hostile import in_time, refused, try_all
from tests.helpers.untrusted import run_folder

FOLDERS = 100  # examples of make test-all


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return run_folder(tmp_path_factory.mktemp("made") / "run", "lora")


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


FILES = (
    "config.yaml",
    "adapter",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/README.md",
)


@pytest.mark.parametrize("name", FILES)
def test_an_export_takes_nothing_from_elsewhere(name, run, tmp_path) -> None:
    """The target of the link is as it should be: what is refused is that it lies elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run / name, elsewhere)
    (run / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        export(run, "peft", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_a_run_does_not_hang_an_export(name, run, tmp_path) -> None:
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    os.mkfifo(run / name)
    with in_time(60), pytest.raises((UserError, OSError)):
        export(run, "peft", tmp_path / "out")


def test_an_export_that_failed_does_not_block_the_next(run, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            export(run, "peft", tmp_path / "out")
    export(run, "peft", tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_an_export_onto_a_dangling_link_is_refused_in_a_sentence(run, tmp_path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already; name a folder that does not"):
        export(run, "peft", tmp_path / "out")


RESOLVED = ["${oc.env:HOME}", "evil/${oc.env:SECRET}", "a${rank}", "${oc.decode:'1'}", "${foura.times:2,3}", "\\${x}"]


@pytest.mark.parametrize("text", RESOLVED)
def test_nothing_in_a_run_s_config_is_computed(text, run, monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "mine-123")
    config = (run / "config.yaml").read_text()
    for key, line in (("name: embedded", f"name: '{text}'"), ("rank: 4", f"rank: '{text}'")):
        assert key in config
        (run / "config.yaml").write_text(config.replace(key, line))
        with pytest.raises(UserError, match="would be computed") as said:
            read_config(run)
        assert "mine-123" not in str(said.value)


def test_a_config_cannot_grow(run) -> None:
    config = (run / "config.yaml").read_text()
    grown = "\n".join(["v0: aaaaaaaaaa", *(f"v{n}: ${{v{n - 1}}}${{v{n - 1}}}" for n in range(1, 30))])
    for text in (config + grown, config + "a: &a [1]\nb: *a\n", config + "a: !!binary aGk=\n", "[" * 5000, "a: " * 500):
        (run / "config.yaml").write_text(text)
        with in_time(30):
            assert refused(lambda: read_config(run))


UNSAFE = [
    ("lora_alpha", float("nan")),
    ("lora_alpha", float("inf")),
    ("lora_alpha", 1e308),
    ("lora_alpha", 10**400),
    ("alpha_pattern", {"qkv": 1e308}),
    ("lora_dropout", float("nan")),
    ("init_lora_weights", "pissa_niter_10000000"),
    ("init_lora_weights", "../../x"),
    ("monteclora_config", {"n_samples": 10**9}),
    ("loftq_config", {"loftq_iter": 10**6}),
    ("eva_config", {"rho": 1e300}),
    ("corda_config", {"cache_file": "/etc/passwd"}),
    ("layer_replication", [[0, 10**6]]),
    ("qalora_group_size", 10**9),
    ("alora_invocation_tokens", [10**12]),
    ("r", 4097),
    ("rank_pattern", {"qkv": 10**6}),
    ("megatron_core", "x" * 10**5),
    ("evil", [1]),
    ("target_parameters", [[[[[[[[[[1]]]]]]]]]]),
]


@pytest.mark.parametrize(("field", "value"), UNSAFE, ids=lambda value: str(value)[:30])
def test_an_adapter_config_has_fields_and_numbers_of_a_run_alone(field, value, run) -> None:
    path, cfg = run / "adapter" / "adapter_config.json", read_config(run)
    described = json.loads(path.read_text())
    check_adapter(run / "adapter", cfg)
    path.write_text(json.dumps({**described, field: value}))
    with in_time(60), pytest.raises(UserError) as said:
        check_adapter(run / "adapter", cfg)
    assert field in str(said.value) or "number that is too long" in str(said.value)


HEAVY = """
import json, resource, sys
from pathlib import Path
from foura.errors import UserError
from foura.families import build
from foura.run.load import load_adapter, read_config
run = Path(sys.argv[1])
cfg = read_config(run)
parts = build(cfg)
path = run / "adapter" / "adapter_config.json"
described = json.loads(path.read_text())
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + 2**31, before + 2**31))
for field, value in json.loads(sys.argv[2]):
    path.write_text(json.dumps({**described, field: value}))
    try:
        load_adapter(parts.backbone.model, run, cfg)
    except UserError as error:
        assert "memory" not in str(error), error
        print("refused", field)
"""


@pytest.mark.slow
def test_no_adapter_config_fills_the_memory(run, run_env) -> None:
    """In a process that may take 2 GB more than the model has."""
    asked = [("r", 10**9), ("rank_pattern", {"qkv": 10**9}), ("layer_replication", [[0, 10**6]])]
    command = [sys.executable, "-c", HEAVY, str(run), json.dumps(asked)]
    ended = subprocess.run(command, env=run_env, capture_output=True, text=True, check=False)
    assert ended.stdout.count("refused") == len(asked), ended.stderr[-2000:]


def test_any_exported_folder_is_used_or_refused(run, tmp_path) -> None:
    """A whole folder with files exchanged for links, pipes and folders, at random."""
    cfg = read_config(run)
    kinds = st.sampled_from(["link", "pipe", "folder", "empty", "gone", "same"])
    number = iter(range(10**6))

    def check(chosen: list[str]) -> None:
        folder = tmp_path / f"n{next(number)}"
        shutil.copytree(run, folder)
        for name, kind in zip(FILES[2:], chosen, strict=True):
            path = folder / name
            if kind != "same":
                path.unlink()
            if kind == "link":
                path.symlink_to(run / name)
            elif kind in ("pipe", "folder"):
                {"pipe": os.mkfifo, "folder": os.mkdir}[kind](path)
            elif kind == "empty":
                path.touch()
        out = tmp_path / f"out{next(number)}"
        was_refused = refused(lambda: export(folder, "peft", out))
        assert was_refused != out.exists()
        assert was_refused == (chosen[:2] != ["same", "same"] or chosen[2] in ("link", "pipe", "folder")), chosen
        shutil.rmtree(folder)

    assert cfg.rank == 4
    for kind in ("same", "link", "pipe", "folder", "empty", "gone"):  # of the model card, which may be missing
        check(["same", "same", kind])
    try_all(st.lists(kinds, min_size=3, max_size=3), check, FOLDERS)


def test_memory_of_this_process_is_not_capped() -> None:
    """The test above caps that of its child alone."""
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_a_run_s_config_starts_no_processes_and_opens_no_port(run) -> None:
    """It says how its own machine was used: `foura merge-eval` and `export --freeze` would start as many."""
    config = OmegaConf.load(run / "config.yaml")
    config.trainer = {**config.trainer, "strategy": "ddp", "devices": 64, "num_nodes": 9, "profiler": "pytorch"}
    config.dataset.num_workers = 100_000
    OmegaConf.save(config, run / "config.yaml")
    cfg = read_config(run)
    assert (cfg.trainer.strategy, cfg.trainer.devices, cfg.trainer.num_nodes) == ("auto", 1, 1)
    assert (cfg.dataset.num_workers, cfg.trainer.profiler) == (0, None)
