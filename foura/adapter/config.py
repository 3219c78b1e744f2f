"""FouraConfig: what a FouRA adapter is, as a PEFT configuration."""

import sys
from dataclasses import dataclass, field

from peft import PeftConfig

from foura.adapter.checks import check_patterns, check_types
from foura.adapter.gates import GATE_SCOPES, GATES
from foura.adapter.peft_type import foura_peft_type
from foura.adapter.transforms import TRANSFORMS


@dataclass
class FouraConfig(PeftConfig):
    """Fourier Low-Rank Adaptation: y = W0 x + s · F⁻¹ B (g(z) ⊙ z), z = A F x (Borse et al., NeurIPS 2024, eq. 5).

    Every field has PEFT's LoRA meaning where LoRA has it, so that equal numbers mean equal strength.

    Raises:
        TypeError: a field of another type, as in a checkpoint's config that was damaged.
        ValueError: a rank below 1, a choice that does not exist, layer patterns that contradict each other, or a pattern
            that could take for ever to match.
    """

    r: int = field(default=8, metadata={"help": "Rank: rows of A."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names, a regex, or 'all-linear': the layers to adapt."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names or a regex of layers to leave out."}
    )
    foura_alpha: float = field(
        default=8, metadata={"help": "Strength; scaling = foura_alpha / r, or / sqrt(r) with use_rslora."}
    )
    foura_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    transform: str = field(
        default="dct",
        metadata={
            "help": "F on the embedding axis: 'dct' (orthonormal DCT-II), 'dft' (rfft/irfft, complex A and B), "
            "'identity' (plain LoRA, a control) or 'random' (a seeded orthonormal basis, a control)."
        },
    )
    transform_seed: int = field(default=0, metadata={"help": "Seed of the basis for transform='random'."})
    gate: str = field(
        default="none",
        metadata={
            "help": "'none', 'adaptive' (an input-dependent soft mask over the ranks; our reconstruction of eq. 4) "
            "or 'frozen' (the calibrated mask, one bit a rank)."
        },
    )
    gate_scope: str = field(
        default="sequence",
        metadata={"help": "'sequence': one gate a sample; 'token': one a token (causal models need it)."},
    )
    output_splits: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "Pattern -> n: layers whose output holds n projections, e.g. {'qkv': 3}."},
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by 1/sqrt(r) instead of 1/r."})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "The layer stores its weight as (in, out)."})
    bias: str = field(default="none", metadata={"help": "Biases to train: 'none', 'all' or 'foura_only'."})
    init_weights: bool = field(
        default=True, metadata={"help": "True: B = 0, an exact no-op. False: random B, for tests."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole, such as a classifier head."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the layers to adapt."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the layer list that layers_to_transform counts in."}
    )
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Pattern -> its own r."})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "Pattern -> its own alpha."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = foura_peft_type()
        check_types(self)
        self.target_modules = set(self.target_modules) if isinstance(self.target_modules, list) else self.target_modules
        self.exclude_modules = (
            set(self.exclude_modules) if isinstance(self.exclude_modules, list) else self.exclude_modules
        )
        for name, choices in (
            ("transform", TRANSFORMS),
            ("gate", GATES),
            ("gate_scope", GATE_SCOPES),
            ("bias", ("none", "all", "foura_only")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; choose one of {', '.join(choices)}")
        if not 0.0 <= self.foura_dropout < 1.0:
            raise ValueError(f"foura_dropout must be in [0, 1), got {self.foura_dropout}")
        for where, rank in {"r": self.r, **{f"rank_pattern[{k!r}]": v for k, v in self.rank_pattern.items()}}.items():
            if rank <= 0:
                raise ValueError(f"{where} must be a positive integer, got {rank}")
        alphas = {
            "foura_alpha": self.foura_alpha,
            **{f"alpha_pattern[{k!r}]": v for k, v in self.alpha_pattern.items()},
        }
        for where, alpha in alphas.items():
            if not abs(alpha) <= sys.float_info.max:  # NaN neither
                raise ValueError(f"{where} must be a finite number, got {alpha}")
        check_patterns(self)
        # PEFT's own wording, which its users (and tests) know
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` cannot be used when `target_modules` is a str.")
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise ValueError("`layers_pattern` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified. ")
