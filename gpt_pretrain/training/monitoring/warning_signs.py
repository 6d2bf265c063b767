"""Detect the warning signs in a run's losses, gradient norms and waiting times, one function for each sign.

Each `detect_` function returns a text while its sign is present: the observation and the likely remedy. Otherwise it returns
None. With lasting=True, for a sign that is already present, the threshold is milder, so that noise does not toggle the sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from gpt_pretrain.config.schema import DoctorSettings, TrainSettings
from gpt_pretrain.model.config import CUSTOM_KIND
from gpt_pretrain.training.budget.choice import REGULARIZATION
from gpt_pretrain.training.optimization.optimizer import lowered_rates, scaled_rates

Evaluation = tuple[int, float, float]  # optimizer step, training and validation loss in nats per token

RECENT_STEPS = 5  # Steps over which the current loss is averaged, since one odd batch is no spike.
MIN_EARLIER_STEPS = 10  # Steps to compare a rise with; fewer say too little about the noise of small batches.
MIN_GAP = 0.1  # Nats between both losses; below it, their ratio means nothing.
MIN_SHOWN = 0.001  # Nats; a smaller loss is shown as 0.000, and may be exactly 0.
MIN_RATIO = 1.1  # Validation loss over training loss; below it, a rise is the noise of a few batches.
MIN_SECONDS = 2.0  # Training time over which the share of waiting is measured.
PLATEAU_WINDOWS = 4  # Windows that a healthy run may stay at the unigram loss before it learns more.


def detect_unusual_first_loss(
    train: float, val: float, *, uniform: float, run: TrainSettings, thresholds: DoctorSettings
) -> str | None:
    """Detect losses before training that are far from a uniform guess. Losses of loaded weights must only not be far above it.

    Args:
        train: Training loss before the first step, in nats per token.
        val: Validation loss before the first step.
        uniform: Loss of a uniform guess among all tokens.
    """
    if abs(train - uniform) <= thresholds.first_loss and abs(val - uniform) <= thresholds.first_loss:
        return None
    if run.init_from is not None and min(train, val) <= uniform + thresholds.first_loss:
        return None
    seen = f"Before training the losses are {train:.3f} and {val:.3f}, but a uniform guess among all tokens gives {uniform:.3f}"
    if run.init_from is not None:
        return (
            f"{seen}. The loaded weights do not fit the text. Probably they were trained with another tokenizer: name it with "
            "tokenizer=. Otherwise they are damaged, or were trained on another kind of text."
        )
    if max(train, val) > uniform + thresholds.first_loss:
        remedy = "model.init=gpt2 starts near it." if run.model.init != "gpt2" else "A smaller model.emb_dim starts nearer to it."
        if run.model.kind == CUSTOM_KIND:
            remedy = "Smaller initial weights of its output layer start nearer to it."
        return f"{seen}. The initial weights are too large, and the first steps are spent on undoing that. {remedy}"
    return (
        f"{seen}. A new model cannot be that good: either its weights are trained already, for which init_from= is the right "
        "setting, or it sees the tokens that it should predict."
    )


def mean_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the middle step of some evaluations and their mean losses. These are less noisy than a single evaluation."""
    middle = evaluations[len(evaluations) // 2][0]
    return middle, fmean(train for _, train, _ in evaluations), fmean(val for _, _, val in evaluations)


def detect_overfitting(
    current: Evaluation,
    best: Evaluation,
    *,
    lasting: bool,
    run: TrainSettings,
    thresholds: DoctorSettings,
) -> str | None:
    """Detect a validation loss that rises while the training loss falls. The sign lasts until a new lowest validation loss.

    Args:
        current: Mean of the last evaluations.
        best: Mean of the evaluations with the lowest validation loss so far.
    """
    (_, train, val), (best_step, best_train, best_val) = current, best
    diverged = val > MIN_RATIO * train and min(val - best_val, best_train - train) >= thresholds.overfitting
    if not (current != best if lasting else diverged):
        return None
    stop = "" if run.callbacks.early_stopping else "; callbacks=early_stopping does so automatically"
    return (
        f"Since about step {best_step:,} the validation loss has risen from {best_val:.3f} to {val:.3f}, while the training loss "
        f"has fallen from {best_train:.3f} to {train:.3f} (means of {thresholds.patience} evaluations). From that step on the "
        "model memorizes its training text (overfitting). More text (data.path=...), "
        f"{_more_regularization(run)} or a smaller model delays that; trainer.max_steps={best_step + 1} stops in "
        f"time{stop}.{_recipe(run)}"
    )


def _recipe(run: TrainSettings) -> str:
    """Name the recipe for a text that is read many times, unless the run already has its settings."""
    has_recipe = run.data.shift_windows and all(value > 0 for value in _regularization(run).values())
    return "" if has_recipe else " experiment=small_text is a recipe for a text that is read many times."


def _rates(run: TrainSettings, factor: float) -> str:
    """Name the learning rates times a factor, and the current one."""
    rates = scaled_rates(run.optimizer, factor) if factor > 1 else lowered_rates(run.optimizer, factor)
    return f"{rates} ({'optimizer.lr=' if ' ' in rates else ''}{run.optimizer.lr:g} now)"


def _more_regularization(run: TrainSettings) -> str:
    """Name the settings of the next stronger regularization that a budget chooses, as far as the run does not have them yet."""
    now = _regularization(run)
    chosen = next((values for values in REGULARIZATION if values[0] > run.model.drop_rate), REGULARIZATION[-1])
    higher = {name: value for name, value in zip(now, chosen, strict=False) if value > now[name]}
    if not higher:
        return f"a higher model.drop_rate ({run.model.drop_rate:g} now)"
    settings = " ".join(f"{name}={value:g}" for name, value in higher.items())
    earlier = ", ".join(f"{name}={now[name]:g}" for name in higher)
    return f"{settings} (as budget= chooses where a model memorizes its text; {earlier} now)"


def _regularization(run: TrainSettings) -> dict[str, float]:
    """Return a run's values of the settings in `REGULARIZATION`. Weight decay by roles belongs to them where the run has it."""
    optimizer, values = run.optimizer, {"model.drop_rate": run.model.drop_rate}
    if optimizer.decay == "roles":
        for name, role in (("matrices", optimizer.matrices), ("head", optimizer.head)):
            decay = optimizer.weight_decay if role.weight_decay is None else role.weight_decay
            values[f"optimizer.{name}.weight_decay"] = decay
    return values


def detect_gap(evaluations: Sequence[Evaluation], *, lasting: bool, run: TrainSettings, thresholds: DoctorSettings) -> str | None:
    """Detect a validation loss that is several times the training loss in each of the last evaluations.

    Args:
    """
    last = evaluations[-thresholds.patience :]
    ratio = (1 + thresholds.gap) / 2 if lasting else thresholds.gap
    above = [val > ratio * train and val - train > MIN_GAP for _, train, val in last]
    if not (any(above) if lasting else len(above) == thresholds.patience and all(above)):
        return None
    _, train, val = last[-1]
    relation = f"{val / train:.1f} times" if train >= MIN_SHOWN else "far above"
    return (
        f"The validation loss, {val:.3f}, is {relation} the training loss, {train:.3f}. The training text is too "
        "small for this model, or the validation set is text of another kind. More text (data.path=...) helps most; a smaller "
        f"model or {_more_regularization(run)} narrows the gap.{_recipe(run)}"
    )


def detect_plateau(
    evaluations: Sequence[Evaluation],
    *,
    uniform: float,
    unigram: float,
    lasting: bool,
    run: TrainSettings,
    thresholds: DoctorSettings,
) -> str | None:
    """Detect losses that do not fall: for one window near the uniform loss, or for several near the unigram loss.

    Args:
        evaluations: Evaluations after the warm-up.
        uniform: Loss of a uniform guess among all tokens, in nats per token.
        unigram: Loss of guessing by token frequency, in nats per token.
    """
    fall = thresholds.stuck * (2 if lasting else 1)
    reference = f"A uniform guess gives {uniform:.3f}, guessing by token frequency {unigram:.3f}."
    flat = _without_fall(evaluations, thresholds.window, fall, min_evaluations=thresholds.patience)
    if flat and min(min(train, val) for _, train, val in flat) > (uniform + unigram) / 2:
        (start, before, _), (step, train, val) = flat[0], flat[-1]
        return (
            f"From step {start:,} to {step:,} the training loss has only gone from {before:.3f} to {train:.3f} (validation "
            f"{val:.3f}). {reference} The learning rate is probably too low: try {_rates(run, 10)}."
        )
    flat = _without_fall(evaluations, PLATEAU_WINDOWS * thresholds.window, fall, min_evaluations=thresholds.patience)
    if flat and min(train for _, train, _ in flat) > (0.95 if lasting else 0.98) * unigram:
        (start, _, _), (step, train, val) = flat[0], flat[-1]
        return (
            f"From step {start:,} to {step:,} neither loss has fallen (training {train:.3f}, validation {val:.3f}). {reference} "
            "The model has learned the token frequencies at most. The learning rate is probably too high: try "
            f"{_rates(run, 1 / 10)}, with scheduler=warmup_cosine. If that does not help, it is too low: try ten times the "
            "current one."
        )
    return None


def _without_fall(evaluations: Sequence[Evaluation], steps: int, fall: float, *, min_evaluations: int) -> Sequence[Evaluation]:
    """Return the evaluations of the last steps if neither loss falls by the share `fall` within them, otherwise none."""
    early_enough = [i for i in range(len(evaluations) - min_evaluations) if evaluations[i][0] <= evaluations[-1][0] - steps]
    if not early_enough:
        return ()
    recent = evaluations[early_enough[-1] :]
    (_, *first), *later = recent
    lowest = min(train for _, train, _ in later), min(val for _, _, val in later)
    fell = any(start - low >= fall * start for start, low in zip(first, lowest, strict=True))
    return () if fell else recent


def recent_loss(losses: Sequence[float]) -> float:
    """Return the current training loss: the mean of the last steps."""
    return sum(losses[-RECENT_STEPS:]) / RECENT_STEPS


def exceeded_level(losses: Sequence[float], start: float, thresholds: DoctorSettings) -> float | None:
    """Return the level above which the training loss has jumped, or None if it has not.

    The level is the highest loss of the window before, but at most the loss at the start.

    Args:
        losses: Losses of the last optimizer steps, in nats per token.
        start: Upper bound of the first losses.
    """
    if len(losses) < RECENT_STEPS:
        return None
    earlier = losses[:-RECENT_STEPS]
    level = min(start, max(earlier)) if len(earlier) >= MIN_EARLIER_STEPS else start
    return level if recent_loss(losses) > level + thresholds.spike else None


def describe_spike(losses: Sequence[float], level: float, *, run: TrainSettings) -> str:
    """Return the text for a training loss that has jumped above a level."""
    warmup = "" if run.scheduler.warmup_steps else ", with scheduler=warmup_cosine for a gentle start"
    clip = "" if run.trainer.gradient_clip_val is not None else ", and trainer.gradient_clip_val=1.0"
    return (
        f"The training loss has jumped to {recent_loss(losses):.3f} (mean of the last {RECENT_STEPS} steps) from at most "
        f"{level:.3f} before. The learning rate is probably too high: try {_rates(run, 1 / 3)}{warmup}{clip}."
    )


def describe_nonfinite(event: str, run: TrainSettings) -> str:
    """Return the text for a NaN or infinite loss or gradient. `event` describes it in one sentence."""
    clip = "" if run.trainer.gradient_clip_val is not None else " trainer.gradient_clip_val=1.0,"
    exact = "" if run.trainer.precision == "32-true" else f" or trainer.precision=32-true ({run.trainer.precision} now)"
    return f"{event} The learning rate is probably too high: try {_rates(run, 1 / 3)},{clip} scheduler=warmup_cosine{exact}."


def detect_clipping(norms: Sequence[float], *, lasting: bool, run: TrainSettings, thresholds: DoctorSettings) -> str | None:
    """Detect gradients that are clipped in most steps of a window."""
    limit = run.trainer.gradient_clip_val
    if limit is None or len(norms) < thresholds.window:
        return None
    clipped = sum(norm > limit for norm in norms)
    if clipped <= len(norms) * thresholds.clipping * (0.5 if lasting else 1.0):
        return None
    # The sign may last a whole run, and only its first text is read. Formatting the text would take half of the monitor's time.
    if lasting:
        return ""
    batches, typical = run.trainer.accumulate_grad_batches, median(norms)
    return (
        f"In {clipped} of the last {len(norms)} steps the gradient norm was above trainer.gradient_clip_val={limit:g}; its "
        f"median was {typical:.2f}. Clipping should only limit outliers, but here it limits most steps. "
        f"trainer.gradient_clip_val={_round_up(2 * max(limit, typical)):g} limits only outliers; larger batches "
        f"(trainer.accumulate_grad_batches={batches * 4}, {batches} now) lower the norm itself."
    )


def detect_slow_loading(
    waited: float, seconds: float, *, lasting: bool, run: TrainSettings, thresholds: DoctorSettings
) -> str | None:
    """Detect that training waits for batches during much of its time.

    Args:
        waited: Seconds of waiting.
        seconds: Seconds of training, including the waiting.
    """
    if waited <= seconds * thresholds.loading * (0.5 if lasting else 1.0):
        return None
    workers = run.data.num_workers
    return (
        f"Training waited for batches during {waited / seconds:.0%} of the last {seconds:.1f} seconds: reading the data is the "
        f"bottleneck. data.num_workers={2 * workers or 2} ({workers} now) reads more batches in parallel; if the token files are "
        "on a slow disk, data.cache_dir=... caches them on a faster one."
    )


def _round_up(value: float) -> float:
    """Round up to one significant digit."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / power) * power
