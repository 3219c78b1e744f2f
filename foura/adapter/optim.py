"""Learning rates per role: LoRA+'s larger one for B, and one for the gates."""

from typing import Any

from torch import nn


def param_groups(
    model: nn.Module, lr: float, lr_ratio: float = 1.0, gate_lr: float | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters of `model` as groups for any torch optimizer; empty groups are left out.

    PEFT's `create_loraplus_optimizer` looks for "lora_B" and silently finds nothing in a FouRA model.

    Args:
        lr: for A and everything else that is trained (heads, biases).
        lr_ratio: the learning rate of B is lr * lr_ratio (LoRA+, Hayou et al. 2024, recommends about 16).
        gate_lr: for the gate networks (default: lr). Ten to twenty times lr makes gates select.

    Raises:
        ValueError: nothing is trainable.
    """
    groups: dict[str, dict[str, Any]] = {
        "other": {"params": [], "lr": lr},
        "foura_B": {"params": [], "lr": lr * lr_ratio},
        "foura_gate": {"params": [], "lr": lr if gate_lr is None else gate_lr},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = next((role for role in ("foura_B", "foura_gate") if f".{role}." in f".{name}"), "other")
            groups[role]["params"].append(parameter)
    filled = [group for group in groups.values() if group["params"]]
    if not filled:
        raise ValueError("this model has no trainable parameters")
    return filled
