"""Predict the loss of a planned run, and of the best model in the same time, by the law of expected losses."""

from __future__ import annotations

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import matmul_parameters, num_parameters
from gpt_pretrain.system.formatting import format_duration, format_short
from gpt_pretrain.tokenizers.bpe_training import VOCABULARY_SIZES
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import Budget
from gpt_pretrain.training.budget.law import Law, Training, fitted_law
from gpt_pretrain.training.budget.machine import measured_limits, measured_speed
from gpt_pretrain.training.budget.text_facts import describe_text
from gpt_pretrain.training.planning.plan import TrainingPlan
from gpt_pretrain.training.preflight import TrainingSetup

SHORTEST_TEXT = 50_000  # characters of a training set; the law was not measured on shorter ones
SHORTEST_RUN = 10.0  # seconds
TEXT_SECONDS, SPEED_SECONDS = 10.0, 6.0  # to describe the text and to measure the speed
SIMILAR = 1.02  # a run is as good as the best if its expected loss is at most this factor higher


def expected_loss_lines(setup: TrainingSetup, plan: TrainingPlan, *, seconds: float) -> list[str]:
    """Return lines about the expected loss of a run, and of the best model in the same time; none beyond the range of the law.

    Args:
        seconds: The duration of the run.
    """
    if setup.budget is not None or not _is_known_kind(setup) or seconds < SHORTEST_RUN:
        return []
    if (setup.data.split.characters or 0) * setup.settings.data.train_ratio < SHORTEST_TEXT:
        return []
    try:
        text = describe_text(setup.settings.data, VOCABULARY_SIZES, seconds=TEXT_SECONDS)
    except UserError:
        return []
    limits = measured_limits(setup.settings, seconds)
    speed = measured_speed(setup.settings, text, seconds=SPEED_SECONDS)
    configs, law = choice.architectures([*text.bytes_per_token]), fitted_law()
    found = choice.candidates(choice.Conditions(text, Budget(seconds=seconds), limits, speed, law), configs=configs)
    possible = [one for one in found if choice.fits(one, limits) is None and law.reaches(one.training)]
    if not possible:
        return []
    best, own = choice.best_of(possible), _own_training(setup, plan, text)
    return [_describe(best, own if own is not None and law.reaches(own) else None, text, law, seconds=seconds)]


def _describe(best: choice.Candidate, own: Training | None, text: choice.TextFacts, law: Law, *, seconds: float) -> str:
    difficulty, trainings = text.difficulty, [best.training, *([] if own is None else [own])]
    extrapolated = any(getattr(one, name) > most for one in trainings for name, most in law.largest.items())
    note = "; extrapolated beyond the measured sizes" if extrapolated else ""
    size = format_short(num_parameters(best.config), "parameters")
    shape = (
        f"model.emb_dim={best.config.emb_dim} model.n_layers={best.config.n_layers} tokenizer.vocab_size={best.config.vocab_size}"
    )
    begin = (
        f"law     in {format_duration(seconds)}, a model of {size} ({shape}) would reach about {best.expected:.2f} bits per byte"
    )
    if own is None:
        return f"{begin} on this text {_interval(law, best.training, text)}{note}; budget= chooses it"
    yours = law.bits_per_byte(own, difficulty)
    compared = f", and yours about {yours:.2f} {_interval(law, own, text)}"
    if yours <= SIMILAR * best.expected:
        return f"law     expects about {yours:.2f} bits per byte on this text {_interval(law, own, text)}{note}"
    return f"{begin} on this text {_interval(law, best.training, text)}{compared}{note}; budget= chooses such a model"


def _interval(law: Law, training: Training, text: choice.TextFacts) -> str:
    if law.is_repetitive(text.difficulty):
        return "(or less, since the text repeats many long passages)"
    low, high = law.interval(training, text.difficulty)
    return f"(nine of ten cases: {low:.2f} to {high:.2f})"


def _is_known_kind(setup: TrainingSetup) -> bool:
    """Return whether a run is a new training on a text. The law describes only these."""
    settings = setup.settings
    is_new = settings.init_from is None and setup.start.resume is None and not settings.custom
    return is_new and settings.data.name not in ("shards", "mixture") and settings.data.format in ("auto", "text")


def _own_training(setup: TrainingSetup, plan: TrainingPlan, text: choice.TextFacts) -> Training | None:
    """Return the planned training; None if its kind of model, optimizer or vocabulary is outside the law."""
    settings, split = setup.settings, setup.data.split
    smallest, largest, vocab_size = min(VOCABULARY_SIZES), max(VOCABULARY_SIZES), setup.tokenizer.vocab_size
    if settings.model.kind != "modern" or settings.optimizer.name != "muon" or not smallest <= vocab_size <= largest:
        return None
    config = GPTConfig(vocab_size=vocab_size, **vars(settings.model))
    if config.value_embeddings or config.bigram_rows:
        return None
    matrices = matmul_parameters(config) - config.vocab_size * config.emb_dim
    length = text.train_bytes / max(split.train.count, 1)
    return Training(matrices, config.vocab_size, text.train_bytes, plan.tokens * length, length)
