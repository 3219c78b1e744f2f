"""The model card of a run's adapter: README.md beside its weights."""

import math
from collections.abc import Mapping
from pathlib import Path

import yaml
from omegaconf import DictConfig

from foura import __version__
from foura.atomic import write_text
from foura.data.run_data import RunData
from foura.escape import printable, redact
from foura.families import family_of
from foura.families.timm_models import local_name
from foura.methods import method_of
from foura.run.facts import classes_of, pretraining
from foura.run.naming import command_of

LICENCE = (
    "Not set: choose one for this adapter, and put it into the field `license` above. The licences of the base model and of "
    "the training data hold beside it."
)
WITHOUT = (
    "PEFT has no entry points for methods of other packages, so without `import foura` it ends in `KeyError: 'FOURA'`. Where "
    "foura is not installed, use an ordinary LoRA that computes the same: `foura export RUN --to lora OUT` writes one, with "
    "`--freeze` of an adaptive gate."
)
FROM_RUN = """from pathlib import Path
from foura.run.load import load_adapter, read_config, rebuild

run = Path(RUN)
cfg = read_config(run)
model = load_adapter(rebuild(run, cfg).model, run, cfg).eval()
"""


def write_card(cfg: DictConfig, folder: Path, facts: str, metrics: Mapping[str, float], data: RunData) -> None:
    """Write the card of a finished run, in place of PEFT's template.

    Args:
        folder: of the run. facts: of `run.facts`. metrics: the run's final metrics. data: its data.
    """
    text = "\n".join(
        [*_header(cfg), *_about(cfg, folder, facts), *_results(cfg, metrics), *_use(cfg, classes_of(cfg, data))]
    )
    shown = "\n".join(printable(line) for line in redact(text).split("\n"))
    write_text(folder / "adapter" / "README.md", shown + "\n")


def _base(cfg: DictConfig) -> str:
    return "foura/bundled" if cfg.backbone.name == "embedded" else local_name(str(cfg.backbone.name))


def _header(cfg: DictConfig) -> list[str]:
    """The fields that the Hugging Face hub reads."""
    tags = dict.fromkeys([cfg.adapter.name, "foura", family_of(cfg).name])
    fields = {"library_name": "peft", "license": "unknown", "datasets": _yaml([cfg.dataset.name])}
    if cfg.backbone.name != "embedded":
        fields["base_model"] = _quoted(_base(cfg))
    return [
        "---",
        *(f"{key}: {value}" for key, value in fields.items()),
        "tags:",
        *(f"- {_yaml(tag)}" for tag in tags),
        "---",
    ]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _yaml(value: str | list[str]) -> str:
    """A name, or a list of names, on one line of YAML: names may have anything in them."""
    shown = printable(value) if isinstance(value, str) else [printable(one) for one in value]
    return yaml.safe_dump(shown, default_flow_style=True, width=math.inf, allow_unicode=True).split("\n")[0]


def _about(cfg: DictConfig, folder: Path, facts: str) -> list[str]:
    data = cfg.dataset.name if cfg.dataset.path is None else f"{cfg.dataset.name}, {cfg.dataset.path}"
    rows = {
        "method": f"`adapter={cfg.adapter.name}`, rank {cfg.rank}, adapter scale {cfg.alpha:g}",
        "base model": pretraining(cfg),
        "data": data,
        "items": facts,
        "seed": cfg.seed,
        "learning rate": f"{cfg.optimizer.lr:g}",
        "command": f"`{command_of(folder)}`",
        "written by": f"foura {__version__}",
        "licence": LICENCE,
    }
    return [
        "",
        f"# {printable(cfg.adapter.name)}, rank {cfg.rank}, on {cfg.dataset.name}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {printable(str(value)).replace('|', '/')} |" for key, value in rows.items()),
    ]


def _results(cfg: DictConfig, metrics: Mapping[str, float]) -> list[str]:
    """Validation and test metrics of the saved epoch."""
    measured = "test/" if cfg.evaluation.test else "best/"
    keys = [key.removeprefix(measured) for key in metrics if key.startswith(measured) and "/train_" not in key]
    rows = []
    for key in keys:
        found = (metrics.get(f"{part}/{key}") for part in ("best", "test"))
        rows.append(f"| {key} | {' | '.join('–' if value is None else f'{value:.4g}' for value in found)} |")
    used = "used once" if cfg.evaluation.test else "not used (evaluation.test=false)"
    intro = f"Of the epoch selected by `{cfg.select}` on validation data; the test data was {used}."
    return ["", "## Results", "", intro, "", "| metric | validation | test |", "|---|---|---|", *rows]


def _use(cfg: DictConfig, classes: int) -> list[str]:
    """How to load it: from the run's folder, on the user's own copy of the base, and without foura."""
    lines = ["", "## Use"]
    if method_of(cfg).trained is not None:
        return [
            *lines,
            "",
            "`foura export RUN --to merged OUT` writes the whole model for the library that it came from.",
        ]
    lines += [
        "",
        "From the run's folder (`RUN`), with the framework installed:",
        "",
        "```python",
        FROM_RUN.rstrip(),
        "```",
    ]
    family = family_of(cfg)
    if cfg.backbone.name != "embedded" and family.inference:
        values = {"BASE": _base(cfg), "ADAPTER": "adapter", "LORA": "as_lora", "CLASSES": classes or 1}
        names = "\n".join(f"{name} = {value!r}" for name, value in values.items() if name in family.inference)
        lines += ["", "On your own copy of the base model:", "", "```python", names, family.inference.rstrip(), "```"]
    if method_of(cfg).peft_type(cfg.adapter) == "FOURA":
        lines += ["", WITHOUT]
    return lines
