"""The name and the command of a run, as MLflow lists them."""

import shlex
from pathlib import Path, PurePath
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from foura.config import UNSCIENTIFIC, outputs_dir
from foura.errors import UserError
from foura.escape import redact
from foura.files import from_here
from foura.tracking.status import read_json
from foura.untrusted import CONFIG, Folder

ALWAYS = ("adapter", "rank", "seed")  # keys that have a place of their own in a name
CHOICES = ("backbone", "dataset", "trainer", "experiment")  # keys whose value says enough
MOST = 3  # further keys in a name, which a list of runs has to fit
LONGEST = 18  # characters of a value
CONF = Path(__file__).resolve().parents[2] / "conf"


def overrides_of(folder: Path) -> list[str]:
    """The overrides that a run was started with, as Hydra has noted them; [] where it has not."""
    inside, name = Folder(folder), ".hydra/overrides.yaml"
    if not inside.has(name):
        return []
    try:
        noted = yaml.safe_load(inside.read(name, CONFIG))  # nothing in it is computed: run folders are untrusted
    except (UserError, yaml.YAMLError):
        return []
    return [text for text in noted if isinstance(text, str)] if isinstance(noted, list) else []


def run_name(cfg: DictConfig, folder: Path, sweep: str | None) -> str:
    """The adapter, the rank, the seed, and what else was set; of a run of a sweep, only what varies in the sweep."""
    varied = None
    if sweep is not None:
        varied = read_json(outputs_dir(cfg) / "sweeps" / sweep / "sweep.json").get("varied")

    def shows(key: str) -> bool:
        return varied is None or key in str(varied).split(",")

    further = []
    for text in overrides_of(folder):
        key, _, value = redact(text).lstrip("+").partition("=")  # before it is cut: half a password is not found
        hidden = key in (*ALWAYS, *UNSCIENTIFIC) or key.startswith(("hydra", "margins"))
        if not hidden and shows(key):
            shown = PurePath(value).name[:LONGEST] if "/" in value and key != "backbone.name" else value[-LONGEST:]
            further.append(shown if key in CHOICES else f"{key.rpartition('.')[2]} {shown}")
    numbers = {"rank": f"r{cfg.rank}", "seed": f"seed {cfg.seed}"}
    return " ".join([cfg.adapter.name, *(text for key, text in numbers.items() if shows(key)), *further[:MOST]])


def config_flags(hydra: Any) -> list[str]:
    """Hydra's flags of a command line that say where its configuration is. hydra: the config's node of that name."""
    sources = [(source.provider, Path(source.path)) for source in hydra.runtime.config_sources]
    name = hydra.job.config_name
    # Hydra takes a relative path of this flag from train.py on
    flags = [f"--config-path={path}" for provider, path in sources if provider == "main" and path.resolve() != CONF]
    flags += [f"--config-dir={from_here(path)}" for provider, path in sources if provider == "command-line"]
    return flags if name in (None, "config") else [*flags, f"--config-name={name}"]


def command_of(folder: Path) -> str:
    """The command that repeats this run alone."""
    told = [
        text for text in overrides_of(folder) if text.lstrip("+").partition("=")[0] not in ("sweep", "force", "plan")
    ]
    flags = config_flags(HydraConfig.get()) if HydraConfig.initialized() else []
    return shlex.join(["python", "train.py", *flags, *told])
