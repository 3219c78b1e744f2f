"""The metrics of runs, as one list of records: name, direction of improvement, unit, and where each is shown.

A metric of a family is logged per epoch as train_eval/<key> and val/<key>, and once as test/<key>. A key with a "/" is
logged under exactly that name.
"""

from dataclasses import dataclass

# where a metric is shown
EPOCH = "epoch"  # measured after every epoch: it has curves and a gap, and can select the epoch
TABLE = "table"  # the table at the end of a run
COMPARED = "compared"  # the report compares it between adapters
ANSWER = "answer"  # … and names the result at the top of the page
CURVE = "curve"  # the report draws it by epoch
COST = "cost"  # the report draws quality against it
UPDATE = "update"  # the report's table of means, as a property of the update


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        key: the <key> of val/<key> and test/<key>, or the whole name where it has a "/".
        label: its name in tables and figures.
        greater_is_better: the direction of improvement.
        unit: "" for a pure number.
        shown: the places that show it (the constants of this module).
        margin: the largest difference that counts as none, in the metric's unit; None if it has no default.
        margin_share: the same as a share of the baseline's value, for metrics without a fixed scale.
        counts_items: true for a share of the items of a split, which has steps of 1 / items.
    """

    key: str
    label: str
    greater_is_better: bool
    unit: str = ""
    shown: tuple[str, ...] = ()
    margin: float | None = None
    margin_share: float | None = None
    counts_items: bool = False

    @property
    def sign(self) -> float:
        """1 where greater is better, else -1."""
        return 1.0 if self.greater_is_better else -1.0

    @property
    def column(self) -> str:
        """The name under which its value on test data is logged; the key itself where that has a "/"."""
        return self.key if "/" in self.key else f"test/{self.key}"

    @property
    def heading(self) -> str:
        """The label with its unit, as in "peak memory, MB"."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def margin_key(self) -> str:
        """Its key in the config's `margins`, where a "/" would name a group."""
        return self.key.replace("/", "_")

    def gap(self, train: float, validation: float) -> float:
        """How much worse validation is than training: positive means overfitting, for every metric."""
        return self.sign * (train - validation)


_LISTED = (
    Metric("loss", "loss", False, shown=(EPOCH, COMPARED), margin_share=0.02),
    Metric("acc", "accuracy", True, shown=(EPOCH,), margin=0.01, counts_items=True),
    Metric("f1", "F1", True, shown=(EPOCH, COMPARED), margin=0.01),
    Metric("mcc", "Matthews correlation", True, shown=(EPOCH, COMPARED), margin=0.02),
    Metric("spearman", "Spearman correlation", True, shown=(EPOCH, COMPARED), margin=0.01),
    Metric("pearson", "Pearson correlation", True, shown=(EPOCH, COMPARED), margin=0.01),
    Metric("ppl", "perplexity", False, shown=(TABLE,), margin_share=0.02),
    Metric("kernel", "kernel distance", False, shown=(TABLE,)),
    Metric("frechet", "frechet", False, shown=(COMPARED,), margin_share=0.05),
    Metric("diversity", "diversity", True, shown=(TABLE, COMPARED, ANSWER), margin_share=0.05),
    Metric("copy_distance", "copy distance", True, shown=(TABLE, COMPARED, ANSWER), margin_share=0.05),
    Metric("legible", "legible", True, shown=(COMPARED,), margin=0.02),
    Metric("lpips", "LPIPS diversity", True, shown=(COMPARED,)),
    Metric("clip", "CLIP score", True, shown=(COMPARED,)),
    Metric("bpb", "bpb", False, "bits per byte", shown=(COMPARED,), margin_share=0.02),
    Metric("memorised/train", "memorised", False, shown=(TABLE, COMPARED, ANSWER), margin=0.02),
    Metric("drift/loss", "forgetting", False, shown=(TABLE, COMPARED)),
    Metric("adapter/open_ranks", "open ranks", True, shown=(CURVE,)),
    Metric("val/kernel", "kernel distance", False, shown=(CURVE,)),
    Metric("val/diversity", "diversity", True, shown=(CURVE,)),
    Metric("val/copy_distance", "copy distance", True, shown=(CURVE,)),
    Metric("adapter/effective_rank", "open ranks", True, shown=(UPDATE,)),
    Metric("adapter/delta_norm", "‖ΔW‖", False, shown=(UPDATE,)),
    Metric("layers/stable_rank", "stable rank", True, shown=(UPDATE,)),
    Metric("layers/entropy_rank", "entropy rank", True, shown=(UPDATE,)),
    Metric("layers/amplification", "amplification", True, shown=(UPDATE,)),
    Metric("layers/low_frequency", "low frequency", True, shown=(UPDATE,)),
    Metric("cost/trainable_params", "parameters", False, shown=(COST,)),
    Metric("cost/step_time_ms", "step", False, "ms", shown=(COST,)),
    Metric("cost/peak_memory_mb", "peak memory", False, "MB", shown=(COST,)),
    Metric("cost/step_gflops", "GFLOP per step", False, shown=(COST,)),
    Metric("cost/adapter_mb", "adapter", False, "MB", shown=(COST,)),
)
METRICS: dict[str, Metric] = {metric.key: metric for metric in _LISTED}


def shown(place: str) -> list[Metric]:
    """The metrics that a place shows, in order."""
    return [metric for metric in METRICS.values() if place in metric.shown]


def with_margins() -> list[Metric]:
    """The metrics that adapters can be compared by, whose margins a config may declare."""
    return [metric for metric in METRICS.values() if {EPOCH, TABLE, COMPARED} & set(metric.shown)]
