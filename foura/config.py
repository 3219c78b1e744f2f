"""The schema of a run: every key that a user may set, its type, its range. Light on purpose: no torch in here.

`conf/*.yaml` holds the values, this file what is legal; a wrong key, choice or type ends the program before anything
heavy is imported. Types are checked by OmegaConf, choices and ranges by `check`, from each field's metadata.
"""

import dataclasses
import difflib
import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from foura.errors import UserError

FAMILIES = ("vit", "llama_small", "unet")
# what each family can be adapted to: where data comes from, and what form its records have (the first is the default)
SOURCES = {
    "vit": ("digits", "imagefolder", "hf"),
    "llama_small": ("stdlib", "text", "jsonl", "hf"),
    "unet": ("letters", "imagefolder", "hf"),
}
FORMATS = {
    "vit": ("classes",),
    "llama_small": ("text", "completion", "commonsense", "verbalizer"),
    "unet": ("captions",),
}
METRICS = {"vit": ("loss", "acc"), "llama_small": ("loss", "acc"), "unet": ("loss",)}
EMBEDDED = ("digits", "stdlib", "letters")  # sources that need no path
METHODS = ("foura", "lora", "dora", "adalora", "sora", "vera", "fourierft", "full", "head")


def _choice(default: Any, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


def _number(default: Any, at_least: float = -math.inf, above: float = -math.inf, below: float = math.inf) -> Any:
    return field(default=default, metadata={"at_least": at_least, "above": above, "below": below})


@dataclass
class AdapterConfig:
    """How the backbone is changed. Keys that a method has no use for are ignored by it."""

    name: str = MISSING
    method: str = _choice(MISSING, *METHODS)
    transform: str = _choice("dct", "dct", "dft", "identity", "random")
    transform_seed: int = _number(0, at_least=0)
    gate: str = _choice("none", "none", "adaptive", "frozen")  # frozen: adaptive in training, frozen after it
    gate_scope: str = _choice(MISSING, "sequence", "token")
    dropout: float = _number(0.0, at_least=0.0, below=1.0)
    use_rslora: bool = False
    sparsity: float = _number(10.0, at_least=0.0)  # sora: how fast gates close

    options: dict[str, Any] = field(default_factory=dict)  # further fields of a peer's own PEFT config
    lr: float = _number(1e-3, above=0.0)
    gate_lr: float = _number(2e-2, above=0.0)  # a gate at the adapter's rate stays where it starts


@dataclass
class BackboneConfig:
    """The frozen model."""

    family: str = _choice(MISSING, *FAMILIES)
    name: str = "embedded"
    pretrained: Union[bool, str] = True  # noqa: UP007  (OmegaConf reads this form)
    img_size: int | None = _number(None, at_least=1)  # None: the size that the model was made for
    target_modules: list[str] | None = None  # None: the linear layers of the family
    output_splits: dict[str, int] = field(default_factory=dict)
    gate_scope: str = _choice("sequence", "sequence", "token")  # what adapter.gate_scope follows
    torch_dtype: str | None = _choice(None, "float32", "bfloat16", "float16")  # of the frozen weights; None: float32
    attn_implementation: str | None = _choice(None, "eager", "sdpa", "flash_attention_2")
    load_in: str | None = _choice(None, "8bit", "4bit")  # quantised frozen weights
    gradient_checkpointing: bool = False
    text_encoder: bool = False  # unet: adapters on the text encoder too


@dataclass
class ColumnsConfig:
    image: str = "image"
    label: str = "label"
    text: str = "text"
    prompt: str = "prompt"
    completion: str = "completion"


@dataclass
class DatasetConfig:
    """What the backbone is adapted to, and how it is cut."""

    name: str = MISSING
    source: str = _choice(MISSING, *dict.fromkeys(source for sources in SOURCES.values() for source in sources))
    path: str | None = None
    format: str | None = _choice(None, *(form for forms in FORMATS.values() for form in forms))  # None: the family's
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    classes: list[str] | None = None  # None: all
    limit: int | None = _number(None, at_least=1)  # training items, drawn by class with the run's seed
    label_noise: float = _number(0.0, at_least=0.0, below=1.0)  # share of training labels made wrong
    template: str | None = None  # verbalizer: a prompt of the record's fields
    verbalizer: list[str] | None = None  # … and a word for each label
    block_size: int = _number(128, at_least=2)  # tokens of a block or, at most, of an example
    style: str = _choice("fire", "plain", "fire")  # of the embedded letters
    prompt: str | None = None  # one caption for all pictures, as in DreamBooth
    repeats: int = _number(1, at_least=1)  # how often an epoch shows each training item
    epochs: int = _number(40, at_least=1)  # what trainer.max_epochs follows
    lr_scale: float = _number(1.0, above=0.0)  # optimizer.lr follows adapter.lr times this
    val_fraction: float = _number(0.2, above=0.0, below=1.0)  # where the data brings no validation split
    test_fraction: float = _number(0.2, above=0.0, below=1.0)  # where it brings no test split
    split_seed: int = _number(0, at_least=0)
    batch_size: int = _number(32, at_least=1)
    eval_batch_size: int = _number(256, at_least=1)
    train_eval_limit: int = _number(1000, at_least=1)  # the fixed part of train that is evaluated like validation
    eval_limit: int = _number(1_000_000, at_least=1)  # items of validation, and of test, at most (text and captions)
    num_workers: int = _number(0, at_least=0)


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up, then cosine or constant."""

    lr: float = _number(MISSING, above=0.0)
    gate_lr: float = _number(MISSING, above=0.0)
    text_encoder_lr: float | None = _number(None, above=0.0)  # unet with text_encoder=true; None: lr
    weight_decay: float = _number(0.0, at_least=0.0)
    schedule: str = _choice("cosine", "cosine", "constant")
    warmup: float = _number(0.1, at_least=0.0, below=1.0)  # share of all steps


@dataclass
class EvaluationConfig:
    """What is measured once, at the end, beside loss and accuracy."""

    passages: int = _number(32, at_least=1)  # llama_small: passages to complete, for memorisation
    passage_tokens: int = _number(16, at_least=1)  # … and how much of them
    prompts: list[str] | None = None  # unet: None: the captions of the validation data
    max_prompts: int = _number(16, at_least=1)
    seeds_per_prompt: int = _number(4, at_least=2)
    strengths: list[float] = field(default_factory=lambda: [0.2, 0.4, 0.6, 0.8, 1.0])  # the last one is reported
    sampling_steps: int = _number(12, at_least=1)
    guidance: float = _number(2.0, at_least=1.0)
    pictures_every: int = _number(10, at_least=0)  # epochs between pictures; 0: none
    features: str = "colours"  # the space of distances: colours, glyphs, a timm model or folder
    lpips: bool = False  # diversity by LPIPS too, where torchvision's AlexNet weights are
    clip: str | None = None  # alignment by this CLIP model (hub id or folder)


@dataclass
class TrainerConfig:
    """Arguments of pytorch_lightning.Trainer, under its own names (those that can be written in YAML)."""

    accelerator: str = _choice("auto", "auto", "cpu", "gpu", "cuda", "mps", "tpu")
    strategy: str = "auto"
    devices: Any = "auto"
    num_nodes: int = _number(1, at_least=1)
    precision: str = _choice(
        "32-true", "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "transformer-engine"
    )
    fast_dev_run: Any = False
    max_epochs: int | None = _number(30, at_least=1)
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | None = None
    limit_train_batches: Any = None
    limit_val_batches: Any = None
    limit_test_batches: Any = None
    overfit_batches: Any = 0.0
    check_val_every_n_epoch: int | None = _number(1, at_least=1)
    log_every_n_steps: int | None = _number(50, at_least=1)
    enable_progress_bar: bool = True
    accumulate_grad_batches: int = _number(1, at_least=1)
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str = _choice("norm", "norm", "value")
    deterministic: Any = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: str | None = None
    detect_anomaly: bool = False
    sync_batchnorm: bool = False


@dataclass
class Config:
    """One run. `alpha` is the paper's strength: 1.0 means scaling 1 at every rank."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    rank: int = _number(16, at_least=1)
    alpha: float = _number(1.0, above=0.0)
    seed: int = _number(0, at_least=0)
    select: str = _choice("loss", "loss", "acc")  # the validation metric that picks the epoch
    sweep: str | None = None  # groups runs under one parent run
    outputs: str = "outputs"


# Keys that say where and under which name a run is kept, not what it computes.
UNSCIENTIFIC = ("sweep", "outputs", "trainer.enable_progress_bar", "trainer.profiler", "dataset.num_workers")


def register() -> None:
    """Make the schema and the resolvers of conf/ known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("foura.times", lambda a, b: float(a) * float(b), replace=True)
    OmegaConf.register_new_resolver("foura.folder", _folder, replace=True)
    OmegaConf.register_new_resolver("foura.sweep", _sweep_name, use_cache=True, replace=True)


def check(cfg: DictConfig) -> None:
    """Choices and ranges of every field of `Config`; that nothing is missing, and nothing there that nobody reads.

    Raises:
        UserError: the first value that is not legal, with the choices or the range.
    """
    _check_node(cfg, Config, "")
    _check_family(cfg)
    if cfg.dataset.source not in EMBEDDED and cfg.dataset.path is None:
        raise UserError(
            f"dataset.path is not set: dataset={cfg.dataset.name} needs dataset.path=… to say where the data is."
        )
    name = cfg.sweep
    if name is not None and not re.fullmatch(r"[\w.+-]{1,100}", name):
        raise UserError(f"sweep={name!r} must be 1 to 100 letters, digits, '.', '_', '+' or '-': it names a folder.")


def _check_family(cfg: DictConfig) -> None:
    """That backbone, data and gate go together."""
    family, data = cfg.backbone.family, cfg.dataset
    if data.source not in SOURCES[family]:
        raise UserError(
            f"dataset={data.name} does not go with backbone={family}. Its data: {', '.join(SOURCES[family])}."
        )
    if data.format is not None and data.format not in FORMATS[family]:
        raise UserError(
            f"dataset.format={data.format} does not go with backbone={family}; choose one of {', '.join(FORMATS[family])}."
        )
    if cfg.select not in METRICS[family]:
        raise UserError(f"select={cfg.select} is no metric of backbone={family}; choose {', '.join(METRICS[family])}.")
    gated = cfg.adapter.method == "foura" and cfg.adapter.gate != "none"
    if family == "llama_small" and gated and cfg.adapter.gate_scope == "sequence":
        raise UserError(
            "adapter.gate_scope=sequence looks at later tokens, which a causal language model must not: use token."
        )


def data_format(cfg: DictConfig) -> str:
    """The form of the data's records: as said, or what the family usually has."""
    return cfg.dataset.format or FORMATS[cfg.backbone.family][0]


def _check_node(node: DictConfig, schema: type, prefix: str) -> None:
    names = [spec.name for spec in dataclasses.fields(schema)]
    for name in node:
        if name not in names:
            raise UserError(_unknown_key(prefix + str(name)))
    for spec in dataclasses.fields(schema):
        key = prefix + spec.name
        if OmegaConf.is_missing(node, spec.name):
            raise UserError(f"{key} is not set, and has no default: add {key}=… to the command.")
        value = node[spec.name]
        if isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            _check_node(value, spec.type, key + ".")
        elif (
            "choices" in spec.metadata and value not in spec.metadata["choices"] and not (value is spec.default is None)
        ):
            raise UserError(f"{key}={value} is not known. {_suggest(str(value), spec.metadata['choices'])}")
        elif "at_least" in spec.metadata and value is not None:
            limits = spec.metadata
            if not (value >= limits["at_least"] and limits["above"] < value < limits["below"]):
                bounds = (("at least", limits["at_least"]), ("above", limits["above"]), ("below", limits["below"]))
                wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
                raise UserError(f"{key} must be {wanted}, got {value}.")


def scientific(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without the keys that cannot change a result, flat: {"adapter.lr": 0.001, ...}."""
    container = OmegaConf.to_container(cfg, resolve=True)
    return {key: value for key, value in sorted(_flatten(container)) if key not in UNSCIENTIFIC}


def run_key(cfg: DictConfig) -> str:
    """Hash of the scientific config (16 hex digits): equal keys are the same experiment."""
    text = repr(sorted(scientific(cfg).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def explain(error: Exception) -> str:
    """One sentence for what Hydra or OmegaConf found wrong in the command line or in conf/, with the valid choices."""
    text = str(error)
    cause = error.__cause__
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and not unknown.group(1).startswith("hydra"):
        return _unknown_key(unknown.group(1).split("@")[0])
    missing = re.search(r"Could not find '([^']+)/([^/']+)'", text)
    if missing:
        group, choice = missing.groups()
        found = re.findall(r"^\t(\w+)$", text, flags=re.MULTILINE)
        choices = [name for name in found if not name.startswith("for_")]  # a backbone's default, under another name
        return f"{group}={choice} is not known. {_suggest(choice, choices)}"
    if cause is not None and "full_key" in str(cause):
        first, key = str(cause).splitlines()[0], re.search(r"full_key: (\S+)", str(cause))
        return f"{key.group(1) if key else ''}: {first}."
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _unknown_key(key: str) -> str:
    """The sentence for a key that does not exist, with the keys that do at its level."""
    schema: Any = Config
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        fields = {spec.name: spec for spec in dataclasses.fields(schema)}
        nested = fields[part].type if part in fields else None
        if not (isinstance(nested, type) and dataclasses.is_dataclass(nested)):
            last, parents = part, parents[:depth]
            break
        schema = nested
    names = [spec.name for spec in dataclasses.fields(schema)]
    where = ".".join(parents)
    return f"{key} is not a key{' of ' + where if where else ''}. {_suggest(last, names)}"


def _suggest(word: str, choices: Any) -> str:
    close = difflib.get_close_matches(word, choices, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Valid choices: {', '.join(choices)}."


def _flatten(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(prefix.rstrip("."), node)]
    if not node:
        return [(prefix.rstrip("."), "{}")]
    return [pair for key, value in node.items() for pair in _flatten(value, f"{prefix}{key}.")]


def _folder(overrides: str) -> str:
    """A folder name for a list of overrides: the same overrides give the same folder, on every machine."""
    name = re.sub(r"[^\w.,=+-]+", "_", overrides) or "default"
    if len(name) <= 120 and name == (overrides or "default"):
        return name
    return f"{name[:100]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


def _sweep_name(given: str | None, overrides: list[str]) -> str:
    """The name of a sweep: as given, or made from its overrides, so that the same command is the same sweep.

    Hydra copies cached resolver values from the sweep to its jobs; that is how a job learns a name made here.
    """
    if given:
        return given
    return "sweep-" + hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]


def outputs_dir(cfg: DictConfig) -> Path:
    """The absolute folder that everything made goes to."""
    return Path(cfg.outputs).expanduser().absolute()
