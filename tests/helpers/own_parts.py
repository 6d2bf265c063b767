"""Parts of a user's own, as the tests of custom parts name them."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

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


class Counting(Dataset[tuple[Tensor, Tensor]]):
    """Windows of rising numbers."""

    def __init__(self, n_windows: int, length: int) -> None:
        self.n_windows, self.length = n_windows, length

    def __len__(self) -> int:
        return self.n_windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        ids = (torch.arange(self.length + 1) + 3 * index) % 50
        return ids[:-1], ids[1:]


class Numbers(L.LightningDataModule):
    def __init__(self, context_length: int, batch_size: int = 4, n_windows: int = 26) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.train_set, self.val_set = Counting(n_windows, context_length), Counting(6, context_length)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_set, batch_size=self.batch_size)


class NoValidation(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Counting(20, 8))


class Changed(Numbers):
    """The same, but for its training set."""

    def train_dataloader(self) -> Any:
        return self.changed()

    def changed(self) -> Any:
        return [DataLoader(self.train_set)]


class Sampled(Changed):
    def changed(self) -> Any:
        return DataLoader(self.train_set, sampler=WeightedRandomSampler([1.0] * 20, 20))


class Streaming(Changed):
    def changed(self) -> Any:
        class Endless(IterableDataset[Tensor]):
            def __iter__(self) -> Any:
                yield torch.zeros(8)

        return DataLoader(Endless())


class Collated(Changed):
    """A loader whose batches a function changes."""

    def changed(self) -> Any:
        return DataLoader(self.train_set, batch_size=2, collate_fn=self.collate)

    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        return torch.stack([ids for ids, _ in samples])


class TooLong(Collated):
    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        ids = torch.stack([ids for ids, _ in samples])
        return torch.cat([ids, ids], dim=1), torch.cat([ids, ids], dim=1)


class Shorter(Collated):
    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        ids = torch.stack([ids for ids, _ in samples])
        return ids, ids[:, 1:]


class Floats(Collated):
    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        ids = torch.stack([ids for ids, _ in samples])
        return ids.float(), ids


class Outside(Collated):
    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        ids = torch.stack([ids for ids, _ in samples])
        return ids + 5000, ids


class Unshifted(Collated):
    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        ids = torch.stack([ids for ids, _ in samples])
        return ids, ids.clone()


class Ignored(Collated):
    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        ids = torch.stack([ids for ids, _ in samples])
        return ids, torch.full_like(ids, -100)


class Wordless:
    """Cannot be built, and does not say why."""

    def __init__(self) -> None:
        raise ValueError
