"""What is read from an engine from outside: whole gradients and weights by name, and what shows that it is on.

Everything here goes by the public ways of torch and DeepSpeed, never by accel_train's own.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from accel_train.engine.engine import Engine


def whole_gradients(engine: Engine) -> dict[str, Tensor]:
    """Gradients after the last backward pass. Called by all ranks together."""
    if engine.launch.engine.startswith("zero"):
        from deepspeed.utils import safe_get_full_grad

        read = safe_get_full_grad
    else:
        read = _torch_gradient
    named = _parameters(engine)
    return {name: read(parameter).detach().float().clone() for name, parameter in named if parameter.requires_grad}


def whole_weights(engine: Engine) -> dict[str, Tensor]:
    """Weights as this rank sees them. Called by all ranks together."""
    if engine.launch.engine == "zero3":
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(engine.bare_model().parameters())):
            return {name: parameter.detach().clone() for name, parameter in _parameters(engine)}
    return {name: _whole(parameter.detach()).clone() for name, parameter in _parameters(engine)}


def signs_of_engine(engine: Engine) -> dict[str, Any]:
    """Facts that differ between engines. Numbers of elements are this rank's own."""
    model: Any = engine.model
    parameters = [parameter for _, parameter in _parameters(engine)]
    state = [value for held in engine.optimizer.state.values() for value in held.values() if _is_state(value)]
    is_zero = engine.launch.engine.startswith("zero")
    return {
        "wrapper": type(model).__name__,
        "optimizer": type(model.optimizer).__name__ if is_zero else type(engine.optimizer).__name__,
        "zero_stage": model.zero_optimization_stage() if is_zero else None,
        "offload": bool(model.zero_offload_optimizer()) if is_zero else False,
        "all_dtensors": all(isinstance(parameter, DTensor) for parameter in parameters),
        "gathered_elements": sum(_local(parameter).numel() for parameter in parameters),
        "weight_elements": sum(_held(parameter) for parameter in parameters),
        "state_elements": sum(_local(value).numel() for value in state),
        "world_size": engine.accelerator.num_processes,
    }


def _parameters(engine: Engine) -> list[tuple[str, nn.Parameter]]:
    return list(engine.bare_model().named_parameters())


def _torch_gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return _whole(parameter.grad)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _held(parameter: Any) -> int:
    """Elements of a parameter that this rank stores for good: ZeRO-3 keeps its part in `ds_tensor`."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel()
    piece = vars(parameter).get("ds_tensor")
    return parameter.numel() if piece is None else piece.numel()
