"""The config that a finished run left in its folder. Light on purpose: commands check it before torch is loaded."""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from foura.config import check, read, register
from foura.errors import UserError
from foura.files import here, read_text
from foura.methods import method_of
from foura.untrusted import CONFIG, WEIGHTS, Folder

# keys that say what the machine of the run was to do, which is not for the folder of somebody else to say here
MACHINE: dict[str, Any] = {
    "trainer.strategy": "auto",
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.profiler": None,
}
MACHINE["dataset.num_workers"] = 0
PATHS = (
    "backbone.name",
    "backbone.pretrained",
    "dataset.path",
    "evaluation.pretraining_text",
)  # keys that may hold a path


def read_config(run: Path) -> DictConfig:
    """Load the config of a finished run's folder, for one process on this machine.

    Raises:
        UserError: it is not the folder of a finished run, or no run can have this config.
    """
    path = run / "config.yaml"
    if not Folder(run).has(path):
        raise UserError(f"{run} is not a finished run: it has no config.yaml.")
    register()
    cfg = read(path, Folder(run))
    try:
        check(cfg)
    except UserError as error:
        raise UserError(f"{path} is not the config of a run: {error}") from None
    adapter = run / "adapter" / ("model.safetensors" if method_of(cfg).trained else "adapter_config.json")
    if not Folder(run).has(adapter):
        raise UserError(f"{run} is not a finished run: it has no {adapter.relative_to(run)}.")
    Folder(run).file(adapter, WEIGHTS)
    _find_again(cfg, run)
    for key, value in MACHINE.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def _find_again(cfg: DictConfig, run: Path) -> None:
    """Make the config's relative paths absolute: they are relative to the folder that the run was started in.

    Hydra has noted it; of a run that was moved to where it is not, the folders above the run are tried.
    """
    noted = _noted_folder(run)
    started = here(noted) if noted else None
    places = run.absolute().parents if started is None else [started]
    for key in PATHS:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str) and value != "embedded" and not Path(value).is_absolute() and value[:1] != "~":
            found = next(
                (place for place in (here(str(folder / value)) for folder in places) if place is not None), None
            )
            if found is not None:
                OmegaConf.update(cfg, key, str(found))


def _noted_folder(run: Path) -> str:
    """The folder that a run was started in, from Hydra's notes; "" where they do not say."""
    try:
        text = read_text(run / ".hydra" / "hydra.yaml", Folder(run), CONFIG)
    except UserError:
        return ""
    noted = re.search(r"^ +cwd: (.+)$", text, flags=re.MULTILINE)  # unparsed: a file of anyone's
    return noted[1].strip().strip("'\"") if noted else ""
