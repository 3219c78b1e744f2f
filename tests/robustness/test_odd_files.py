"""Pipes, sockets, devices, folders, files without end and JSON without bottom in the place of every file of a folder.

Each is tried in a process that may take so much memory as a good folder needs twice over, and no more: it is refused by a
sentence, which is not one about memory, or it is not read, and the good folder still loads after it.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foura.bundled.encoder import FOLDER as BERT
from foura.bundled.llama import FOLDER as LLAMA
from tests.helpers.odd_files import NOT_FILES, ODD
from tests.helpers.survives import record
from tests.helpers.untrusted import run_folder
from tests.peers.tiny_models import stable_diffusion

pytestmark = pytest.mark.slow
ROOM = 2**30  # bytes beyond what a process has once it has loaded the good folder

# argv: the kind of folder, the folder, the names, the kinds of odd files, bytes of room
CHILD = """
import contextlib, io, json, os, resource, shutil, sys
from pathlib import Path
from foura.errors import UserError
from tests.helpers.hostile import in_time, is_a_sentence
from tests.helpers.odd_files import put
from tests.helpers.untrusted import config

kind, folder, names, kinds, room = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:6])
number = iter(range(10**6))

def command(*words):
    from foura.cli import main
    sys.argv = ["foura", *map(str, words)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise UserError(str(ended.code).removeprefix("error: "))
    return said.getvalue()

def load():
    if kind == "llama":
        from foura.families.language.backbone import build_llama
        build_llama(config("llama_small", name=str(folder)))
    elif kind == "bert":
        from foura.families.encoder.backbone import build_encoder
        build_encoder(config("bert", name=str(folder)), ["a", "b"])
    elif kind == "pipeline":
        from foura.families.diffusion.backbone import build_unet
        build_unet(config("unet", name=str(folder)))
    elif kind == "timm":
        from foura.families.images.backbone import build_vit
        build_vit(config("vit", name=str(folder)), 10)
    elif kind == "run":
        command("export", folder, "--to", "peft", folder.with_name(f"out{next(number)}"))
        command("export", folder, "--to", "merged", folder.with_name(f"out{next(number)}"))
    elif kind == "outputs":
        said = command("sync", folder) + command("status", "--outputs", folder) + command("status", "s", "--outputs", folder)
        assert "good" in said, said

load()  # the control, before memory is capped
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
load()  # … and with it
for name in names:
    path = folder / name
    kept = folder.with_name("kept")
    if path.exists():
        os.replace(path, kept)
    for odd in kinds:
        put(odd, path)
        with in_time(60):
            try:
                load()
                print(json.dumps([name, odd, "not read"]), flush=True)
            except UserError as error:
                is_a_sentence(str(error))
                assert "memory" not in str(error).lower().replace("memory)", "memory "), (name, odd, str(error))
                print(json.dumps([name, odd, str(error)]), flush=True)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if kept.exists():
        os.replace(kept, path)
load()  # nothing is left behind
"""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
WORDS = ("vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja", "tokenizer.model")
MODEL = ("config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json")
FURTHER = ("preprocessor_config.json", "README.md", "processor_config.json")
PARTS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
PARTS += ("tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "model_index.json")
PARTS += ("tokenizer/special_tokens_map.json", "unet/diffusion_pytorch_model.safetensors")
PARTS += ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
PARTS += ("feature_extractor/preprocessor_config.json", "unet/diffusion_pytorch_model.safetensors.index.json")
RUN = ("config.yaml", "status.json", ".hydra/hydra.yaml", "adapter/adapter_config.json", "adapter/README.md")
RUN += ("adapter/adapter_model.safetensors", "adapter/adapter_model.safetensors.sha256")
OUTPUTS = ("runs/bad/tracking.jsonl", "runs/bad/status.json", "sweeps/s/bad/status.json", "sweeps/s/bad/tracking.jsonl")
OUTPUTS += ("sweeps/s/sweep.json", "runs/bad/.lock", "ui.json")
NAMES = {
    "llama": (*MODEL, *TOKENIZER, *WORDS, *FURTHER),
    "bert": (*MODEL, *TOKENIZER, *WORDS),
    "pipeline": PARTS,
    "timm": ("config.json", "model.safetensors"),
    "run": RUN,
    "outputs": OUTPUTS,
}
# what every load reads, so that nothing else in its place may pass
READ = ("config.json", "model.safetensors", "tokenizer.json", "config.yaml", "adapter/adapter_config.json")
READ += ("adapter/adapter_model.safetensors", *PARTS[:4])


def good(kind: str, place: Path, empty_store: Path) -> Path:
    """A folder that loads."""
    if kind in ("llama", "bert"):
        return Path(shutil.copytree({"llama": LLAMA, "bert": BERT}[kind], place))
    if kind == "pipeline":
        stable_diffusion(place)
    elif kind == "timm":
        import timm
        from safetensors.torch import save_file

        place.mkdir()
        save_file(timm.create_model("resnet10t", num_classes=7).state_dict(), place / "model.safetensors")
        own = {"input_size": [3, 176, 176], "classifier": "fc", "first_conv": "conv1"}
        described = {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": own}
        (place / "config.json").write_text(json.dumps(described))
    elif kind == "run":
        run_folder(place, "lora")
    else:
        for folder in ("runs/good", "runs/bad", "sweeps/s/good", "sweeps/s/bad"):
            (place / folder).mkdir(parents=True)
            (place / folder / "status.json").write_text(json.dumps({"state": "finished", "metrics": {"best/acc": 1.0}}))
        shutil.copy(empty_store, place / "mlflow.db")
    return place


@pytest.mark.parametrize("kind", NAMES)
def test_no_odd_file_hangs_crashes_or_fills_the_memory(kind, tmp_path, run_env, empty_store) -> None:
    folder = good(kind, tmp_path / "good", empty_store)
    asked = [kind, str(folder), json.dumps(NAMES[kind]), json.dumps(list(ODD)), json.dumps(ROOM)]
    env = {key: value for key, value in run_env.items() if key != "MLFLOW_TRACKING_URI"}
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, *asked], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout[-1500:] + ended.stderr[-3000:]
    said = {(name, odd): what for name, odd, what in map(json.loads, ended.stdout.splitlines())}
    assert len(said) == len(NAMES[kind]) * len(ODD)
    passed = {pair for pair, what in said.items() if what == "not read"}
    assert not [pair for pair in passed if pair[0] in READ], passed
    if kind in ("llama", "bert", "pipeline"):  # whichever of them a library would open
        assert not [pair for pair in passed if pair[1] in NOT_FILES], passed
    record(
        "bad input", f"pipes, devices and JSON without bottom as every file of a folder ({kind})", f"{len(said)} files"
    )
