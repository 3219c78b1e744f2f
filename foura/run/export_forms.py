"""The forms that a run's adapter can be exported in. Light on purpose: refused before torch is loaded."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from foura.atomic import require_new
from foura.errors import UserError
from foura.families import family_of
from foura.files import read_json
from foura.methods import method_of
from foura.run.run_config import read_config
from foura.untrusted import Folder

GATES = "foura.adapter.gates"  # the registry, which needs torch


def check_export(run: Path, to: str, out: Path, freeze: bool) -> tuple[DictConfig, bool]:
    """(the run's config, True if a gate that depends on the input has to be frozen).

    Raises:
        UserError: it is not a finished run, its adapter does not have the form, or something is at `out` already.
    """
    require_new(out)
    cfg = read_config(run)
    family, method = family_of(cfg), method_of(cfg)
    forms = ("peft", "merged", *family.save_as_lora)
    if to not in forms:
        raise UserError(
            f"--to {to} is not a form of adapters of backbone={family.name}; choose one of {', '.join(forms)}."
        )
    if to not in ("peft", "merged") and not method.exports(cfg.adapter):
        raise UserError(
            f"adapter={cfg.adapter.name} has an update that is not that of an ordinary LoRA: use --to peft or --to merged."
        )
    gated = to != "peft" and method.trained is None and _is_gated(run)
    if gated and not freeze:
        raise UserError("this adapter's gate depends on the input, so it is not a single update: add --freeze.")
    return cfg, gated


def _is_gated(run: Path) -> bool:
    """True if the adapter's gate depends on the input. Gates from outside are known once torch is loaded."""
    path = run / "adapter" / "adapter_config.json"
    gate = read_json(path, Folder(run)).get("gate")
    if GATES not in sys.modules:
        return gate == "adaptive"
    known = sys.modules[GATES].GATES
    return isinstance(gate, str) and gate in known and known[gate].depends_on_input
