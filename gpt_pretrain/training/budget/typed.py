"""Respect the settings that the user has typed: find what a budget may still choose, and what contradicts the budget."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from gpt_pretrain.config.overrides import is_within
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.bpe_training import AUTOMATIC_NAME, TRAINED_NAME, VOCABULARY_SIZES
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.fitting import with_end_of_text
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import parse_budget
from gpt_pretrain.training.budget.law import Training
from gpt_pretrain.training.budget.pilot import MOST_PASSES
from gpt_pretrain.training.run_tokenizer import automatic_name

WHOLE = 0.9  # share of a whole pilot; a short budget or a slow machine shortens it
LENGTHS = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens", "trainer.max_time")
ARCHITECTURE = ("emb_dim", "n_layers", "n_heads", "n_kv_heads", "kind", "context_length")  # one typed setting fixes all
TABLES = ("value_embeddings", "bigram_rows")  # kept as they are; a budget does not choose them


def wanted_vocabularies(settings: TrainSettings, overridden: Set[str]) -> list[int]:
    """Return the vocabulary sizes to choose from, if one is trained on the text: the typed size, or the study's sizes."""
    typed = settings.tokenizer.vocab_size if is_typed("tokenizer.vocab_size", overridden) else None
    return [*VOCABULARY_SIZES] if typed is None else [typed]


def ready_tokenizer(settings: TrainSettings, overridden: Set[str]) -> Tokenizer | None:
    """Build the typed tokenizer, or GPT-2's if a run without a budget would take it. Return None to train one on the text.

    Raises:
        UserError: If it cannot be built, or the text cannot be read.
    """
    name = settings.tokenizer.name
    if "tokenizer.name" not in overridden or name == AUTOMATIC_NAME:
        has_size = is_typed("tokenizer.vocab_size", overridden)
        name = TRAINED_NAME if has_size else automatic_name(settings, overridden)
    return None if name == TRAINED_NAME else with_end_of_text(build_tokenizer(name))


def unstudied(settings: TrainSettings, overridden: Set[str], config: GPTConfig, pilot: Training) -> list[str]:
    """List the settings that no training of the study had. The law cannot predict their effect.

    A large vocabulary is known by a whole pilot with it, as short texts have with GPT-2's.
    """
    is_known = config.vocab_size == pilot.vocab_size and pilot.passes > WHOLE * MOST_PASSES
    found = {
        f"model.kind={config.kind}": config.kind != "modern",
        "model.value_embeddings=true": config.value_embeddings,
        f"model.bigram_rows={config.bigram_rows}": config.bigram_rows > 0,
        f"model.context_length={config.context_length}": config.context_length != choice.CONTEXT
        and is_typed("model.context_length", overridden),
        f"optimizer={settings.optimizer.name}": settings.optimizer.name != "muon",
        f"scheduler={settings.scheduler.name}": is_typed("scheduler.name", overridden)
        and settings.scheduler.name != "warmup_stable_decay",
        f"a vocabulary of {config.vocab_size:,} tokens": config.vocab_size > max(VOCABULARY_SIZES) and not is_known,
    }
    return [name for name, is_other in found.items() if is_other]


def allowed_architectures(settings: TrainSettings, overridden: Set[str], text: choice.TextFacts) -> list[GPTConfig]:
    """Return the models that the typed settings still allow."""
    sizes, tables = [*text.bytes_per_token], {name: getattr(settings.model, name) for name in TABLES}
    if not any(is_typed(f"model.{name}", overridden) for name in ARCHITECTURE):
        return [replace(one, context_length=text.context_for(one.vocab_size), **tables) for one in choice.architectures(sizes)]
    typed = [GPTConfig(vocab_size=size, **vars(settings.model)) for size in sizes]
    if is_typed("model.context_length", overridden):
        return typed
    return [replace(one, context_length=text.context_for(one.vocab_size)) for one in typed]


def is_typed(name: str, overridden: Set[str]) -> bool:
    """Return True if the user has typed this setting or a group around it.

    A typed group `data` or `trainer` does not count: it only names the text or the devices.
    """
    return is_within(name, overridden - {"data", "trainer"})


def check_lengths(settings: TrainSettings, overridden: Set[str]) -> None:
    """Check that only the budget decides the length of the run.

    Raises:
        UserError: If another typed setting decides it too.
    """
    problems = [
        f"{name} and budget={settings.budget} both decide how long the run is. Leave out one of them."
        for name in LENGTHS
        if name in overridden
    ]
    if problems:
        raise UserError(problems)


def check_budget(settings: TrainSettings, overridden: Set[str]) -> None:
    """Check a new run's budget, and check that no other setting contradicts it.

    Raises:
        UserError: If the budget is invalid, or a setting contradicts it.
    """
    assert settings.budget is not None
    parse_budget(settings.budget)
    check_lengths(settings, overridden)
    problems = []
    if settings.init_from is not None:
        problems.append(
            "budget= chooses a new model, but init_from= loads one. Leave out one of them; trainer.max_time= limits the time "
            "of a run."
        )
    problems += [
        f"budget= chooses only among the built-in parts, but {group}._target_ names one of your own. Leave out one of them."
        for group in settings.custom
    ]
    if settings.data.name in ("shards", "mixture"):
        problems.append(
            f"budget= chooses a vocabulary for a text, but data={settings.data.name} has tokens already. Leave out budget=; "
            "trainer.max_time= limits the time of a run."
        )
    problems += [
        f"{group}= and budget= both choose the settings of a run. Leave out one of them."
        for group in ("experiment", "debug")
        if group in overridden
    ]
    if problems:
        raise UserError(problems)
