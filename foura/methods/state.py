"""The tensors that training changes: read, restored, and gathered where processes hold parts of them."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def adapter_parameters(model: nn.Module) -> dict[str, Tensor]:
    """{name: tensor} of everything that training can change: parameters, AdaLoRA's live ranks, and buffers."""
    changing = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or name.rpartition(".")[0].endswith("ranknum")  # AdaLoRA's live ranks
    }
    changing.update(name for name, _ in model.named_buffers())
    return {name: whole(tensor) for name, tensor in model.state_dict().items() if name in changing}


def load_adapter_parameters(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Restore what `adapter_parameters` returned, in place."""
    here = model.state_dict()
    placed = {
        name: distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
        for name, value in state.items()
        if isinstance(own := here[name], DTensor)
    }
    model.load_state_dict({**state, **placed}, strict=False)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor where each process holds a part (trainer=fsdp); every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_layer(layer: Any) -> Any:
    """A layer with full parameters: itself, or a copy where processes hold parts; every process must call it."""
    if not any(isinstance(parameter, DTensor) for parameter in layer.parameters()):
        return layer
    gathered = {id(p): nn.Parameter(whole(p.detach()), requires_grad=p.requires_grad) for p in layer.parameters()}
    return copy.deepcopy(layer, gathered)
