"""The Lion optimizer: it moves every weight by the same amount, in the direction of a sign."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms" (arXiv:2302.06675), Algorithm 2.

    One state tensor, `exp_avg`. The paper's advice: a learning rate 3 to 10 times smaller than AdamW's, and a weight
    decay as much larger.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params, grads, exp_avgs = [], [], []
            for param in group["params"]:
                if param.grad is not None:
                    params.append(_local(param))
                    grads.append(_local(param.grad))
                    exp_avgs.append(_local(self._exp_avg(param)))
            if params:
                _update(params, grads, exp_avgs, group)
        return loss

    def _exp_avg(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
        return state["exp_avg"]


def _update(params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    # lerp(m, g, 1 - beta) is beta m + (1 - beta) g.
    direction = torch._foreach_lerp(exp_avgs, grads, 1 - beta1)
    torch._foreach_sign_(direction)
    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(params, direction, alpha=-group["lr"])
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta2)


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard: the update is element-wise, and DTensor (FSDP2) lacks `_foreach_sign_`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
