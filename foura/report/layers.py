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
from foura.backbones.backbone import layer_size
from foura.sora import gates as gates_of

COLUMNS = ("layer", "in_features", "out_features", "parameters", "rank", "effective_rank", "gate_std", "delta_norm")


def layer_table(model: nn.Module, images: Iterable[Tensor], before: dict[str, Tensor]) -> list[dict[str, Any]]:
    """One row (see COLUMNS) for each adapted layer.

    effective_rank is the mean number of open gates over the images, or the rank of an ungated adapter; gate_std the
    standard deviation of a gate over inputs, averaged over ranks; delta_norm the Frobenius norm of ΔW as merging would
    apply it (at the mean gate for an adaptive one, which has no single ΔW). Values that a method does not have are None.

    Args:
        images: batches of model inputs, used for gates alone.
        before: {layer name: weight before training}, for adapter=full.
    """
    if not isinstance(model, PeftModel):
        return [_full_row(name, model.get_submodule(name), weight) for name, weight in before.items()]
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    gated = any(isinstance(layer, FouraLayer) and layer.foura_gate for layer in layers.values())
    batches = list(images) if gated else []
    open_ranks = effective_rank(model, batches) if any(isinstance(x, FouraLayer) for x in layers.values()) else {}
    gates = gate_statistics(model, batches) if gated else {}
    return [_row(name, layer, open_ranks, gates) for name, layer in layers.items()]


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
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)


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
        row["delta_norm"] = float(torch.linalg.matrix_norm(layer.get_delta_weight("default", mean_gate).float()))
        return row
    closed = sum([int((gate == 0).sum()) for gate in gates_of(layer)])  # SoRA's
    if isinstance(layer, AdaLoraLayer):
        row["effective_rank"] = float((layer.lora_E["default"] != 0).sum())
    elif isinstance(layer, LoraLayer):
        row["effective_rank"] = float(layer.r["default"] - closed)
    merged: Any = copy.deepcopy(layer)  # DoRA's update is not its low-rank part: only merging says what it is
    merged.merge()
    row["delta_norm"] = float(torch.linalg.matrix_norm((merged.get_base_layer().weight - weight).float()))
    return row


def _full_row(name: str, layer: Any, before: Tensor) -> dict[str, Any]:
    in_features, out_features = layer_size(layer)
    delta = layer.weight.detach().cpu().float() - before.float()
    return {
        "layer": name,
        "in_features": in_features,
        "out_features": out_features,
        "parameters": sum(p.numel() for p in layer.parameters()),
        "rank": None,
        "effective_rank": None,
        "gate_std": None,
        "delta_norm": float(torch.linalg.matrix_norm(delta)),
    }
