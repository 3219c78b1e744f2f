"""A trained adapter layer by layer: the size and spectrum of its update, its open ranks, the variation of its gates."""

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from foura.adapter.freeze import effective_rank, gate_statistics, spread_of
from foura.adapter.layer import FouraLayer
from foura.analysis.spectrum import (
    amplification,
    entropy_rank,
    low_frequency_share,
    spread,
    stable_rank,
    svd,
)
from foura.backbone import layer_size
from foura.files import write_csv
from foura.methods.method import Method
from foura.methods.peer import has_rank
from foura.methods.state import whole_layer

# of ΔW: analysis/spectrum.py
OF_UPDATE = ("delta_norm", "stable_rank", "entropy_rank", "spread", "amplification", "low_frequency")
# of a gate that depends on the input, over inputs
OF_INPUTS = ("gate_std", "open_std", "open_low", "open_high")
COLUMNS = ("layer", "in_features", "out_features", "parameters", "rank", "effective_rank", *OF_INPUTS, *OF_UPDATE)
TAIL = 0.05  # open_low and open_high leave so many inputs out on each side
SHOWN = 64  # singular values of a layer that spectra.csv keeps


def layer_table(
    model: nn.Module, method: Method, inputs: Iterable[Any], before: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """One row (see COLUMNS) per adapted layer, and its leading singular values under "singular_values".

    rank is the adapter's `r`; effective_rank the mean number of open gates over the inputs, or the rank of an ungated
    adapter; gate_std the standard deviation of a gate over inputs, averaged over ranks; open_std that of the number of open
    ranks, and open_low to open_high the range that all but a twentieth on each side have; delta_norm the Frobenius norm of
    ΔW as merging would apply it (at the mean gate for an adaptive one, which has no single ΔW). Values that a method does not
    have are None. A gated layer's row has the counts of `gate_statistics` under "open_counts".

    Args:
        model: the trained model; it is not changed.
        method: of the run.
        inputs: batches of model inputs, used for gates alone.
        before: {layer name: weight of the backbone}, where the method changes the frozen weights: ΔW is against them.
    """
    if not isinstance(model, PeftModel):
        return [_full_row(name, whole_layer(model.get_submodule(name)), weight) for name, weight in before.items()]
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    gated = any(isinstance(layer, FouraLayer) and layer.foura_gate for layer in layers.values())
    batches = list(inputs) if gated else []
    open_ranks = effective_rank(model, batches) if any(isinstance(x, FouraLayer) for x in layers.values()) else {}
    gates = gate_statistics(model, batches) if gated else {}
    config: Any = model.peft_config["default"]
    rows = []
    for name, layer in layers.items():
        full = whole_layer(layer)
        weight = before.get(name, full.get_base_layer().weight)
        if isinstance(full, FouraLayer):
            rows.append(_foura_row(name, full, weight, open_ranks[name], gates.get(name)))
        else:
            rank = getattr(full, "r", {}).get("default", config.r) if has_rank(type(config)) else None
            rows.append(_peer_row(name, full, weight, rank, method.open_ranks(full)))
    return rows


def mean_effective_rank(table: list[dict[str, Any]]) -> float | None:
    """Mean over layers of effective_rank, or None where the method has no rank."""
    ranks = [row["effective_rank"] for row in table if row["effective_rank"] is not None]
    return sum(ranks) / len(ranks) if ranks else None


def mean_open_std(table: list[dict[str, Any]]) -> float | None:
    """Mean over gated layers of open_std, or None without one."""
    spreads = [row["open_std"] for row in table if row["open_std"] is not None]
    return sum(spreads) / len(spreads) if spreads else None


def total_delta_norm(table: list[dict[str, Any]]) -> float | None:
    """Frobenius norm of all layers' ΔW together, or None where a layer has none."""
    norms = [row["delta_norm"] for row in table]
    return None if None in norms else math.sqrt(sum(norm**2 for norm in norms))


def write_table(table: list[dict[str, Any]], path: Path) -> None:
    """Write the table as CSV, with empty cells for None."""
    write_csv(table, path, COLUMNS)


def write_open_counts(table: list[dict[str, Any]], path: Path) -> None:
    """Write how many inputs open how many ranks as CSV, for gated layers: layer, open (ranks), inputs (above 0)."""
    rows = [
        {"layer": row["layer"], "open": number, "inputs": int(count)}
        for row in table
        for number, count in enumerate(row.get("open_counts", ()))
        if count
    ]
    write_csv(rows, path, ("layer", "open", "inputs"))


def write_spectra(table: list[dict[str, Any]], path: Path) -> None:
    """Write the leading singular values of every layer's ΔW as CSV: layer, index from 1, value."""
    rows = [
        {"layer": row["layer"], "index": number, "value": f"{value:.6g}"}
        for row in table
        for number, value in enumerate(row["singular_values"], 1)
    ]
    write_csv(rows, path, ("layer", "index", "value"))


@torch.no_grad()
def _foura_row(name: str, layer: FouraLayer, weight: Tensor, open_ranks: float, gates: Any) -> dict[str, Any]:
    rank = layer.r["default"]
    row = {**_sizes(name, layer), "rank": rank, "effective_rank": open_ranks}
    mean_gate = None
    if gates is not None:
        row |= _of_inputs(gates["default"])
        mean_gate = gates["default"]["mean"]
    return row | _of_update(layer.get_delta_weight("default", mean_gate), weight, rank)


@torch.no_grad()
def _peer_row(name: str, layer: Any, weight: Tensor, rank: int | None, open_ranks: float | None) -> dict[str, Any]:
    row = {**_sizes(name, layer), "rank": rank, "effective_rank": open_ranks}
    merged: Any = copy.deepcopy(layer)  # DoRA's update, for one, is not its low-rank part: only merging gives it
    if weight.is_floating_point():  # not of quantised ones
        merged.double()  # in float32 the sum's rounding would be part of the difference
    try:
        merged.merge()
    except (NotImplementedError, ValueError):  # PEFT's answers for an update that is not one of the weight
        return row | dict.fromkeys(OF_UPDATE) | {"singular_values": []}
    return row | _of_update(merged.get_base_layer().weight - weight, weight, rank)


def _full_row(name: str, layer: Any, before: Tensor) -> dict[str, Any]:
    in_features, out_features = layer_size(layer)
    delta = layer.weight.detach().cpu().float() - before.cpu().float()
    row = {"layer": name, "in_features": in_features, "out_features": out_features}
    row |= {"parameters": sum(p.numel() for p in layer.parameters()), "rank": None, "effective_rank": None}
    return row | dict.fromkeys(OF_INPUTS) | _of_update(delta, before, None)


def _sizes(name: str, layer: Any) -> dict[str, Any]:
    in_features, out_features = layer_size(layer.get_base_layer())
    return {
        "layer": name,
        "in_features": in_features,
        "out_features": out_features,
        "parameters": sum(p.numel() for key, p in layer.named_parameters() if not key.startswith("base_layer.")),
        **dict.fromkeys(OF_INPUTS),
    }


def _of_inputs(gates: dict[str, Tensor]) -> dict[str, Any]:
    """The columns about a gate's inputs, and the counts behind them; gates: of `gate_statistics`."""
    counts = gates["counts"].cpu()
    reached = counts.cumsum(0) / counts.sum()
    return {
        "gate_std": float(gates["std"].mean()),
        "open_std": spread_of(counts),
        "open_low": int((reached < TAIL).sum()),
        "open_high": int((reached < 1.0 - TAIL).sum()),
        "open_counts": counts.tolist(),
    }


def _of_update(delta: Tensor, weight: Tensor, rank: int | None) -> dict[str, Any]:
    """The columns about ΔW (out_features, in_features), over `rank` directions, or 16 for a method without a rank.

    Of a convolution, whose weight is (out_channels, in_channels, *kernel), a row is the flat kernel of an output channel;
    frequencies are those over input channels.
    """
    by_channel = delta.detach().cpu().float().movedim(1, -1).flatten(0, -2)
    delta, weight = delta.detach().cpu().float().flatten(1), weight.detach().cpu()
    weight = weight.flatten(1) if weight.dim() > 2 else weight  # quantised ones are left as they are
    found = svd(delta, rank)
    directions = min(rank or 16, len(found.S))
    same_shape = weight.shape == delta.shape  # not of quantised weights, which are stored packed
    return {
        "delta_norm": float(torch.linalg.matrix_norm(delta)),
        "stable_rank": stable_rank(found.S),
        "entropy_rank": entropy_rank(found.S),
        "spread": spread(found.S, directions),
        "amplification": amplification(weight, delta, found, directions) if same_shape else None,
        "low_frequency": low_frequency_share(by_channel),
        "singular_values": found.S[:SHOWN].tolist(),
    }
