"""The user's own schedule of the learning rate: a function of the optimizer step, or a scheduler of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from gpt_pretrain.config.custom_parts import TARGET
from gpt_pretrain.config.custom_targets import call_target, describe_failure, find_target, parameters_of
from gpt_pretrain.errors import UserError

GROUP, OWN_STATE = "scheduler", "own"
OF_LIGHTNING = ("interval", "frequency", "monitor", "strict")


def check_scheduler_class(fields: Mapping[str, Any]) -> None:
    """Check that a schedule can be used here, as far as its class shows.

    Raises:
        UserError: If it cannot be used.
    """
    name = fields[TARGET]
    target = find_target(name, setting=f"{GROUP}.{TARGET}")
    if isinstance(target, type) and issubclass(target, ReduceLROnPlateau):
        raise UserError(
            f"{GROUP}.{TARGET}={name} needs a validation loss at each of its steps, but a schedule here advances with every "
            "optimizer step. Choose a schedule that depends on the step alone."
        )
    if isinstance(target, type) and not issubclass(target, LRScheduler):
        raise UserError(
            f"{GROUP}.{TARGET}={name} is not a schedule: it must be a function of the step, or derive from "
            "torch.optim.lr_scheduler.LRScheduler."
        )
    if found := [one for one in OF_LIGHTNING if one in fields and one not in parameters_of(target)]:
        raise UserError(
            f"{GROUP}.{found[0]}={fields[found[0]]}: schedules here always advance with every optimizer step. Leave it out, and "
            "count the schedule's own lengths in optimizer steps, not in epochs."
        )


def build_custom_schedule(
    optimizer: Optimizer, fields: Mapping[str, Any], *, total_steps: int, scale: Callable[[], float]
) -> LRScheduler:
    """Build the user's schedule.

    Args:
        total_steps: Optimizer steps of the whole run. The schedule receives them if it has a parameter of this name.
        scale: Returns a further factor on the learning rate. Rollbacks lower it.

    Raises:
        UserError: If it cannot be built, or does not return a factor.
    """
    name = fields[TARGET]
    target = find_target(name, setting=f"{GROUP}.{TARGET}")
    if not _takes_optimizer(target):
        return LambdaLR(optimizer, _factor(fields, total_steps=total_steps, scale=scale))
    scheduler = call_target(fields, optimizer, setting=GROUP, total_steps=total_steps)
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise UserError(
            f"{GROUP}.{TARGET}={name} returned a {type(scheduler).__name__}. It must return the factor on the learning rate of a "
            "step, or a scheduler of torch that needs no validation loss."
        )
    return ScaledSchedule(scheduler, total_steps=total_steps, scale=scale)


def _takes_optimizer(target: Any) -> bool:
    return isinstance(target, type) or next(iter(parameters_of(target)), None) == "optimizer"


def _factor(fields: Mapping[str, Any], *, total_steps: int, scale: Callable[[], float]) -> Callable[[int], float]:
    """Return the factor on the learning rate of each step, counted from 0."""

    def factor(step: int) -> float:
        value = call_target(fields, min(step, total_steps), setting=GROUP, total_steps=total_steps)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise UserError(
                f"{GROUP}.{TARGET}={fields[TARGET]} returned {value!r:.100} for step {step}. It must return the factor on the "
                "learning rate, a number of at least 0."
            )
        return float(value) * scale()

    return factor


class ScaledSchedule(LRScheduler):
    """Multiply the learning rates of one of torch's schedulers by a factor. The scheduler does not see the factor.

    Args:
        scheduler: The user's scheduler.
        total_steps: Optimizer steps of the whole run. The scheduler does not advance further, since some schedulers fail there.
        scale: Returns the factor.
    """

    def __init__(self, scheduler: LRScheduler, *, total_steps: int, scale: Callable[[], float]) -> None:
        self._total_steps, self._initial = total_steps, _plain(scheduler.state_dict())
        # The base class is not initialized: it would take the first step of its own schedule.
        self.scheduler, self.optimizer, self._scale = scheduler, scheduler.optimizer, scale
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.last_epoch, self.base_lrs = (
            scheduler.last_epoch,
            [float(group["initial_lr"]) for group in self.optimizer.param_groups],
        )
        self._apply()

    def step(self, epoch: int | None = None) -> None:
        """Advance to the next optimizer step."""
        if self.last_epoch >= self._total_steps:
            return
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            self.scheduler.step()
        except Exception as error:  # Schedulers raise errors of many types at their end.
            raise UserError(
                f"{GROUP}.{TARGET}: the schedule fails at optimizer step {self.last_epoch + 1}: {describe_failure(error)}. "
                "Its lengths count optimizer steps."
            ) from error
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.last_epoch = self.scheduler.last_epoch
        self._apply()

    def _apply(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._scale()
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def apply_settings(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Replace the settings that a checkpoint has restored in the optimizer. A new learning rate scales the schedule.

        Args:
            groups: The settings of each parameter group, including its highest learning rate.
        """
        for number, (group, requested) in enumerate(zip(self.optimizer.param_groups, groups, strict=True)):
            before, now = self.base_lrs[number], float(requested["lr"])
            group.update({name: value for name, value in requested.items() if name not in ("lr", "initial_lr")})
            if now != before:
                self._rates[number] *= now / before if before else 0.0
                self.base_lrs[number] = group["initial_lr"] = now
                self.scheduler.base_lrs[number] = now
        self._apply()

    def get_last_lr(self) -> list[Any]:
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Return plain data only."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": self.base_lrs,
            "_last_lr": [float(rate) for rate in self._last_lr],
            "lr_lambdas": [],
            OWN_STATE: {
                "rates": [float(rate) for rate in self._rates],
                # Values that follow from the arguments are not stored, so that the arguments of a resumed run count.
                "state": _changes(_plain(self.scheduler.state_dict()), self._initial),
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state. If it belongs to another schedule, only advance to its step."""
        stored = state_dict.get(OWN_STATE)
        if isinstance(stored, dict) and fits_state(stored.get("state"), self._initial):
            self.scheduler.load_state_dict(_restored(self.scheduler.state_dict(), stored["state"]))
            self._rates = [float(rate) for rate in stored["rates"]]
            self.last_epoch, self.base_lrs = self.scheduler.last_epoch, [float(rate) for rate in state_dict["base_lrs"]]
        else:
            while self.last_epoch < min(state_dict["last_epoch"], self._total_steps):
                self.step()
        self._apply()


def fits_state(stored: Any, fresh: Any) -> bool:
    """Return whether a stored state has only names of a new scheduler's state, and values of the same kinds, at each depth."""
    if isinstance(fresh, dict):
        return isinstance(stored, dict) and all(name in fresh and fits_state(part, fresh[name]) for name, part in stored.items())
    if isinstance(fresh, list):
        return isinstance(stored, list) and len(stored) == len(fresh) and all(map(fits_state, stored, fresh))
    if isinstance(fresh, str):
        return isinstance(stored, str)
    return stored is None or isinstance(stored, int | float)


def _changes(now: Any, before: Any) -> Any:
    """Return the part of a state that has changed."""
    if isinstance(now, dict) and isinstance(before, dict):
        return {name: _changes(part, before.get(name)) for name, part in now.items() if part != before.get(name)}
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        return list(map(_changes, now, before))
    return now


def _restored(fresh: Any, stored: Any) -> Any:
    """Return a new scheduler's state with the stored values of another one, converted to the new state's types."""
    if isinstance(fresh, dict):
        parts = {name: _restored(part, stored[name]) if name in stored else part for name, part in fresh.items()}
        return Counter(parts) if isinstance(fresh, Counter) else parts
    if isinstance(fresh, tuple | list):
        return type(fresh)(map(_restored, fresh, stored))
    return stored


def _plain(value: Any) -> Any:
    """Return a scheduler's state as plain data, without functions and without the scheduler's own types."""
    if isinstance(value, dict):
        return {name if isinstance(name, str | int) else str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return value if isinstance(value, str | int | float | None) else None
