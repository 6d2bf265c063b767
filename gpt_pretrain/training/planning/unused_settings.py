"""Find typed settings without effect. For each, another setting decides whether it is used."""

from __future__ import annotations

from collections.abc import Callable, Set
from operator import attrgetter

from gpt_pretrain.config.rules import as_typed_value
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.training.planning.check_context import CheckContext

SHARDS = ("shards", "mixture")

# Names of settings, a test for whether they are used, and the reason if they are not.
USES: list[tuple[tuple[str, ...], Callable[[TrainSettings], bool], str]] = [
    (("resume_force",), lambda settings: settings.resume is not None, "without resume="),
    (("weights",), lambda settings: settings.init_from is not None, "without init_from="),
    (
        ("rollback_lr_factor", "max_rollbacks"),
        lambda settings: settings.on_nonfinite == "rollback",
        "without on_nonfinite=rollback",
    ),
    (("data.sources",), lambda settings: settings.data.name == "mixture", "without data=mixture"),
    (
        ("data.path", "data.url"),
        lambda settings: settings.data.name != "mixture",
        "with data=mixture, which reads data.sources",
    ),
    (("data.url",), lambda settings: settings.data.path is None, "together with data.path"),
    (("data.sha256",), lambda settings: settings.data.url is not None, "without data.url="),
    (("data.format", "data.verify"), lambda settings: settings.data.name in SHARDS, "without data=shards"),
    (
        ("evaluation.every_n_steps",),
        lambda settings: bool(settings.evaluation.texts) or settings.evaluation.tasks is not None,
        "without evaluation.texts or evaluation.tasks",
    ),
    (("evaluation.max_bytes",), lambda settings: bool(settings.evaluation.texts), "without evaluation.texts"),
    (("evaluation.task_limit",), lambda settings: settings.evaluation.tasks is not None, "without evaluation.tasks"),
    (("data.text_field", "data.as_text"), lambda settings: settings.data.name != "shards", "with data=shards"),
    (
        ("data.remote.cache_bytes", "data.remote.prefetch_batches", "data.remote.threads", "data.remote.retries"),
        lambda settings: any("://" in str(path) for path in _shard_paths(settings)),
        "without token shards behind a URL",
    ),
    (
        ("trainer.max_epochs",),
        lambda settings: settings.trainer.max_tokens is None,
        "together with trainer.max_tokens, which replaces it",
    ),
    (
        ("optimizer.momentum",),
        lambda settings: settings.optimizer.name != "adamw" or "optimizer" in settings.custom,
        "with optimizer=adamw, whose averages optimizer.betas sets",
    ),
    (
        ("start_context", "sampler.max_new_tokens"),
        lambda settings: settings.callbacks.samples or settings.callbacks.grid is not None,
        "with callbacks.samples=false",
    ),
]


def _shard_paths(settings: TrainSettings) -> list[str | None]:
    if settings.data.name == "mixture":
        return [source.path for source in settings.data.sources]
    return [settings.data.path] if settings.data.name in SHARDS else []


def unused_settings(context: CheckContext) -> str | None:
    """Check that every typed setting is used."""
    sentences = _sentences(context.settings, context.overridden)
    if "data.train_ratio" in context.overridden and context.data.split.is_given:
        ratio = context.settings.data.train_ratio
        sentences.append(f"data.train_ratio={ratio:g} has no effect, since the data bring their own validation set.")
    return " ".join(sentences) or None


def _sentences(settings: TrainSettings, overridden: Set[str]) -> list[str]:
    sentences = []
    for names, is_used, reason in USES:
        typed = [name for name in names if name in overridden and attrgetter(name)(settings) not in (None, False, [])]
        if typed and not is_used(settings):
            shown = [f"{name}={as_typed_value(attrgetter(name)(settings))}" if name != "data.sources" else name for name in typed]
            sentences.append(f"{' and '.join(shown)} {'has' if len(typed) == 1 else 'have'} no effect {reason}.")
    return sentences
