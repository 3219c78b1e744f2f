"""Untrusted files to try: lying headers of safetensors, odd fields of an adapter config; and a run folder to put them into."""

import json
import struct
from pathlib import Path

from omegaconf import OmegaConf

from foura.config import check
from foura.families import build
from foura.methods.attach import attach
from foura.methods.state import adapter_parameters
from foura.run.artifacts import save_adapter
from foura.schema import BackboneConfig
from tests.helpers.config import composed

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


def config(family: str, **fields):
    return OmegaConf.structured(BackboneConfig(family=family, **fields))


def header(content: object, length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(shape: list, dtype: str = "F32", where: tuple = (0, 4)) -> dict:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": list(where)}}


HEADERS = [
    b"",
    b"\xff" * 8,
    header({}, 2**63 - 1),
    header({}, 10**8 + 1),
    header(tensor([1], where=(0, 2**62))) + bytes(4),
    header(tensor([2**40, 2**40])) + bytes(4),
    header(tensor([-1])) + bytes(4),
    header(tensor([1], "F8_E8M0", (0, 1))) + bytes(1),
    header(tensor([1], "EVIL")) + bytes(4),
    header(tensor([1])) + bytes(4),
    header({"__metadata__": {"a": {"b": 1}}}),
    header([[]] * 10),
    header({"../../x": tensor([1])["x"]}) + bytes(4),
    struct.pack("<Q", 100_000) + b"[" * 100_000,
]


def run_folder(folder: Path, adapter: str, *overrides: str) -> Path:
    """The config and the adapter as a run leaves them, without the training."""
    cfg = composed(f"adapter={adapter}", "rank=4", "dataset.limit=20", *overrides)
    check(cfg)
    parts = build(cfg)
    model = attach(parts.backbone, cfg, steps=10)
    folder.mkdir()
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    save_adapter(parts.task(model), adapter_parameters(model), folder)
    for checksum in folder.glob("adapter/*.sha256"):
        checksum.unlink()  # whoever changes a file can change it too
    return folder
