"""The schema of a run: every key that a user may set, its type, its default, its choices and its range.

Choices that are records (families, methods, transforms, gates) are read from their registries when a config is checked.
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Union

from omegaconf import MISSING

from foura.families import FAMILIES
from foura.methods import METHODS
from foura.metrics import EPOCH, shown, with_margins

DURATIONS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
SEEDS = 2**32  # as many as PyTorch Lightning and scikit-learn take


def _choice(default: Any, *choices: str) -> Any:
    return field(default=default, metadata={"choices": lambda: choices})


def _choice_of(default: Any, registry: Callable[[], Iterable[str]]) -> Any:
    return field(default=default, metadata={"choices": lambda: tuple(dict.fromkeys(registry()))})


def _names(registry: str, *shipped: str) -> Callable[[], Iterable[str]]:
    """The keys of a registry of the adapter, which needs torch: those that ship, until it is imported (by a plug-in, say)."""
    module, _, name = registry.partition(":")
    return lambda: getattr(sys.modules[module], name) if module in sys.modules else shipped


def _number(default: Any, at_least: float = -math.inf, above: float = -math.inf, below: float = math.inf) -> Any:
    return field(default=default, metadata={"at_least": at_least, "above": above, "below": below})


# a list of such items, which may also be given as a quoted text: `config.check` makes it a list
TEXTS, NUMBERS = {"items": str}, {"items": float}


def _accepted(default: Any, accepts: Callable[[Any], bool], told: str) -> Any:
    """A value of several types: `accepts` says which, and `told` names them in the message."""
    return field(default=default, metadata={"accepts": accepts, "told": told})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_batches(value: Any) -> bool:
    return _is_number(value) and (0 <= value <= 1 or (value > 1 and value % 1 == 0))


def _is_duration(value: Any) -> bool:
    """As Lightning's Timer takes it: text in the form DD:HH:MM:SS, or the keywords of datetime.timedelta."""
    if isinstance(value, str):
        return re.fullmatch(r"\d{1,6}:\d\d:\d\d:\d\d", value.strip()) is not None
    if not isinstance(value, Mapping) or not value:
        return False
    return all(unit in DURATIONS and _is_number(number) and 0 <= number < 1e6 for unit, number in value.items())


def _batches(default: Any) -> Any:
    told = "a share of the batches from 0.0 to 1.0, or a whole number of them"
    return _accepted(default, lambda value: (value is None and default is None) or _is_batches(value), told)


def since(version: str, spec: Any) -> Any:
    """A key that was added in `version`, after 0.1.0: at its default it does not enter `run_key`, so older runs keep theirs.

    Args:
        spec: the key's default, or the field that `field`, `_choice`, `_choice_of` or `_number` makes of one.
    """
    made = spec if isinstance(spec, Field) else field(default=spec)
    made.metadata = MappingProxyType({**made.metadata, "since": version})
    return made


def formerly(default: Any, former: Any) -> Any:
    """A key whose default was another one in 0.1.0: the present one enters `run_key` as the former, so older runs keep theirs.

    Only for keys that leave all other numbers of a run as they are.
    """
    return field(default=default, metadata={"formerly": former})


def defaults_since(schema: Any) -> dict[str, Any]:
    """{dotted key: default} of every key that `since` marks."""
    return {key: default for key, default, _ in _marked(schema, "since")}


def former_defaults(schema: Any) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (default, former default)} of every key that `formerly` marks."""
    return {key: (default, former) for key, default, former in _marked(schema, "formerly")}


def _marked(schema: Any, mark: str, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, default, value of the mark) of every key with this mark in its metadata."""
    for spec in fields(schema):
        if is_dataclass(spec.type):
            yield from _marked(spec.type, mark, f"{prefix}{spec.name}.")
        elif mark in spec.metadata:
            yield prefix + spec.name, getattr(schema(), spec.name), spec.metadata[mark]


@dataclass
class AdapterConfig:
    """The adapter. A method ignores the keys that it has no use for."""

    name: str = MISSING
    method: str = _choice_of(MISSING, lambda: METHODS)
    transform: str = _choice_of(
        "dct", _names("foura.adapter.transforms:TRANSFORMS", "dct", "dft", "identity", "random")
    )
    transform_seed: int = _number(0, at_least=0, below=2**63)  # PyTorch's generators take so many
    # frozen: adaptive in training, frozen after it
    gate: str = _choice_of("none", _names("foura.adapter.gates:GATES", "none", "adaptive", "frozen"))
    gate_scope: str = _choice(MISSING, "sequence", "token")
    gate_form: str = since(
        "0.2.0",
        _choice_of(
            "entropy",
            _names("foura.adapter.gate_forms:GATE_FORMS", "entropy", "sigmoid", "softmax", "hard", "hard_concrete"),
        ),
    )
    gate_sparsity: float = since("0.2.0", _number(0.0, at_least=0.0))  # λ: a price for open ranks
    dropout: float = _number(0.0, at_least=0.0, below=1.0)
    use_rslora: bool = False
    sparsity: float = _number(10.0, at_least=0.0)  # sora: λ, how fast gates close

    options: dict[str, Any] = field(default_factory=dict)  # further fields of the method's own PEFT config
    start_from: str | None = since(
        "0.2.0", None
    )  # the folder of an adapter or of a run, whose weights training begins at
    lr: float = _number(1e-3, above=0.0)
    gate_lr: float = _number(2e-2, above=0.0)  # a gate at the adapter's rate stays where it starts


@dataclass
class BackboneConfig:
    """The frozen model."""

    family: str = _choice_of(MISSING, lambda: FAMILIES)
    name: str = "embedded"
    pretrained: Union[bool, str] = True  # noqa: UP007  (OmegaConf reads this form)
    img_size: int | None = _number(None, at_least=1)  # None: the size that the model was made for
    target_modules: Any = field(default=None, metadata=TEXTS)  # None: the layers that the family adapts
    output_splits: dict[str, int] = field(default_factory=dict)
    gate_scope: str = _choice("sequence", "sequence", "token")  # what adapter.gate_scope follows
    torch_dtype: str | None = _choice(None, "float32", "bfloat16", "float16")  # of the frozen weights; None: float32
    attn_implementation: str | None = _choice(None, "eager", "sdpa", "flash_attention_2")
    load_in: str | None = _choice(None, "8bit", "4bit")  # quantised frozen weights
    gradient_checkpointing: bool = False
    compile: bool = since("0.2.0", False)  # torch.compile for the training steps
    text_encoder: bool = False  # unet: adapters on the text encoder too
    links: bool = since("0.2.0", False)  # follow links that lead out of the model's folder
    any_size: bool = since("0.2.0", False)  # take a config.json with numbers above any public model's
    # settings of a family's own, which its record lists
    options: dict[str, Any] = field(default_factory=dict, metadata={"since": "0.2.0"})


@dataclass
class ColumnsConfig:
    image: str = "image"
    label: str = "label"
    text: str = "text"
    text_pair: str | None = since("0.2.0", None)  # bert: the second text of a pair
    prompt: str = "prompt"
    completion: str = "completion"


@dataclass
class DatasetConfig:
    """The data, and how it is split."""

    name: str = MISSING
    source: str = _choice_of(MISSING, lambda: (source for family in FAMILIES.values() for source in family.sources))
    path: str | None = None
    links: bool = since("0.2.0", False)  # follow links that lead out of the data's folder
    any_size: bool = since("0.2.0", False)  # take files and images of any size, packed ones too
    config: str | None = since("0.2.0", None)  # hf: the configuration, of data that has several
    # {train: …, validation: …, test: …}: which split, folder or file each is; None: found by their names
    splits: Any = field(default=None, metadata={"since": "0.2.0"})
    # exact copies of held-out items in the training data: counted, left out of it, or refused
    duplicates: str = since("0.2.0", _choice("keep", "keep", "drop", "refuse"))
    too_long: str = since("0.2.0", _choice("cut", "cut", "drop", "refuse"))  # examples of more tokens than fit
    unreadable: str = since("0.2.0", _choice("refuse", "refuse", "drop"))  # images and text files
    background: str = since("0.2.0", "white")  # behind transparent pixels: a colour's name or '#rrggbb'
    # None: the family's default
    format: str | None = _choice_of(None, lambda: (form for family in FAMILIES.values() for form in family.formats))
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    classes: Any = field(default=None, metadata=TEXTS)  # None: all
    limit: int | None = _number(None, at_least=1)  # training items, drawn by class with the run's seed
    label_noise: float = _number(0.0, at_least=0.0, below=1.0)  # share of training labels made wrong
    template: str | None = None  # verbalizer: a prompt of the record's fields
    verbalizer: Any = field(default=None, metadata=TEXTS)  # … and a word for each label
    block_size: int = _number(128, at_least=2)  # tokens of a block or, at most, of an example
    style: str = _choice("fire", "plain", "fire", "ice")  # of the bundled letters
    prompt: str | None = None  # one caption for all pictures, as in DreamBooth
    repeats: int = _number(1, at_least=1)  # how often an epoch shows each training item
    epochs: int = _number(40, at_least=1)  # what trainer.max_epochs follows
    lr_scale: float = _number(1.0, above=0.0)  # optimizer.lr follows adapter.lr times this
    val_fraction: float = _number(0.2, above=0.0, below=1.0)  # where the data brings no validation split
    test_fraction: float = _number(0.2, above=0.0, below=1.0)  # where it brings no test split
    split_seed: int = _number(0, at_least=0, below=SEEDS)
    batch_size: int = _number(32, at_least=1)  # of all processes together
    eval_batch_size: int = _number(256, at_least=1)  # likewise
    train_eval_limit: int = _number(1000, at_least=1)  # the fixed part of train that is evaluated like validation
    eval_limit: int = _number(1_000_000, at_least=1)  # items of validation, and of test, at most
    num_workers: int = _number(0, at_least=0)


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up, then cosine or constant."""

    lr: float = _number(MISSING, above=0.0)
    gate_lr: float = _number(MISSING, above=0.0)
    # unet with text_encoder=true: of the text encoder's adapters without their gates; None: lr
    text_encoder_lr: float | None = _number(None, above=0.0)
    weight_decay: float = _number(0.0, at_least=0.0)
    schedule: str = _choice("cosine", "cosine", "constant")
    warmup: float = _number(0.1, at_least=0.0, below=1.0)  # share of all steps


@dataclass
class EvaluationConfig:
    """Measurements at the end of a run, beside loss and accuracy."""

    test: bool = since("0.2.0", True)  # false: the test data is not used (tuning runs)
    # forgetting: loss on the bundled backbone's pretraining data, after minus before; None: where that data is known
    drift: bool | None = formerly(None, False)
    # llama_small: a text file like what the backbone was pretrained on; forgetting is measured on it, of any backbone
    pretraining_text: str | None = since("0.2.0", None)
    passages: int = _number(32, at_least=1)  # llama_small: passages to complete, for memorisation
    passage_tokens: int = _number(16, at_least=1)  # … and how much of them
    prompts: Any = field(default=None, metadata=TEXTS)  # unet: None: the captions of the validation data
    max_prompts: int = _number(16, at_least=1)
    seeds_per_prompt: int = _number(4, at_least=2)
    strengths: Any = field(
        default_factory=lambda: [0.2, 0.4, 0.6, 0.8, 1.0], metadata=NUMBERS
    )  # the last one is reported
    sampling_steps: int = _number(12, at_least=1)
    guidance: float = _number(2.0, at_least=1.0)
    pictures_every: int = _number(10, at_least=0)  # epochs between pictures; 0: none
    judge_every: int = _number(0, at_least=0)  # epochs between measuring what is drawn; 0: at the end alone
    features: str = "colours"  # the space of distances: colours, glyphs, a timm model or folder
    lpips: bool = False  # diversity by LPIPS too, where torchvision's AlexNet weights are
    clip: str | None = None  # alignment by this CLIP model (hub id or folder)


@dataclass
class TrainerConfig:
    """Arguments of pytorch_lightning.Trainer, under its own names (those that can be written in YAML)."""

    accelerator: str = _choice("auto", "auto", "cpu", "gpu", "cuda", "mps", "tpu")
    strategy: str = _choice("auto", "auto", "ddp", "fully_shard")  # fully_shard: FSDP2
    devices: Any = "auto"
    num_nodes: int = _number(1, at_least=1)
    precision: str = _choice(
        "32-true", "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "transformer-engine"
    )
    fast_dev_run: Any = _accepted(False, lambda n: isinstance(n, int) and n >= 0, "true, false or a number of batches")
    max_epochs: int | None = _number(30, at_least=1)
    min_epochs: int | None = _number(None, at_least=0)
    max_steps: int = _number(-1, at_least=-1)  # -1: as many as the epochs have
    min_steps: int | None = _number(None, at_least=0)
    max_time: Any = _accepted(
        None, lambda value: value is None or _is_duration(value), "DD:HH:MM:SS, such as 00:01:30:00, or {hours: 1}"
    )
    limit_train_batches: Any = _batches(None)
    limit_val_batches: Any = _batches(None)
    limit_test_batches: Any = _batches(None)
    overfit_batches: Any = _batches(0.0)
    check_val_every_n_epoch: int = _number(1, at_least=1)
    log_every_n_steps: int | None = _number(50, at_least=1)
    enable_progress_bar: bool = True
    accumulate_grad_batches: int = _number(1, at_least=1)
    gradient_clip_val: float | None = _number(None, at_least=0.0)
    gradient_clip_algorithm: str = _choice("norm", "norm", "value")
    deterministic: Any = _accepted(None, lambda value: value in (None, True, False, "warn"), "true, false or warn")
    benchmark: bool | None = None
    inference_mode: bool = True
    profiler: str | None = _choice(None, "simple", "advanced", "pytorch", "xla")
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
    seed: int = _number(0, at_least=0, below=SEEDS)
    select: str = _choice_of("loss", lambda: (metric.key for metric in shown(EPOCH)))
    iso_parameters: bool = False  # the largest rank with no more parameters than LoRA has at `rank`
    sweep: str | None = None  # groups runs under one parent run
    tune: list[str] = field(default_factory=list)  # swept keys whose best value is chosen on validation data
    # of runs that choose it, by successive halving; []: it is chosen on the compared runs' own validation data
    tuning_seeds: list[int] = field(default_factory=lambda: [1000, 1001, 1002])
    # the largest difference that counts as none, of each metric that adapters are compared by; None: the metric's default
    margins: dict[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(metric.margin_key for metric in with_margins())
    )
    force: bool = False  # run again what is finished
    plan: bool = False  # say what a sweep would run, and run nothing
    outputs: str = "outputs"
