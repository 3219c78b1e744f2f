"""Puts an adapter of the config on a backbone: every choice of conf/adapter becomes a PEFT config here."""

import bisect
import copy
import dataclasses
import math
from typing import Any

import peft
import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from foura.adapter import FouraConfig
from foura.backbone import LINEAR, Backbone, describe_linear_layers, layer_size
from foura.errors import UserError
from foura.methods.sora import add_gates, shrink

RANKED = ("foura", "lora", "dora", "adalora", "sora")  # methods whose rank is the rank of a layer's update


def attach(backbone: Backbone, cfg: DictConfig, steps: int) -> nn.Module:
    """The backbone with the adapter of `cfg` (the whole config), only the adapter and a new head trainable.

    Args:
        steps: how many optimizer steps the run will make (AdaLoRA plans its pruning over them).

    Returns:
        a PeftModel, or the bare model for adapter=full and adapter=head.

    Raises:
        UserError: targets that match nothing, a rank above what a layer can hold, or an option that a method lacks.
    """
    model, method = backbone.model, cfg.adapter.method
    if method in ("full", "head"):
        model.get_submodule(backbone.body).requires_grad_(method == "full")
        model.get_submodule(backbone.head).requires_grad_(True)
        return model
    layers = target_layers(model, backbone.targets)
    if not layers:
        raise UserError(
            f"adapter={cfg.adapter.name} goes on linear layers and found none to adapt; the model has: "
            f"{describe_linear_layers(model)}. adapter=full and adapter=head need none."
        )
    if cfg.iso_parameters:
        cfg = _iso_parameters(cfg, model, layers, list(backbone.targets), steps)
    if method in RANKED:
        _check_rank(_adalora_start(cfg.rank) if method == "adalora" else cfg.rank, layers)
    common: dict[str, Any] = {"target_modules": list(backbone.targets)}
    if backbone.new_head:
        common["modules_to_save"] = [backbone.head]
    config = _peft_config(cfg, layers, steps, common)
    adapted = get_peft_model(model, config)
    if method == "sora":
        add_gates(adapted)
    config.base_model_name_or_path = cfg.backbone.name  # after wrapping: PEFT overwrites it with what it finds
    return adapted


def target_layers(model: nn.Module, targets: list[str]) -> dict[str, nn.Module]:
    """{name: layer} of the linear layers whose name is, or ends in, one of the targets."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and any(name == t or name.endswith(f".{t}") for t in targets)
    }


def _check_rank(rank: int, layers: dict[str, nn.Module]) -> None:
    name, size = min(((name, layer_size(layer)) for name, layer in layers.items()), key=lambda item: min(item[1]))
    if rank > min(size):
        raise UserError(
            f"rank {rank} is more than layer {name} ({size[0]} -> {size[1]}) can hold: at most {min(size)}."
        )


def _peft_config(cfg: DictConfig, layers: dict[str, nn.Module], steps: int, common: dict[str, Any]) -> PeftConfig:
    adapter, rank, alpha = cfg.adapter, cfg.rank, cfg.alpha * cfg.rank
    options = OmegaConf.to_container(adapter.options)
    assert isinstance(options, dict)
    if adapter.method == "foura":
        return _make(
            FouraConfig,
            options,
            r=rank,
            foura_alpha=alpha,
            foura_dropout=adapter.dropout,
            transform=adapter.transform,
            transform_seed=adapter.transform_seed,
            gate="adaptive" if adapter.gate == "frozen" else adapter.gate,  # frozen on the training data after training
            gate_scope=adapter.gate_scope,
            output_splits=dict(cfg.backbone.output_splits),
            use_rslora=adapter.use_rslora,
            **common,
        )
    if adapter.method in ("lora", "dora", "sora"):
        lora = {"r": rank, "lora_alpha": alpha, "lora_dropout": adapter.dropout, "use_rslora": adapter.use_rslora}
        return _make(peft.LoraConfig, options, use_dora=adapter.method == "dora", **lora, **common)
    if adapter.method == "adalora":
        if steps < 2:
            raise UserError(
                "adapter=adalora plans its pruning over the run and needs at least 2 steps; this run makes 1."
            )
        pruning = {"tinit": steps // 10, "tfinal": 3 * steps // 10, "deltaT": max(1, steps // 100), "total_step": steps}
        ranks = {"init_r": _adalora_start(rank), "target_r": rank, "lora_alpha": alpha, "lora_dropout": adapter.dropout}
        return _make(peft.AdaLoraConfig, options, **ranks, **pruning, **common)
    if adapter.method == "vera":
        return _make(peft.VeraConfig, options, r=rank, vera_dropout=adapter.dropout, **common)
    assert adapter.method == "fourierft", adapter.method
    # as many coefficients as a LoRA of this rank has parameters, layer by layer
    budget = {name: min(rank * sum(layer_size(layer)), math.prod(layer_size(layer))) for name, layer in layers.items()}
    return _make(peft.FourierFTConfig, options, n_frequency_pattern=budget, **common)


def _iso_parameters(
    cfg: DictConfig, model: nn.Module, layers: dict[str, nn.Module], targets: list[str], steps: int
) -> DictConfig:
    """The config with the largest rank that has no more parameters than LoRA at `cfg.rank`, found by counting them."""
    if cfg.adapter.method not in RANKED:
        return cfg  # VeRA's rank and FourierFT's budget are set otherwise
    budget = cfg.rank * sum(sum(layer_size(layer)) for layer in layers.values())
    # frozen weights without their values: only the adapter's own parameters take memory
    hollow = [
        (id(p), nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)) for p in model.parameters()
    ]

    def count(rank: int) -> int:
        config = _peft_config(_with_rank(cfg, rank), layers, steps, {"target_modules": targets})
        adapted = get_peft_model(copy.deepcopy(model, dict(hollow)), config)
        gates = rank * len(layers) if cfg.adapter.method == "sora" else 0
        return gates + sum(p.numel() for p in adapted.parameters() if p.requires_grad)

    with torch.random.fork_rng(devices=[]):
        fits = bisect.bisect_right(range(1, cfg.rank + 1), budget, key=count)
    if fits == 0:
        raise UserError(
            f"iso_parameters=true: adapter={cfg.adapter.name} has more parameters at rank 1 than LoRA at rank {cfg.rank}."
        )
    return _with_rank(cfg, fits)


def _with_rank(cfg: DictConfig, rank: int) -> DictConfig:
    changed = cfg.copy()
    changed.rank = rank
    return changed


def _adalora_start(rank: int) -> int:
    return math.ceil(1.5 * rank)


def _make(kind: type[PeftConfig], options: dict[Any, Any], **fields: Any) -> PeftConfig:
    known = [spec.name for spec in dataclasses.fields(kind)]
    for name in options:
        if name not in known:
            raise UserError(
                f"adapter.options.{name}: {kind.__name__} has no such field. Its fields: {', '.join(known)}."
            )
    return kind(**{**fields, **options})


def adapter_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that training can change or that the adapter owns: what has to be kept to restore an epoch."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    owned = {name for name in frozen if name.rpartition(".")[0].endswith("ranknum")}  # AdaLoRA's live ranks
    buffers = {name for name, _ in model.named_buffers()}
    state = model.state_dict()
    return {name: whole(state[name]) for name in state if name in trainable or name in owned or name in buffers}


def load_adapter_parameters(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `adapter_parameters` gave."""
    here = model.state_dict()
    placed = {
        name: distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
        for name, value in state.items()
        if isinstance(own := here[name], DTensor)
    }
    model.load_state_dict({**state, **placed}, strict=False)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that ranks may hold in parts (trainer=fsdp), put together; all ranks must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_layer(layer: Any) -> Any:
    """A layer with whole parameters: itself, or a copy where ranks hold its parts."""
    if not any(isinstance(parameter, DTensor) for parameter in layer.parameters()):
        return layer
    gathered = {id(p): nn.Parameter(whole(p.detach()), requires_grad=p.requires_grad) for p in layer.parameters()}
    return copy.deepcopy(layer, gathered)


def regularisation(model: nn.Module) -> Tensor | None:
    """The term that a method adds to the task's loss: AdaLoRA's ‖PᵀP - I‖ over its factors, else None.

    PEFT adds it only to models that return an object with a loss; timm's return logits.
    """
    config = _config(model)
    if not isinstance(config, peft.AdaLoraConfig):
        return None
    terms = []
    for name, factor in model.named_parameters():
        if factor.requires_grad and ("lora_A" in name or "lora_B" in name):
            gram = factor @ factor.T if "lora_A" in name else factor.T @ factor
            terms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
    return config.orth_reg_weight * torch.stack(terms).mean()


def after_step(model: nn.Module, step: int, cfg: DictConfig, lr: float) -> None:
    """What a method does between the optimizer's step and the clearing of the gradients: AdaLoRA and SoRA close ranks.

    Args:
        cfg: of the adapter. lr: the learning rate of the step.
    """
    if cfg.method == "sora":
        shrink(model, lr * cfg.sparsity)
    if isinstance(_config(model), peft.AdaLoraConfig):
        tuner: Any = model.base_model
        tuner.update_and_allocate(step)


def method_state(model: nn.Module) -> dict[str, Any]:
    """What a method keeps beside its parameters while it trains: AdaLoRA's importance of each rank, averaged so far."""
    if not isinstance(_config(model), peft.AdaLoraConfig):
        return {}
    allocator: Any = model.base_model.rankallocator  # type: ignore[union-attr]
    return {name: getattr(allocator, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}


def load_method_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Put back what `method_state` gave."""
    for name, value in state.items():
        allocator: Any = model.base_model.rankallocator  # type: ignore[union-attr]
        setattr(allocator, name, value)


def _config(model: nn.Module) -> PeftConfig | None:
    return model.peft_config["default"] if isinstance(model, PeftModel) else None
