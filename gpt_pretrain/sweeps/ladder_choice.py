"""Choose the training for the rest of a ladder's budget from the results of its rungs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import matmul_parameters, num_parameters, training_flops_per_token
from gpt_pretrain.sweeps.ladder import (
    LR_FACTORS,
    N_SIZES,
    LadderChoice,
    Prediction,
    Rung,
    RungResult,
    allowed_trainings,
    with_vocabulary,
)
from gpt_pretrain.system.formatting import format_duration, format_short
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.law import Training, fitted_law
from gpt_pretrain.training.budget.own_law import MeasuredTraining, OwnLaw, fit_own_law
from gpt_pretrain.training.budget.speed import Speed

MIN_MEASURED = 2  # sizes to fit the law
MIN_REST_SECONDS = 45.0  # time for the last training
WORTHWHILE = 0.003  # Another learning rate is chosen if it lowers the loss by this share.


def choose_rest(results: Sequence[RungResult], text: choice.TextFacts, limits: choice.Limits) -> LadderChoice:
    """Return the training for the rest of the budget.

    Args:
        results: The results of the rungs that have ended.
        limits: The memory and disk space of this machine, and the seconds that are left.

    Raises:
        UserError: If too few sizes were measured, or nothing fits into the rest.
    """
    if limits.seconds < MIN_REST_SECONDS:
        raise UserError(
            f"Only {format_duration(max(limits.seconds, 0.0))} of the budget are left, too little for a training. The result of "
            "this ladder is its best short training."
        )
    sizes = sorted((one for one in results if one.rung.lr_factor == 1), key=lambda one: one.rung.width)
    if len(sizes) < MIN_MEASURED:
        raise UserError(f"Only {len(sizes)} of {N_SIZES} sizes were measured, so there is nothing to fit. See the errors above.")
    vocab_size = sizes[0].rung.vocab_size
    text = with_vocabulary(text, vocab_size)
    own = fit_own_law(fitted_law(), text.difficulty, [measured_training(one, text) for one in sizes])
    speed = _measured_speed(sizes)
    configs = choice.architectures([vocab_size])
    found = allowed_trainings(text, limits, speed, own, configs)
    if not found:
        raise UserError("No model fits into the free memory and disk space of this machine. Free more of it.")
    best = choice.best_of(found)
    ratios = {one.rung: one.bits / own.bits_per_byte(measured_training(one, text).training, text.difficulty) for one in results}
    chosen = Rung(best.config.emb_dim, best.config.n_layers, vocab_size, best_lr_factor(ratios), limits.seconds)
    return LadderChoice(
        chosen,
        [_predict(one.config, one.training, own, text) for one in _best_by_size(found)],
        [_predict(one.rung.config, measured_training(one, text).training, own, text) for one in sizes],
        best.config.emb_dim > max(one.rung.width for one in sizes),
    )


def best_lr_factor(ratios: Mapping[Rung, float]) -> float:
    """Return the multiple of the usual learning rate with the lowest loss: the vertex of a parabola through the measured rates.

    The usual rate is kept if another one is hardly better, or if one of the rates was not measured.

    Args:
        ratios: The loss of each rung as a multiple of the loss that the law expects after so much text. Losses themselves cannot
            be compared: rungs read different amounts of text if the speed of the machine changes.
    """
    line = {math.log2(rung.lr_factor): ratio for rung, ratio in ratios.items() if rung.lr_factor != 1}
    shapes = {(rung.width, rung.layers) for rung in ratios if rung.lr_factor != 1}
    usual = [ratio for rung, ratio in ratios.items() if rung.lr_factor == 1 and (rung.width, rung.layers) in shapes]
    if len(line) < len(LR_FACTORS) or not usual:
        return 1.0
    points = sorted([*line.items(), (0.0, usual[0])])
    lowest, ratio = min(points, key=lambda point: point[1])
    a, b, c = np.polyfit([x for x, _ in points], [y for _, y in points], 2)
    if a > 0:
        lowest = float(np.clip(-b / (2 * a), points[0][0], points[-1][0]))
        ratio = float(a * lowest**2 + b * lowest + c)
    return round(2.0**lowest, 3) if ratio < (1 - WORTHWHILE) * usual[0] else 1.0


def describe_choice(ladder: LadderChoice, results: Sequence[RungResult]) -> list[str]:
    """Return lines that describe the results of the rungs and the choice."""
    config, chosen, best = ladder.best.config, ladder.chosen, ladder.best
    lines = ["", "Ladder:"]
    for one in sorted(results, key=lambda one: (one.rung.lr_factor != 1, one.rung.width, one.rung.lr_factor)):
        rate = "" if one.rung.lr_factor == 1 else f", {one.rung.lr_factor:g} times the learning rate"
        size = format_short(num_parameters(one.rung.config), "parameters")
        lines.append(f"  {size} ({one.rung.width}x{one.rung.layers}{rate}): {one.bits:.3f} bits per byte")
    rate = "the usual learning rate" if best.lr_factor == 1 else f"{best.lr_factor:g} times the usual learning rate"
    lines += [
        f"Chosen for the remaining {format_duration(best.seconds)}: {format_short(num_parameters(config), 'parameters')} "
        f"(model.emb_dim={config.emb_dim} model.n_layers={config.n_layers}), {rate}.",
        f"Expected: {chosen.expected:.2f} bits per byte, in nine of ten cases between {chosen.low:.2f} and {chosen.high:.2f}.",
    ]
    if ladder.is_extrapolated:
        lines.append("This model is larger than those of the ladder, so its loss is extrapolated.")
    return lines


def _best_by_size(found: Sequence[choice.Candidate]) -> list[choice.Candidate]:
    """Return the training with the lowest expected loss for each model, the smallest model first."""
    best: dict[int, choice.Candidate] = {}
    for one in found:
        size = num_parameters(one.config)
        if size not in best or one.expected < best[size].expected:
            best[size] = one
    return [best[size] for size in sorted(best)]


def _predict(config: GPTConfig, training: Training, own: OwnLaw, text: choice.TextFacts) -> Prediction:
    low, high = own.interval(training, text.difficulty)
    return Prediction(num_parameters(config), own.bits_per_byte(training, text.difficulty), low, high)


def measured_training(result: RungResult, text: choice.TextFacts) -> MeasuredTraining:
    """Return a rung as the law sees it: its training and the loss that it reached."""
    config = result.rung.config
    matrices = matmul_parameters(config) - config.vocab_size * config.emb_dim
    return MeasuredTraining(text.training(matrices, config.vocab_size, result.tokens), result.bits)


def _measured_speed(sizes: Sequence[RungResult]) -> Speed:
    """Return the speed of training in the rungs, including everything around their steps."""
    flops = [training_flops_per_token(one.rung.config) for one in sizes]
    return Speed(tuple(flops), tuple(work * one.tokens_per_second for work, one in zip(flops, sizes, strict=True)))
