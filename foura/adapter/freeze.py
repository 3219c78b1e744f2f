"""Gates on data: how many ranks they open, and freezing them to a fixed mask (paper sec. 3.4, "frozen mask")."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from foura.adapter.gate import OPEN
from foura.adapter.layer import FouraLayer
from foura.adapter.padding import masks_of_call

Layer = TypeVar("Layer")
# A batch: keyword arguments of the model, or its first positional argument, alone or as the first item of a tuple.
Batch = Mapping[str, Any] | tuple[Any, ...] | list[Any] | Tensor


def freeze_gates(model: nn.Module, batches: Iterable[Batch]) -> dict[str, int]:
    """Turn every active input-dependent gate into its calibrated mask, in place; the adapter can then merge and export.

    A rank stays open if its gate, averaged over all the data (and tokens), is above one half. The gate network is
    dropped, and the model's config of the adapter says gate="frozen" from then on; the FouraConfig object that the model
    was made with is left as it is.

    Args:
        batches: any iterable of model inputs. A mapping is passed as keywords; of a tuple or list only the first item is
            passed (so a DataLoader of (inputs, labels) works); anything else is passed as it is.

    Returns:
        {module name: number of open ranks}, for the layers that had a gate. A layer of which every rank closes adapts
        nothing from then on, which a warning says; the adapter stays valid.

    Raises:
        ValueError: no active adapter has an adaptive (input-dependent) gate, or there is no data.
    """
    gated = {name: layer for name, layer in foura_layers(model).items() if _active_gates(layer)}
    if not gated:
        raise ValueError("no active FouRA adapter of this model has an adaptive gate to freeze")
    statistics = gate_statistics(model, batches)
    kept: dict[str, int] = {}
    frozen: set[str] = set()
    for name, layer in gated.items():
        for adapter in _active_gates(layer):
            opened: list[bool] = (statistics[name][adapter]["mean"] > OPEN).tolist()
            del layer.foura_gate[adapter]
            with torch.inference_mode(False):  # else the mask could be used in inference mode alone from then on
                layer.foura_gate_mask[adapter] = torch.tensor(opened, device=layer.foura_A[adapter].device)
            kept[name] = sum(opened)
            frozen.add(adapter)
    for adapter in frozen:
        replace_config(model, adapter, gate="frozen", gate_sparsity=0.0)
    if closed := [name for name, ranks in kept.items() if not ranks]:
        warnings.warn(
            f"{len(closed)} of {len(kept)} layers have no rank whose mean gate is above {OPEN}: frozen, they adapt nothing "
            f"({', '.join(closed[:3])}{', …' if len(closed) > 3 else ''})",
            stacklevel=2,
        )
    return kept


def replace_config(model: nn.Module, adapter_name: str, **fields: Any) -> None:
    """Give the model a copy of an adapter's config with other values: the object itself is its caller's."""
    found = [getattr(module, "peft_config", {}) for module in model.modules()]
    copies: dict[int, Any] = {}
    for configs in {id(configs): configs for configs in found if adapter_name in configs}.values():
        config = configs[adapter_name]
        changed = copies.setdefault(id(config), copy.copy(config))
        vars(changed).update(fields)
        configs[adapter_name] = changed


def effective_rank(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """{layer: mean number of open ranks} of the active adapters over the data (paper sec. 4.2).

    A rank is open if its gate is above one half; the mean is over samples, and over tokens if gates are per token. For
    ungated adapters it is the rank, for frozen ones the number of ones in the mask. Batches as in `freeze_gates`.

    Raises:
        ValueError: the model has no active FouRA adapter, or an input-dependent gate got no data.
    """
    layers = {name: layer for name, layer in foura_layers(model).items() if layer.names()}
    if not layers:
        raise ValueError("this model has no active FouRA adapter")
    gated = any(_active_gates(layer) for layer in layers.values())
    statistics = gate_statistics(model, batches) if gated else {}
    result: dict[str, float] = {}
    for name, layer in layers.items():
        result[name] = 0.0
        for adapter in layer.names():
            if layer.depends_on_input(adapter):
                result[name] += float(statistics[name][adapter]["open"])
            elif adapter in layer.foura_gate_mask:
                result[name] += float(layer.foura_gate_mask[adapter].sum())
            else:
                result[name] += float(layer.r[adapter])
    return result


@torch.no_grad()
def gate_statistics(model: nn.Module, batches: Iterable[Batch]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Statistics of every active input-dependent gate over the data: {layer: {adapter: {"mean", "std", "open", "counts"}}}.

    Inputs are samples, or with scope "token" tokens.
    mean and std (r,): of each rank's gate over inputs; std near zero means a gate that ignores its input.
    open (): the mean number of ranks whose gate is above one half. counts (r + 1,): how many inputs open 0, 1, …, r ranks.

    Raises:
        ValueError: there is no data.
    """
    sums: dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]] = {}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _recording(model) as records:
            for batch in batches:
                _call(model, batch)
                for key, gates in records:
                    rows = gates.double().reshape(-1, gates.shape[-1])
                    total, square, counts = sums.get(key, (0.0, 0.0, 0.0))
                    sums[key] = total + rows.sum(0), square + rows.square().sum(0), counts + open_counts(rows)
                records.clear()
    finally:
        for module, training in modes.items():  # not model.train(): parts of it may be kept in evaluation
            module.training = training
    if not sums:
        raise ValueError("no data: the batches were empty, or the model never reached a gated layer")
    result: dict[str, dict[str, dict[str, Tensor]]] = {}
    for (name, adapter), (total, square, counts) in sums.items():
        mean = total / counts.sum()
        std = (square / counts.sum() - mean.square()).clamp(min=0).sqrt()
        opened = (counts * torch.arange(len(counts), device=counts.device)).sum() / counts.sum()
        result.setdefault(name, {})[adapter] = {"mean": mean, "std": std, "open": opened.float(), "counts": counts}
    return result


def open_counts(gates: Tensor) -> Tensor:
    """How many of the gate vectors (..., r) open 0, 1, …, r ranks, (r + 1,)."""
    rank = gates.shape[-1]
    return torch.bincount((gates > OPEN).sum(-1).reshape(-1), minlength=rank + 1).double()


def spread_of(counts: Tensor) -> float:
    """The standard deviation over inputs of the number of open ranks, from `counts` of `gate_statistics`."""
    ranks = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    share = counts / counts.sum()
    mean = (share * ranks).sum()
    return float((share * (ranks - mean).square()).sum().clamp(min=0).sqrt())


def foura_layers(model: nn.Module) -> dict[str, FouraLayer]:
    """{module name: layer} of every FouRA layer, without PEFT's wrapper prefix."""
    return named_layers(model, FouraLayer)


def named_layers(model: nn.Module, kind: type[Layer]) -> dict[str, Layer]:
    """{module name: module} of every module of a class, without PEFT's wrapper prefix."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, kind)
    }


def _active_gates(layer: FouraLayer) -> list[str]:
    return [name for name in layer.active_adapters if layer.depends_on_input(name)]


@contextmanager
def _recording(model: nn.Module) -> Iterator[list[tuple[tuple[str, str], Tensor]]]:
    """Within the context, all computed gates are appended to the list as ((layer, adapter), gates), without padding."""
    records: list[tuple[tuple[str, str], Tensor]] = []
    handles = []
    for name, layer in foura_layers(model).items():
        for adapter in _active_gates(layer):

            def keep(gate: Any, _inputs: Any, gates: Tensor, key: tuple[str, str] = (name, adapter)) -> None:
                mask = gate.mask_for(gates)
                records.append((key, gates.detach() if mask is None else gates.detach()[mask]))

            handles.append(layer.foura_gate[adapter].register_forward_hook(keep))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _call(model: nn.Module, batch: Batch) -> None:
    if isinstance(batch, Mapping):
        with masks_of_call(model, {}, (), batch):  # a model without PEFT's wrapper does not look for masks
            model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(batch[0])
    else:
        model(batch)
