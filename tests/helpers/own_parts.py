"""Parts of a user's own, as the tests of custom parts name them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

MARK = "no class"


class Growing(Optimizer):
    """Signs of the gradients, with a step size that grows with the steps, as optimizers do that estimate it."""

    def __init__(self, params: Any, lr: float = 1e-3, growth: float = 1.01) -> None:
        super().__init__(params, {"lr": lr, "growth": growth, "size": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["size"] *= group["growth"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mean = self.state[parameter].setdefault("rows", torch.zeros(parameter.shape[0]))
                    mean.add_(parameter.grad.flatten(1).mean(1) if parameter.ndim > 1 else parameter.grad)
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"] * group["size"])
        return loss


class NeedsClosure(Growing):
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        return closure()


class TwoSets(Growing):
    def train(self) -> None: ...

    def eval(self) -> None: ...


def of_others(params: Any) -> Optimizer:
    return SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


def nothing(params: Any) -> None:
    return None


def half_life(step: int, *, half: float = 4.0) -> float:
    return 0.5 ** (step / half)


def to_zero(step: int, total_steps: int) -> float:
    return 1.0 - step / total_steps


def textual(step: int) -> str:
    return "one"


def fails(step: int) -> float:
    raise ValueError("no schedule today")
