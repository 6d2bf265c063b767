"""The table of all settings that may come from a file: a checkpoint, a run's config.yaml, or the stored overrides of a sweep.

Settings that the user types are trusted. Settings from a file are checked by this table. A signature with the user's key shows
that this program wrote the file for this user, as it did if a run is resumed on the same machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from gpt_pretrain.system.resources import cores, max_processes

TAKEN = "taken as it is"
BOUNDED = "an amount: taken within the bounds of this machine, or of what is usual; beyond them only with a signature"
ASKED = "a path or URL: taken with a signature, or if it cannot lead elsewhere; else the user must type it"
LOCAL = "taken with a signature; else the value of this start counts"
NAMED = "a name: taken if nothing is opened for it; a path must be typed by the user, or lie in the run's own folder"
NEVER = "never taken: it can run code or change Hydra, or it belongs to a single start"


def _group(prefix: str, kind: str, names: str) -> dict[str, str]:
    return dict.fromkeys((prefix + name for name in names.split()), kind)


# A setting that is missing here is never taken. A test compares the tables with the schema.
TRAIN_KINDS: dict[str, str] = {
    **_group(
        "",
        TAKEN,
        "seed eval_freq start_context on_nonfinite rollback_lr_factor max_rollbacks export compile ema_decay weights budget",
    ),
    **_group("", NEVER, "resume resume_force plan run_dir"),
    "init_from": ASKED,
    "eval_iter": BOUNDED,
    **_group("model.", TAKEN, "context_length emb_dim n_heads n_layers drop_rate qkv_bias tie_embeddings init gelu_approximate"),
    **_group("model.", TAKEN, "kind n_kv_heads value_embeddings bigram_rows"),
    **_group("data.", ASKED, "path url sources"),
    **_group("data.", TAKEN, "name sha256 text_field as_text format verify batch_size train_ratio"),
    **_group("data.", TAKEN, "stride shift_windows respect_documents val_tokens"),
    "data.cache_dir": LOCAL,
    "data.num_workers": BOUNDED,
    **_group("data.remote.", BOUNDED, "prefetch_batches threads retries timeout"),
    "data.remote.cache_bytes": LOCAL,  # A small number would delete what other runs have cached.
    "data.remote.options": NEVER,
    "tokenizer.name": NAMED,
    "tokenizer.vocab_size": TAKEN,
    **_group("optimizer.", TAKEN, "name lr weight_decay betas eps decay momentum"),
    **_group("optimizer.", TAKEN, "matrices.lr embedding.lr head.lr vectors.lr"),
    **_group("optimizer.", TAKEN, "matrices.weight_decay embedding.weight_decay head.weight_decay vectors.weight_decay"),
    **_group("scheduler.", TAKEN, "name warmup_steps decay_steps decay_fraction min_lr"),
    **_group("sampler.", TAKEN, "temperature top_k top_p min_p repetition_penalty window_step"),
    "sampler.max_new_tokens": BOUNDED,
    **_group("trainer.", TAKEN, "max_epochs max_steps max_tokens max_time precision accelerator strategy"),
    **_group("trainer.", TAKEN, "activation_checkpointing accumulate_grad_batches gradient_clip_val log_every_n_steps"),
    **_group("trainer.", TAKEN, "limit_train_batches limit_val_batches deterministic detect_anomaly"),
    **_group("trainer.", BOUNDED, "devices num_nodes"),
    "trainer.profiler": LOCAL,  # PyTorch's profiler keeps each operation of a run in memory, gigabytes within minutes.
    **_group("checkpoint.", TAKEN, "every_n_steps every_n_minutes"),
    "checkpoint.keep": LOCAL,  # Each copy takes as much disk as the checkpoint.
    **_group("evaluation.", ASKED, "texts tasks"),
    **_group("evaluation.", TAKEN, "every_n_steps max_bytes task_limit"),
    **_group("callbacks.", TAKEN, "progress_bar samples loss_curve"),
    **_group("callbacks.grid.", BOUNDED, "prompts temperatures top_ks"),
    **_group("callbacks.early_stopping.", TAKEN, "patience min_delta"),
    **_group("callbacks.doctor.", BOUNDED, "window patience"),
    **_group("callbacks.doctor.", TAKEN, "first_loss overfitting gap stuck spike clipping loading"),
    **_group("", NEVER, "callbacks.custom custom"),
    **_group("logger.", TAKEN, "csv tensorboard wandb.name wandb.offline"),
    **_group("logger.", ASKED, "wandb.project mlflow.experiment_name mlflow.tracking_uri"),
    **_group("doubts.", TAKEN, "min_tokens_per_parameter min_val_windows max_ddp_memory"),
}
GENERATE_KINDS: dict[str, str] = {
    **_group("", TAKEN, "seed n_heads prompt device precision weights"),
    "tokenizer": NAMED,
    "n_samples": BOUNDED,
    **_group("", BOUNDED, "logprobs stop"),
    **_group("", ASKED, "checkpoint pretrained prompt_file"),
    **_group("", NEVER, "interactive model prompts out"),
    **_group("sampler.", TAKEN, "temperature top_k top_p min_p repetition_penalty window_step"),
    "sampler.max_new_tokens": BOUNDED,
}
# For the overrides of a sweep: options of groups, and those of Hydra's own settings that a sweep needs.
SWEEP_KINDS: dict[str, str] = {
    **_group("", TAKEN, "model data optimizer scheduler sampler trainer callbacks experiment debug"),
    **_group("logger=", TAKEN, "csv none tensorboard"),
    **_group("logger=", ASKED, "wandb mlflow"),
    **_group("hparams_search=", TAKEN, "grid optuna random ladder"),
    **_group("hparams_search=", ASKED, "parallel slurm ray"),
    "hydra/launcher": ASKED,
    **_group(
        "hydra.launcher.", ASKED, "n_jobs timeout_min cpus_per_task gpus_per_node tasks_per_node mem_gb nodes partition qos"
    ),
    **_group("hydra.sweeper.", TAKEN, "sampler pruning pruning_after seed"),
    **_group("hydra.sweeper.", BOUNDED, "n_trials n_parallel"),
    "hydra.sweeper.params=null": TAKEN,  # This leaves out the settings that a search in conf/ varies.
}
# The largest numbers that are taken without a signature. For lists, this is the number of entries.
BOUNDS: dict[str, Callable[[], int]] = {
    "eval_iter": lambda: 10_000,
    "n_samples": lambda: 1000,
    "logprobs": lambda: 20,
    "stop": lambda: 16,
    "sampler.max_new_tokens": lambda: 10_000,
    "callbacks.grid.prompts": lambda: 10,
    "callbacks.grid.temperatures": lambda: 10,
    "callbacks.grid.top_ks": lambda: 10,
    "callbacks.doctor.window": lambda: 10_000,  # steps that the health monitor looks through at each step
    "callbacks.doctor.patience": lambda: 10_000,
    "trainer.devices": max_processes,
    "trainer.num_nodes": lambda: 1,
    "data.num_workers": cores,
    "data.remote.prefetch_batches": lambda: 64,
    "data.remote.threads": lambda: 64,
    "data.remote.retries": lambda: 10,
    "data.remote.timeout": lambda: 300,
    "hydra.sweeper.n_trials": lambda: 1000,
    "hydra.sweeper.n_parallel": max_processes,
}


def override_kind(key: str, value: object, *, script: str) -> str:
    """Return the kind of a stored override, which says how it is treated: TAKEN, BOUNDED, ASKED, LOCAL, NAMED or NEVER.

    Args:
        key: A setting, or a group whose option is chosen.
        value: The value. For some groups, it decides.
        script: "train" or "generate".
    """
    kinds = GENERATE_KINDS if script == "generate" else TRAIN_KINDS
    if key in kinds:
        return value_kind(kinds[key], value)
    parts = [name for name in kinds if name.startswith(f"{key}.")] + [name for name in SWEEP_KINDS if name.startswith(f"{key}=")]
    if value is None and parts:
        return TAKEN  # null turns off a part, such as callbacks.doctor, or an option of a group.
    if "." not in key and not (value is None or (isinstance(value, str) and re.fullmatch(r"\w[\w-]*", value, re.ASCII))):
        return NEVER  # An option is the name of a file in conf/, so this could be a path.
    return SWEEP_KINDS.get(key) or SWEEP_KINDS.get(f"{key}={value}", NEVER)


def value_kind(kind: str, value: object) -> str:
    """Return the kind of a setting with this value. NAMED becomes ASKED if the value is a path or URL, and otherwise TAKEN."""
    if kind != NAMED:
        return kind
    from gpt_pretrain.tokenizers.build import is_location_of_tokenizer  # loads the libraries of tokenizers

    return ASKED if isinstance(value, str) and is_location_of_tokenizer(value) else TAKEN


def is_within_bounds(key: str, value: object) -> bool:
    """Return whether a stored number, or the length of a stored list, is within its bounds."""
    return isinstance(value, int | float | list) and (len(value) if isinstance(value, list) else value) <= BOUNDS[key]()


def within_bounds(key: str, value: Any) -> Any:
    """Return a stored number or list, cut to its bounds."""
    if is_within_bounds(key, value):
        return value
    return value[: BOUNDS[key]()] if isinstance(value, list) else BOUNDS[key]()
