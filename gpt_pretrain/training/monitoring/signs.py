"""The warning signs in a training's plain numbers: what is seen, and what is likely to help.

Each rule looks at the last few numbers and returns a text while its sign is there, else None; who asks tells the text once. A
sign that lasts is held to a milder threshold than one that sets in, so that it does not come and go with the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from gpt_pretrain.config.schema import DoctorSettings, TrainSettings

Line = tuple[int, float, float]  # a loss line: optimizer step, training loss, validation loss, in nats a token

RECENT = 5  # steps whose mean loss is what the loss is now: one odd batch is no spike
LEAST_BEFORE = 10  # steps that a rise is measured against; fewer tell too little of the noise of small batches
LEAST_GAP = 0.1  # nats; below it a ratio of two losses means nothing
LEAST_RATIO = 1.1  # of validation to training loss; below it a rise is the noise of a few batches
LEAST_SECONDS = 2.0  # of training that the share of waiting is measured over
PLATEAU = 4  # windows that a healthy run may spend at what the tokens' frequencies tell, before it learns more


def first_loss(train: float, val: float, *, chance: float, run: TrainSettings, doctor: DoctorSettings) -> str | None:
    """The losses of a new model are far from that of guessing among all tokens, `chance` nats."""
    if abs(train - chance) <= doctor.first_loss and abs(val - chance) <= doctor.first_loss:
        return None
    seen = f"Before training the losses are {train:.3f} and {val:.3f}, where guessing among all tokens gives {chance:.3f}"
    if max(train, val) > chance + doctor.first_loss:
        remedy = "model.init=gpt2 begins near it." if run.model.init != "gpt2" else "A smaller model.emb_dim begins nearer."
        return f"{seen}: the initial weights are too large, and the first steps go into undoing that. {remedy}"
    return (
        f"{seen}: a new model cannot know so much. Either its weights are not new, which init_from= is there to say, or it sees "
        "the tokens that it is to predict."
    )


def mean_line(lines: Sequence[Line]) -> Line:
    """The step in the middle of some loss lines, and the means of their losses, which the noise of one line moves less."""
    return lines[len(lines) // 2][0], fmean(train for _, train, _ in lines), fmean(val for _, _, val in lines)


def overfitting(now: Line, best: Line, *, lasting: bool, run: TrainSettings, doctor: DoctorSettings) -> str | None:
    """The validation loss has risen since its lowest, while the training loss has fallen; it lasts until a new lowest.

    Args:
        now: mean line of the last few.
        best: that with the lowest validation loss.
    """
    (_, train, val), (since, best_train, best_val) = now, best
    apart = val > LEAST_RATIO * train and min(val - best_val, best_train - train) >= doctor.overfitting
    if not (now != best if lasting else apart):
        return None
    stop = "" if run.callbacks.early_stopping else ", as callbacks=early_stopping does by itself"
    return (
        f"Since about step {since} the validation loss has risen, from {best_val:.3f} to {val:.3f}, while the training loss went "
        f"on falling, from {best_train:.3f} to {train:.3f} (means of {doctor.patience} lines): from there on the model learns "
        f"its text by heart (overfitting). More text (data.path=...), a higher model.drop_rate ({run.model.drop_rate:g} now) or "
        f"a smaller model put that off; trainer.max_steps={since + 1} stops in time{stop}."
    )


def gap(lines: Sequence[Line], *, lasting: bool, run: TrainSettings, doctor: DoctorSettings) -> str | None:
    """The validation loss is some multiple of the training loss, in each of the last lines."""
    last = lines[-doctor.patience :]
    ratio = (1 + doctor.gap) / 2 if lasting else doctor.gap
    there = [val > ratio * train and val - train > LEAST_GAP for _, train, val in last]
    if not (any(there) if lasting else len(there) == doctor.patience and all(there)):
        return None
    _, train, val = last[-1]
    return (
        f"The validation loss, {val:.3f}, is {val / train:.1f} times the training loss, {train:.3f}: the model does far better "
        "on the text that it trains on than on any other. That text is too small for this model, or the validation part is of "
        "another kind. More text (data.path=...) helps most; a smaller model or a higher model.drop_rate "
        f"({run.model.drop_rate:g} now) narrows the gap."
    )


def stuck(
    lines: Sequence[Line], *, chance: float, frequencies: float, lasting: bool, run: TrainSettings, doctor: DoctorSettings
) -> str | None:
    """Neither loss falls: for a window while they are near chance, for several where only the frequencies are learnt.

    Args:
        lines: those after the warm-up.
        chance: the loss of guessing among all tokens, in nats.
        frequencies: that of guessing each token as often as it occurs in the training text.
    """
    fall = doctor.stuck * (2 if lasting else 1)
    rate = run.optimizer.lr
    known = f"guessing among all tokens gives {chance:.3f}, going by how often each occurs {frequencies:.3f}"
    slow = _without_fall(lines, doctor.window, fall, least=doctor.patience)
    if slow and min(min(train, val) for _, train, val in slow) > (chance + frequencies) / 2:
        (since, before, _), (step, train, val) = slow[0], slow[-1]
        return (
            f"From step {since} to {step} the training loss has only gone from {before:.3f} to {train:.3f} (validation "
            f"{val:.3f}), where {known}. The learning rate is probably too low: try optimizer.lr={rate * 10:g} ({rate:g} now)."
        )
    flat = _without_fall(lines, PLATEAU * doctor.window, fall, least=doctor.patience)
    if flat and min(train for _, train, _ in flat) > (0.95 if lasting else 0.98) * frequencies:
        (since, _, _), (step, train, val) = flat[0], flat[-1]
        return (
            f"From step {since} to {step} neither loss has fallen (training {train:.3f}, validation {val:.3f}), where {known}: "
            "the model has learnt no more than that. The learning rate is probably too high: try a tenth of it, optimizer.lr="
            f"{rate / 10:g}, with scheduler=warmup_cosine. If that is no better, it is too low, and ten times as much helps."
        )
    return None


def _without_fall(lines: Sequence[Line], steps: int, fall: float, *, least: int) -> Sequence[Line]:
    """The lines of the last so many steps, if neither loss has fallen by that share over them; else none."""
    far = [i for i in range(len(lines) - least) if lines[i][0] <= lines[-1][0] - steps]
    if not far:
        return ()
    since = lines[far[-1] :]
    (_, *before), *after = since
    lowest = min(train for _, train, _ in after), min(val for _, _, val in after)
    return () if any(b - low >= fall * b for b, low in zip(before, lowest, strict=True)) else since


def spike_level(losses: Sequence[float], start: float, doctor: DoctorSettings) -> float | None:
    """What the training loss has jumped above: the highest of the window before, or that of the start; None if it has not.

    Args:
        losses: of each of the last optimizer steps, in nats.
        start: what the first losses were not above, as far as one can tell.
    """
    if len(losses) < RECENT:
        return None
    before = losses[:-RECENT]
    level = min(start, max(before)) if len(before) >= LEAST_BEFORE else start
    return level if mean_of_last(losses) > level + doctor.spike else None


def mean_of_last(losses: Sequence[float]) -> float:
    """What the training loss is now."""
    return sum(losses[-RECENT:]) / RECENT


def spike(losses: Sequence[float], level: float, *, run: TrainSettings) -> str:
    """What to say of a training loss that has jumped above a level."""
    rate = run.optimizer.lr
    more = "" if run.scheduler.warmup_steps else ", with scheduler=warmup_cosine so that it begins gently"
    clip = "" if run.trainer.gradient_clip_val is not None else ", and trainer.gradient_clip_val=1.0"
    return (
        f"The training loss has jumped to {mean_of_last(losses):.3f}, the mean of the last {RECENT} steps, from at most "
        f"{level:.3f} before. The learning rate is probably too high: try optimizer.lr={rate / 3:.2g} ({rate:g} now){more}{clip}."
    )


def nonfinite(what: str, run: TrainSettings) -> str:
    """What to say of a loss or gradient that is NaN or infinite, which `what` tells in a sentence."""
    rate = run.optimizer.lr
    clip = "" if run.trainer.gradient_clip_val is not None else " trainer.gradient_clip_val=1.0,"
    exact = "" if run.trainer.precision == "32-true" else f" or trainer.precision=32-true ({run.trainer.precision} now)"
    return (
        f"{what} The learning rate is probably too high: try optimizer.lr={rate / 3:.2g} ({rate:g} now),{clip} "
        f"scheduler=warmup_cosine{exact}."
    )


def clipping(norms: Sequence[float], *, lasting: bool, run: TrainSettings, doctor: DoctorSettings) -> str | None:
    """The norm of the gradients is above gradient_clip_val on most steps of a window."""
    limit = run.trainer.gradient_clip_val
    if limit is None or len(norms) < doctor.window:
        return None
    clipped = sum(norm > limit for norm in norms)
    if clipped <= len(norms) * doctor.clipping * (0.5 if lasting else 1.0):
        return None
    if lasting:  # as it may for a whole run: the text, which nobody will read, would take half of the time
        return ""
    batches, usual = run.trainer.accumulate_grad_batches, median(norms)
    return (
        f"In {clipped} of the last {len(norms)} steps the norm of the gradients was above trainer.gradient_clip_val={limit:g}; "
        f"its median was {usual:.2f}. This does no harm by itself, but the clipping no longer catches outliers only: it makes "
        f"most batches count alike, whatever their gradients. trainer.gradient_clip_val={_round_up(2 * usual):g} would catch "
        f"outliers alone; larger batches (trainer.accumulate_grad_batches={batches * 4}, {batches} now) lower the norm itself."
    )


def loading(waited: float, seconds: float, *, lasting: bool, run: TrainSettings, doctor: DoctorSettings) -> str | None:
    """Training has waited for batches for much of some seconds."""
    if waited <= seconds * doctor.loading * (0.5 if lasting else 1.0):
        return None
    workers = run.data.num_workers
    return (
        f"For {waited / seconds:.0%} of the last {seconds:.1f} seconds training has waited for batches: reading the data is the "
        f"bottleneck. data.num_workers={2 * workers or 2} ({workers} now) reads more of them beside the training; where the "
        "token files lie on a slow disk, data.cache_dir=... puts them on a fast one."
    )


def _round_up(value: float) -> float:
    """A number with one significant digit, not below value."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / power) * power
