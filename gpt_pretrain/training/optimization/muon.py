"""Muon: momentum with an orthogonalized update of each matrix. AdamW updates all other parameters.

Shapes: N matrices, M rows and K columns of a matrix, M <= K.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", for the method and the coefficients.
`torch.optim.Muon` computes the same updates, but one parameter after the other and always in bf16. It treats queries, keys and
values as one matrix.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MAX_BATCH = 1 << 24  # numbers in a batch of matrices, 64 MiB; larger batches are no faster


class Muon(Optimizer):
    """Update the matrices of a model by Muon, and its other parameters by AdamW.

    Several ranks share the work: each orthogonalizes some of the matrices and sends them to the others. All ranks therefore have
    the same weights to the last bit.

    Args:
        groups: Parameter groups, each with its own lr and weight_decay. Those with orthogonalize=True hold matrices.
        parts: For each parameter, the rows of each matrix that is stacked in it. Each matrix is orthogonalized by itself.
        momentum: Decay rate of the average of a matrix's gradients.
        betas: AdamW's decay rates.
        eps: AdamW's term in the denominator.
        fused: Whether AdamW updates in one pass over memory.
        dtype: The type to orthogonalize in: fp32, or bf16, which is several times faster on hardware that supports it.
        shared: Whether all ranks train the model.

    Attributes:
        found_inf: A scalar on the device: 1 if the next step must leave everything as it is, else 0. With None, no step is left
            out. Torch's fused optimizers have the same attribute.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        parts: Mapping[nn.Parameter, Sequence[int]],
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        fused: bool,
        dtype: torch.dtype,
        shared: bool = True,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "betas": betas, "eps": eps, "fused": fused}
        super().__init__(groups, defaults | {"orthogonalize": False})
        self._parts, self._dtype, self._shared = parts, dtype, shared

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters that have a gradient, and return what the closure returns."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            present = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["orthogonalize"]:
                self._adamw_step(present, group)
                continue
            for parameter in present:
                self._update_momentum(parameter, group)
            for batch in _batches([matrix for parameter in present for matrix in _matrices(parameter, self._parts[parameter])]):
                self._muon_step(batch, group)
        return result

    def _update_momentum(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Add a gradient to the momentum, and decay the weights."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        decay = group["lr"] * group["weight_decay"]
        if self.found_inf is None:
            state["momentum_buffer"].lerp_(gradient, 1.0 - group["momentum"])
            parameter.mul_(1.0 - decay)
            return
        # A step that is left out uses the momentum as its gradient, so the momentum does not change.
        torch.where(self.found_inf > 0, state["momentum_buffer"], gradient, out=gradient)
        state["momentum_buffer"].lerp_(gradient, 1.0 - group["momentum"])
        if decay:
            parameter.mul_(1.0 - decay * (1.0 - self.found_inf))

    def _muon_step(self, batch: Sequence[_Matrix], group: dict[str, Any]) -> None:
        """Update matrices of one shape, up to transposition."""
        directions = {one.parameter: self._direction(one.parameter, group) for one in batch}
        wide = torch.stack([one.as_wide(directions[one.parameter][one.start : one.stop]) for one in batch])
        updates = self._orthogonalize(wide)
        if self.found_inf is not None:
            updates = updates * (1.0 - self.found_inf)
        for one, update in zip(batch, updates, strict=True):
            one.add_(one.as_wide(update), alpha=-group["lr"] * one.scale)

    def _orthogonalize(self, matrices: Tensor) -> Tensor:
        return _orthogonalize_together(matrices, self._dtype) if self._shared else orthogonalize(matrices, self._dtype)

    def _direction(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """Return the direction of Nesterov's momentum in fp32. Every rank has the whole of it."""
        assert parameter.grad is not None
        direction = parameter.grad.lerp(self.state[parameter]["momentum_buffer"], group["momentum"])
        return (direction.full_tensor() if isinstance(direction, DTensor) else direction).float()

    def _adamw_step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "exp_avg" not in (state := self.state[parameter]):
                state["step"] = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            list(parameters),
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=False if group["fused"] else None,
            fused=bool(group["fused"]),
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return matrices with nearly the same singular vectors, and with all singular values near 1 (0.7 to 1.2).

    Args:
        matrices: fp32, (N, M, K).
        dtype: The type to iterate in.

    Returns:
        fp32, (N, M, K).

    Source: the quintic Newton-Schulz iteration of Jordan et al. 2024.
    """
    a, b, c = NEWTON_SCHULZ
    x: Tensor = (matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)).to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT  # (N, M, M)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.float()


def _orthogonalize_together(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Orthogonalize matrices that all ranks hold. Each rank computes an equal share of them."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    n_ranks = torch.distributed.get_world_size() if distributed else 1
    if n_ranks == 1:
        return orthogonalize(matrices, dtype)
    rank, share = torch.distributed.get_rank(), -(-len(matrices) // n_ranks)
    own = matrices[rank * share : (rank + 1) * share]
    padded = matrices.new_zeros(share, *matrices.shape[1:])
    if len(own):
        padded[: len(own)] = orthogonalize(own, dtype)
    gathered = [torch.empty_like(padded) for _ in range(n_ranks)]
    torch.distributed.all_gather(gathered, padded)
    return torch.cat(gathered)[: len(matrices)]


@dataclass(frozen=True)
class _Matrix:
    """A matrix in a parameter: its rows from start to stop."""

    parameter: nn.Parameter
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, self.parameter.shape[1]

    @property
    def scale(self) -> float:
        """The factor on the learning rate. It makes updates of all shapes change a layer's outputs alike."""
        rows, columns = self.shape
        return math.sqrt(max(1.0, rows / columns))

    def as_wide(self, values: Tensor) -> Tensor:
        """Transpose values of this matrix if it has more rows than columns. A second call undoes this."""
        rows, columns = self.shape
        return values.mT if rows > columns else values

    def add_(self, update: Tensor, *, alpha: float) -> None:
        """Add a multiple of an update to this rank's rows of the matrix."""
        own, first = self.parameter.data, 0
        if isinstance(own, DTensor):
            mesh, total = own.device_mesh, own.shape[0]
            first = min(mesh.get_local_rank() * -(-total // mesh.size()), total)  # as torch.chunk splits
            own = own.to_local()
        start, stop = max(self.start, first), min(self.stop, first + len(own))
        if start < stop:
            own[start - first : stop - first].add_(update[start - self.start : stop - self.start], alpha=alpha)


def _matrices(parameter: nn.Parameter, parts: Sequence[int]) -> list[_Matrix]:
    stops = list(accumulate(parts))
    return [_Matrix(parameter, stop - rows, stop) for rows, stop in zip(parts, stops, strict=True)]


def _batches(matrices: Sequence[_Matrix]) -> Iterator[Sequence[_Matrix]]:
    """Group matrices of the same shape, up to transposition, in batches that need little memory."""
    by_shape: dict[tuple[int, ...], list[_Matrix]] = defaultdict(list)
    for matrix in matrices:
        by_shape[tuple(sorted(matrix.shape))].append(matrix)
    for shape, alike in by_shape.items():
        size = max(1, MAX_BATCH // math.prod(shape))
        for start in range(0, len(alike), size):
            yield alike[start : start + size]
