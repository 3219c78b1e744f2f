"""What an adapter became, layer by layer: its update's size, its open ranks, how much its gates move with the input."""

import copy
import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from foura.adapter.freeze import effective_rank, gate_statistics
from foura.adapter.layer import FouraLayer
from foura.analysis.spectrum import (
    amplification,
    entropy_rank,
    low_frequency_share,
    singular_values,
    spread,
    stable_rank,
)
from foura.backbone import layer_size
from foura.methods.attach import whole_layer
from foura.methods.sora import gates as gates_of

COLUMNS: tuple[str, ...] = (
    "layer",
    "in_features",
    "out_features",
    "parameters",
    "rank",
    "effective_rank",
    "gate_std",
    "delta_norm",
)
COLUMNS += ("stable_rank", "entropy_rank", "spread", "amplification", "low_frequency")  # of ΔW: analysis/spectrum.py
SHOWN = 64  # singular values of a layer that spectra.csv keeps


def layer_table(model: nn.Module, images: Iterable[Tensor], before: dict[str, Tensor]) -> list[dict[str, Any]]:
    """One row (see COLUMNS) for each adapted layer, and its leading singular values under "singular_values".

    effective_rank is the mean number of open gates over the images, or the rank of an ungated adapter; gate_std the
    standard deviation of a gate over inputs, averaged over ranks; delta_norm the Frobenius norm of ΔW as merging would
    apply it (at the mean gate for an adaptive one, which has no single ΔW). Values that a method does not have are None.

    Args:
        images: batches of model inputs, used for gates alone.
        before: {layer name: weight before training}, for adapter=full.
    """
    if not isinstance(model, PeftModel):
        return [_full_row(name, whole_layer(model.get_submodule(name)), weight) for name, weight in before.items()]
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    gated = any(isinstance(layer, FouraLayer) and layer.foura_gate for layer in layers.values())
    batches = list(images) if gated else []
    open_ranks = effective_rank(model, batches) if any(isinstance(x, FouraLayer) for x in layers.values()) else {}
    gates = gate_statistics(model, batches) if gated else {}
    return [_row(name, whole_layer(layer), open_ranks, gates) for name, layer in layers.items()]


def mean_effective_rank(table: list[dict[str, Any]]) -> float | None:
    """Mean over layers, or None where the method has no rank."""
    ranks = [row["effective_rank"] for row in table if row["effective_rank"] is not None]
    return sum(ranks) / len(ranks) if ranks else None


def total_delta_norm(table: list[dict[str, Any]]) -> float:
    """Frobenius norm of all layers' ΔW together."""
    return math.sqrt(sum(row["delta_norm"] ** 2 for row in table))


def write_table(table: list[dict[str, Any]], path: Path) -> None:
    """The table as CSV, empty cells for what a method does not have."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table)


def write_spectra(table: list[dict[str, Any]], path: Path) -> None:
    """The leading singular values of every layer's ΔW as CSV: layer, index from 1, value."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("layer", "index", "value"))
        for row in table:
            writer.writerows((row["layer"], n, f"{value:.6g}") for n, value in enumerate(row["singular_values"], 1))


@torch.no_grad()
def _row(name: str, layer: Any, open_ranks: dict[str, float], gates: dict[str, Any]) -> dict[str, Any]:
    weight = layer.get_base_layer().weight
    row = {
        "layer": name,
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "parameters": sum(p.numel() for key, p in layer.named_parameters() if not key.startswith("base_layer.")),
        "rank": layer.r["default"] if hasattr(layer, "r") else None,
        "effective_rank": None,
        "gate_std": None,
    }
    if isinstance(layer, FouraLayer):
        row["effective_rank"] = open_ranks[name]
        mean_gate = None
        if name in gates:
            row["gate_std"] = float(gates[name]["default"]["std"].mean())
            mean_gate = gates[name]["default"]["mean"]
        return row | _of_update(layer.get_delta_weight("default", mean_gate), weight, row["rank"])
    closed = sum([int((gate == 0).sum()) for gate in gates_of(layer)])  # SoRA's
    if isinstance(layer, AdaLoraLayer):
        row["effective_rank"] = float((layer.lora_E["default"] != 0).sum())
    elif isinstance(layer, LoraLayer):
        row["effective_rank"] = float(layer.r["default"] - closed)
    merged: Any = copy.deepcopy(layer)  # DoRA's update is not its low-rank part: only merging says what it is
    merged.merge()
    return row | _of_update(merged.get_base_layer().weight - weight, weight, row["rank"])


def _full_row(name: str, layer: Any, before: Tensor) -> dict[str, Any]:
    in_features, out_features = layer_size(layer)
    delta = layer.weight.detach().cpu().float() - before.cpu().float()
    row = {
        "layer": name,
        "in_features": in_features,
        "out_features": out_features,
        "parameters": sum(p.numel() for p in layer.parameters()),
        "rank": None,
        "effective_rank": None,
        "gate_std": None,
    }
    return row | _of_update(delta, before, None)


def _of_update(delta: Tensor, weight: Tensor, rank: int | None) -> dict[str, Any]:
    """What COLUMNS say of ΔW; directions are counted up to the rank, or 16 where a method has none."""
    delta, weight = delta.detach().cpu().float(), weight.detach().cpu()
    values = singular_values(delta)
    directions = min(rank or 16, len(values))
    same_shape = weight.shape == delta.shape  # not of quantised weights, which are stored packed
    return {
        "delta_norm": float(torch.linalg.matrix_norm(delta)),
        "stable_rank": stable_rank(values),
        "entropy_rank": entropy_rank(values),
        "spread": spread(values, directions),
        "amplification": amplification(weight, delta, directions) if same_shape else None,
        "low_frequency": low_frequency_share(delta),
        "singular_values": values[:SHOWN].tolist(),
    }
