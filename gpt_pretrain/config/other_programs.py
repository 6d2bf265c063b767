"""Translate settings of other programs: nanoGPT, nanochat, litgpt, torchtitan, transformers and the Lightning-Hydra template.

`setting_names.OTHER_NAMES` lists settings that only have another name here. This file lists those whose values differ too.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

from gpt_pretrain.config.inference_schema import EvaluateSettings, ServeSettings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.setting_names import is_declared, nearest_settings, same_names
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.reading import read_bytes
from gpt_pretrain.system.shell import quote_word

PRECISIONS = {
    **dict.fromkeys(("float32", "fp32", "32", "no"), "32-true"),
    **dict.fromkeys(("float16", "fp16", "16", "half"), "16-mixed"),
    **dict.fromkeys(("bfloat16", "bf16"), "bf16-mixed"),
}
PLACEHOLDERS = re.compile(r"VALUE|DEVICE|PRECISION")
OFF = ("false", "0", "no", "off", "none")  # values of a switch, in any case
LEAVE_OUT = "Leave this out: it is off unless you turn it on."
MAX_PYTHON_BYTES = 100_000
FILE_PROMPT = re.compile(r"FILE:(.+)")  # nanoGPT's prompt from a file

KEPT = "Each run keeps last.ckpt and best.ckpt; checkpoint.every_n_steps=N and checkpoint.keep=N keep more."
SCORED = f"evaluate.py scores a trained model: {script_command('evaluate.py')} checkpoint=latest data.path=FILE"
SHORT_TEXT = "To overfit on purpose, train on a short text: data.path=FILE trainer.max_epochs=100"
SCHEDULES = "Schedules are options, such as scheduler=constant and scheduler=warmup_cosine; --help lists all."
ENDS = "A run ends at trainer.max_epochs=N, trainer.max_steps=N, trainer.max_tokens=N or trainer.max_time=TIME."
EXPERIMENTS = (
    "Settings that belong together are in a file experiment/NAME.yaml in conf/, or in a folder that --config-dir names, and "
    "experiment=NAME selects them."
)
SAMPLED = (
    "generate.py samples with sampler.temperature=T above 0, and serve.py if a request says so; a temperature of 0 takes the "
    "likeliest token."
)
# Settings of generate.py that evaluate.py and serve.py do not have.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
SENT_BY_CLIENTS = "Clients send it with each text: a request to /v1/completions has the field {field}."
NOT_SAMPLED = "evaluate.py samples no text: a score follows from the probabilities of the tokens that a text has. Leave this out."
# Settings of other programs, with the remedy in train.py and the remedy in the other scripts. None means that another rule has a
# better one. VALUE, DEVICE, PRECISION and FILE stand for the typed value as it is written here.
REMEDIES: dict[str, tuple[str | None, str | None]] = {
    "device": ("Type trainer.accelerator=DEVICE", None),
    "dtype mixed_precision": ("Type trainer.precision=PRECISION", "Type precision=bf16-mixed or precision=32-true"),
    "fp16": ("Type trainer.precision=16-mixed", "Type precision=bf16-mixed"),
    "bf16": ("Type trainer.precision=bf16-mixed", "Type precision=bf16-mixed"),
    "quantize load_in_8bit": (None, "generate.py and serve.py round the weights with precision=int8"),
    "beta1 adam_beta1": ("Type optimizer.betas=[VALUE,0.999]", None),
    "beta2 adam_beta2": ("Type optimizer.betas=[0.9,VALUE]", None),
    "wandb wandb_log enable_wandb": ("Type logger=wandb", None),
    "wandb_project": ("Type logger=wandb logger.wandb.project=VALUE", None),
    "wandb_run_name": ("Type logger=wandb logger.wandb.name=VALUE", None),
    "report_to": ("Type logger=VALUE", None),
    "run_name task_name": ("Type hydra.run.dir=outputs/VALUE", None),
    "out_dir": ("Type hydra.run.dir=VALUE", "Type checkpoint=VALUE"),
    "ckpt_path resume_from_checkpoint resume": ("Type resume=VALUE", "Type checkpoint=VALUE"),
    "model_name model_name_or_path": ("Type init_from=VALUE", "Type pretrained=VALUE"),
    "init_from model": (None, "Type pretrained=VALUE"),
    "model_args": (None, "Type pretrained=NAME"),
    "fast_dev_run": ("Type debug=fast", None),
    "gradient_checkpointing activation_checkpoint.mode": ("Type trainer.activation_checkpointing=true", None),
    "torch_compile compile.enable": ("Type compile=true", None),
    "compile": (None, "Only train.py compiles."),
    "validation_file val_file": ("Type evaluation.texts=[VALUE]", None),
    "data_parallel_shard_degree": ("Type trainer=fsdp trainer.devices=VALUE", None),
    "data_parallel_replicate_degree": ("Type trainer=ddp trainer.devices=VALUE", None),
    "enable_profiling": ("Type trainer.profiler=pytorch", None),
    "always_save_checkpoint save_top_k checkpoint.enable": (KEPT, None),
    "eval_only test do_eval do_test": (SCORED, None),
    "train do_train": ("train.py always trains, and evaluate.py scores trained models.", None),
    "decay_lr lr_scheduler_type": (SCHEDULES, None),
    "lr_decay_iters": ("The learning rate falls until the last step of the run, trainer.max_steps=N", None),
    "warmup_ratio": ("The warm-up counts optimizer steps: scheduler.warmup_steps=N", None),
    "bias": ("model.qkv_bias=true adds biases to queries, keys and values; model=modern_small has no biases.", None),
    "backend": ("The backend follows from the devices: NCCL between GPUs, Gloo between CPUs.", None),
    "tags enforce_tags": ("Runs have no tags; hydra.run.dir=outputs/NAME names a run.", None),
    "print_config": (f"{script_command('train.py')} --cfg job prints all settings without starting a run.", None),
    "optimized_metric": ("A sweep ranks its runs by their best validation loss.", None),
    "min_epochs min_steps": (ENDS, None),
    "check_val_every_n_epoch val_check_interval": ("A validation loss is computed every eval_freq=N optimizer steps.", None),
    "overfit_batches": (SHORT_TEXT, None),
    "limit_test_batches": ("evaluate.py scores the start of a text: max_bytes=N", None),
    "global_batch_size total_batch_size": (
        "A step reads data.batch_size=N times trainer.accumulate_grad_batches=N windows on each device.",
        None,
    ),
    "config config_file": (EXPERIMENTS, None),
    "do_sample": (None, SAMPLED),
    "num_beams": (None, "There is no beam search; a temperature of 0 takes the likeliest token."),
}
# Options of groups in the Lightning-Hydra template.
OPTION_REMEDIES = {
    "trainer=ddp_sim": "Type trainer=ddp trainer.accelerator=cpu trainer.devices=2",
    "trainer=mps": "Type trainer.accelerator=mps",
    "trainer=cuda": "Type trainer=gpu",
    "debug=default": "Type debug=fast",
    "debug=fdr": "Type debug=fast",
    "debug=limit": "Type trainer.limit_train_batches=10 trainer.limit_val_batches=2",
    "debug=overfit": SHORT_TEXT,
    "logger=many_loggers": "Type 'logger=[tensorboard,wandb]'",
    "callbacks=none": "Type callbacks=minimal",
    "callbacks=model_checkpoint": KEPT,
    "hydra/sweeper=optuna": "Type hparams_search=optuna",
}


# Values of other programs.
VALUE_REMEDIES: dict[str, tuple[str | None, str | None]] = {
    "init_from=resume": ("Type resume=latest", "Type checkpoint=latest"),
    "init_from=scratch": ("Leave this out: without it, the weights are random.", None),
}


def counterpart(key: str, value: str, *, schema: type) -> str | None:
    """Return what to type or do in place of another program's setting, or None if the setting is unknown.

    Args:
        key: The name as typed, without dashes before it.
        value: The typed value, or an empty text.
        schema: The settings of the script.
    """
    key = key.lower().replace("-", "_")
    last = key.rpartition(".")[2]
    if last == "start" and same_names("prompt_file", schema) and (prompt := FILE_PROMPT.fullmatch(value)) is not None:
        return f"Type {quote_word(f'prompt_file={prompt[1]}')}"
    words = (key,) if same_names(last, schema) else (key, last)
    if (other := other_value(f"{last}={value}", schema=schema)) is not None:
        return other
    if last in SAMPLING and schema is ServeSettings:
        return SENT_BY_CLIENTS.format(field="max_tokens" if last == "max_new_tokens" else last)
    if last in SAMPLING and schema is EvaluateSettings:
        return NOT_SAMPLED
    column = 0 if schema is TrainSettings else 1
    found = next((forms[column] for names, forms in REMEDIES.items() if not set(words).isdisjoint(names.split())), None)
    if found is None or not found.startswith("Type "):
        return found
    if value.lower() in OFF and PLACEHOLDERS.search(found) is None:
        return f"{found.removesuffix('true')}false" if found.endswith("=true") else LEAVE_OUT
    return " ".join(["Type", *(quote_word(_fill(word, value)) for word in found.split()[1:])])


def other_value(override: str, *, schema: type) -> str | None:
    """Return what to type in place of a value that only another program knows, or None for any other value."""
    return VALUE_REMEDIES.get(override, (None, None))[0 if schema is TrainSettings else 1]


def hydra_group_problem(override: str) -> str | None:
    """Return what is wrong with an override that is meant to choose Hydra's launcher or sweeper, or None."""
    key, _, value = override.partition("=")
    option = f"{key.replace('.', '/')}={value}"
    if key.startswith("hydra") and option in OPTION_REMEDIES:
        return f"{override}: there is no such option. {OPTION_REMEDIES[option]}"
    if key in ("hydra.launcher", "hydra.sweeper") and value.isidentifier() and value != "null":
        return f"{override}: options of Hydra's groups are written with a slash. Type {option}"
    return None


def explain_python_file(name: str) -> str:
    """Return what to type in place of nanoGPT's file of settings, whose lines are `name = value`."""
    constants = _read_constants(Path(name))
    if constants.get("wandb_log", "").lower() in OFF:  # Without it, the project and the name of the run have no effect.
        constants = {key: value for key, value in constants.items() if not key.startswith("wandb_")}
    translated = filter(None, (_translate(key, value) for key, value in constants.items()))
    typed = dict.fromkeys(word for words in translated for word in shlex.split(words))  # without repeating logger=wandb
    found = f" Those of this file are written here: {' '.join(map(quote_word, typed))}" if typed else f" {EXPERIMENTS}"
    return f"{name}: settings are not read from Python files.{found}"


def _read_constants(file: Path) -> dict[str, str]:
    """Return the constants that a Python file assigns to names, as texts. Return an empty dict if it cannot be read."""
    try:
        lines = ast.parse(read_bytes(file, max_bytes=MAX_PYTHON_BYTES)).body
        return {
            line.targets[0].id: str(line.value.value)  # raises a ValueError for a number with too many digits
            for line in lines
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name) and isinstance(line.value, ast.Constant)
        }
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _translate(key: str, value: str) -> str | None:
    """Return another program's setting as it is typed for train.py, or None if it is unknown or could mean several settings."""
    if (advice := counterpart(key, value, schema=TrainSettings)) is not None:
        return advice.removeprefix("Type ") if advice.startswith("Type ") else None
    names = [key] if is_declared(TrainSettings, key) else nearest_settings(key, TrainSettings)
    return quote_word(f"{names[0]}={value}") if len(names) == 1 else None


def _fill(override: str, value: str) -> str:
    """Return an override with the typed value in it, as it is written here."""
    value = value or "VALUE"
    precision = PRECISIONS.get(value.removeprefix("torch."), value)
    override = override.replace("PRECISION", precision).replace("DEVICE", value.partition(":")[0])
    return override.replace("VALUE", value)
