"""FouraConfig: a FouRA adapter as a PEFT configuration."""

import difflib
import functools
import warnings
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from peft import PeftConfig

from foura.adapter.checks import check_choice, check_numbers, check_patterns, check_price, check_types
from foura.adapter.gate import GATE_SCOPES
from foura.adapter.gate_forms import GATE_FORMS
from foura.adapter.gates import GATES
from foura.adapter.peft_type import foura_peft_type
from foura.adapter.transforms import TRANSFORMS

Config = TypeVar("Config")
BIASES = ("none", "all", "foura_only")
CAUSAL = "CAUSAL_LM"
LOOKS_AHEAD = (
    "gate_scope='sequence' looks at all tokens of a sample, so in a model that generates text later tokens change earlier "
    "outputs; use gate_scope='token' (the default with task_type='CAUSAL_LM')."
)


def _explains_unknown_fields(config: type[Config]) -> type[Config]:
    """Class decorator: an unknown field is answered with the one that was probably meant."""
    init = config.__init__

    @functools.wraps(init)
    def checked(self: Any, *values: Any, **named: Any) -> None:
        known = [spec.name for spec in fields(config)]  # type: ignore[arg-type]
        for name in named:
            if name not in known:  # PEFT looks for this phrase, and then leaves out what newer versions have written
                raise TypeError(f"{config.__name__} got an unexpected keyword argument {name!r}{_meant(name, known)}")
        init(self, *values, **named)

    config.__init__ = checked  # type: ignore[method-assign]
    return config


@_explains_unknown_fields
@dataclass
class FouraConfig(PeftConfig):
    """Fourier Low-Rank Adaptation: y = W0 x + s · F⁻¹ B (g(z) ⊙ z), z = A F x (Borse et al., NeurIPS 2024, eq. 5).

    The defaults have no gate: the paper's method is `FouraConfig(gate="adaptive")`. Every field that PEFT's LoraConfig has
    too means the same here, so that equal numbers mean equal strength.

    Args:
        r: rank: rows of A.
        target_modules: names, a regex, or "all-linear": the layers to adapt.
        exclude_modules: names or a regex of layers to leave out.
        foura_alpha: strength; scaling = foura_alpha / r, or / sqrt(r) with use_rslora.
        foura_dropout: dropout on the adapter's input.
        transform: F on the embedding axis: "dct" (orthonormal DCT-II), "dft" (rfft/irfft, complex A and B), "identity"
            (plain LoRA, a control), "random" (a seeded orthonormal basis, a control), or a name added to
            foura.adapter.transforms.TRANSFORMS.
        transform_seed: seed of the basis for transform="random".
        gate: "none", "adaptive" (an input-dependent soft mask over the ranks; our reconstruction of eq. 4), "frozen" (the
            calibrated mask, one bit per rank), or a name added to foura.adapter.gates.GATES.
        gate_form: how an adaptive gate comes out of its network's scores: "entropy", "sigmoid", "softmax" (over the ranks),
            "hard" (straight-through), "hard_concrete" (L0), or a name added to foura.adapter.gate_forms.GATE_FORMS, which
            describes them. An adapter that was saved without this field has "entropy".
        gate_sparsity: λ ≥ 0, a price for open ranks: while training, λ times the mean gate of each layer is added to the
            loss, by its gradient alone (`Gate.priced` says what scaled losses do to it). 0: none.
        gate_scope: "sequence": one gate per sample; "token": one per token, which causal models need. Left out: "token" for
            task_type="CAUSAL_LM", else "sequence".
        output_splits: pattern -> n: layers whose output holds n projections, such as {"qkv": 3}.
        use_rslora: scale by 1/sqrt(r) instead of 1/r.
        fan_in_fan_out: the layer stores its weight as (in, out).
        bias: biases to train: "none", "all" or "foura_only".
        init_weights: True: B = 0, an exact no-op. False: random B, for tests.
        modules_to_save: modules trained and saved whole, such as a classifier head.
        layers_to_transform: indices of the layers to adapt.
        layers_pattern: name of the layer list that layers_to_transform counts in.
        rank_pattern: pattern -> its own r.
        alpha_pattern: pattern -> its own alpha.
        task_type, inference_mode, base_model_name_or_path, revision, peft_type, auto_mapping, peft_version: as in every
            PeftConfig.

    Raises:
        TypeError: a field of the wrong type, as in the config of a damaged checkpoint, or an unknown one.
        ValueError: a rank below 1, a choice that does not exist, a price that is negative or not finite or has no gate to
            pay it, layer patterns that contradict each other, or a pattern whose matching time is unbounded.
    """

    r: int = 8
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    foura_alpha: float = 8
    foura_dropout: float = 0.0
    transform: Literal["dct", "dft", "identity", "random"] | str = "dct"
    transform_seed: int = 0
    gate: Literal["none", "adaptive", "frozen"] | str = "none"
    gate_scope: Literal["", "sequence", "token"] = ""
    gate_form: Literal["entropy", "sigmoid", "softmax", "hard", "hard_concrete"] | str = "entropy"
    gate_sparsity: float = 0.0
    output_splits: dict[str, int] = field(default_factory=dict)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "foura_only"] = "none"
    init_weights: bool = True
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = foura_peft_type()
        check_types(self)
        self.target_modules = set(self.target_modules) if isinstance(self.target_modules, list) else self.target_modules
        self.exclude_modules = (
            set(self.exclude_modules) if isinstance(self.exclude_modules, list) else self.exclude_modules
        )
        check_choice("transform", self.transform, TRANSFORMS)
        check_choice("gate", self.gate, GATES)
        causal = self.task_type == CAUSAL
        self.gate_scope = self.gate_scope or ("token" if causal else "sequence")
        check_choice("gate_scope", self.gate_scope, GATE_SCOPES)
        check_choice("gate_form", self.gate_form, GATE_FORMS)
        check_price(self.gate_sparsity, self.gate, self.gate_depends_on_input)
        check_choice("bias", self.bias, BIASES)
        if not 0.0 <= self.foura_dropout < 1.0:
            raise ValueError(f"foura_dropout must be in [0, 1), got {self.foura_dropout}")
        check_numbers(self.r, self.rank_pattern, self.foura_alpha, self.alpha_pattern)
        check_patterns(self)
        if causal and looks_ahead(self):
            warnings.warn(LOOKS_AHEAD, stacklevel=3)
        # PEFT's own wording, which its users (and tests) know
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` cannot be used when `target_modules` is a str.")
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise ValueError("`layers_pattern` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified. ")

    @property
    def gate_depends_on_input(self) -> bool:
        """True if the adapter has no single ΔW: it is trained with a gate that merging refuses until it is frozen."""
        return GATES[self.gate].depends_on_input


def _meant(name: str, known: list[str]) -> str:
    """The field that was probably meant: LoRA's names are FouRA's with another beginning."""
    own = name.replace("lora_", "foura_")
    for guess in (own, f"foura_{name}", own.removeprefix("foura_"), own.replace("foura_", "", 1)):
        if guess in known:
            return f"; did you mean {guess}?"
    close = difflib.get_close_matches(own, known, n=1) or (["r"] if "rank" in name else [])
    return f"; did you mean {close[0]}?" if close else ""


def heeds_padding(config: PeftConfig) -> bool:
    """True for an adapter that has to know which tokens are padding: by its gates, or by what they pay for."""
    return looks_ahead(config) or (isinstance(config, FouraConfig) and config.gate_sparsity > 0.0)


def looks_ahead(config: PeftConfig) -> bool:
    """True for an adapter whose gate depends on all tokens of a sample, later ones too."""
    return isinstance(config, FouraConfig) and config.gate_depends_on_input and config.gate_scope == "sequence"
