"""The report page of a run."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Any

from gpt_pretrain.runs.charts import curves, drawing
from gpt_pretrain.runs.folder import EXPORTED, display_path, list_checkpoints
from gpt_pretrain.runs.metadata import COMPLETE, metadata_section, stored_overrides
from gpt_pretrain.runs.next_commands import generate_command, page_command, repeat_command, resume_command, tensorboard_command
from gpt_pretrain.runs.reader import RunContents, read_run, run_results
from gpt_pretrain.runs.reference import compare_with_reference, find_reference
from gpt_pretrain.runs.report.held_out import held_out_charts
from gpt_pretrain.runs.report.page_parts import (
    STATES,
    Picture,
    describe_state,
    facts_table,
    join_distinct,
    list_files,
    make_picture,
    printable,
    read_findings,
    render_page,
    shorten,
)
from gpt_pretrain.runs.samples import Sample, pick_evenly
from gpt_pretrain.system.formatting import (
    format_count,
    format_duration,
    format_number,
    format_perplexity,
    format_si,
    is_finite_number,
)

Facts = list[tuple[str, str]]

MAX_SAMPLE_STEPS = 8  # Steps with samples on the page.
MAX_SAMPLES_PER_STEP = 6
SAMPLE_CHARACTERS = 60_000  # Characters of all samples together.
CONFIG_CHARACTERS = 50_000
MESSAGE_CHARACTERS = 4_000  # Characters of a command or an error.

FILE_PURPOSES = {
    "losses.png": "the loss curve",
    "losses.pdf": "the loss curve, for print",
    "samples.txt": "all samples",
    "metrics.csv": "all metrics by step",
    "train.log": "the log",
    "config.yaml": "all settings",
    "run.json": "the run metadata, for programs",
    "last.ckpt": "model and optimizer at the last saved step",
    "best.ckpt": "model and optimizer at the lowest validation loss",
    EXPORTED: "the weights in the format of transformers",
}


def render_run_page(folder: Path) -> str:
    """Return the report page of a run as HTML."""
    run = read_run(folder)
    metadata, results = run.metadata, run_results(run)
    state, samples = str(metadata.get("state", "unknown")), _samples_by_step(run.samples)
    return render_page(
        "run.html",
        title=printable(folder.resolve().name),
        path=printable(display_path(folder)),
        state=state if state in STATES else "unknown",
        state_text=describe_state(state),
        error=shorten(metadata.get("error") or "", MESSAGE_CHARACTERS),
        headline=[*_headline(metadata, results), *_reference_row(run)],
        curves=_curves(run),
        held_out=held_out_charts(run),
        samples=samples,
        samples_shown=sum(len(group["samples"]) for group in samples),
        samples_total=len(run.samples),
        findings=read_findings(metadata),
        throughput=_throughput(metadata, results),
        throughput_curves=_throughput_curves(run),
        setup=setup_facts(metadata, config=run.config),
        command=shorten(metadata.get("command") or "", MESSAGE_CHARACTERS),
        config_title="All settings (config.yaml)",
        config=shorten(run.config_text, CONFIG_CHARACTERS),
        files_listed=list_files(folder, FILE_PURPOSES),
        next_commands=[printable(command) for command in _next_commands(run, results)],
    )


def setup_facts(metadata: dict[str, Any], *, config: dict[str, str]) -> Facts:
    """Return the data, the model, the machine and the versions of a run."""
    data, model, program, machine = (metadata_section(metadata, name) for name in ("data", "model", "program", "machine"))
    memory = machine.get("memory_bytes")
    versions = [f"{name} {version}" for name, version in metadata_section(metadata, "versions").items()]
    train = [_count(data.get("train_tokens"), "token"), _count(data.get("train_windows"), "window")]
    validation = [_count(data.get("val_tokens"), "token"), _count(data.get("val_windows"), "window")]
    amounts = [_count(data.get(f"{unit}s"), unit) for unit in ("character", "document", "byte")]
    return facts_table(
        ("Started", _time(metadata.get("started"))),
        ("Ended", _time(metadata.get("ended"))),
        ("Text", join_distinct([data.get("name"), data.get("path"), *amounts])),
        ("SHA-256 of the text", data.get("sha256")),
        ("Training set", join_distinct(train)),
        ("Validation set", join_distinct(validation)),
        ("Tokenizer", metadata.get("tokenizer") or config.get("tokenizer.name")),
        ("Vocabulary", _count(model.get("vocab_size"), "token")),
        ("Model", _describe_model(model, config)),
        ("Precision", join_distinct([metadata.get("precision"), "compiled" if metadata.get("compiled") is True else None])),
        ("Device", machine.get("device")),
        ("Machine", join_distinct([machine.get("cpu"), _count(machine.get("cores"), "core"), machine.get("system")])),
        ("Memory", format_si(memory, "B") if is_finite_number(memory) else None),
        ("Program", f"gpt-pretrain {program['version']}" if program.get("version") else None),
        ("Git revision", program.get("git")),
        ("Versions", join_distinct(versions)),
        ("Seed", config.get("seed")),
    )


def split_blank_lines(text: str) -> list[tuple[str, int]]:
    """Split a text at runs of two or more blank lines.

    Returns:
        Pairs of a text and 0, or of an empty text and the number of blank lines in its place.
    """
    parts: list[tuple[str, int]] = []
    for blank, group in groupby(text.removesuffix("\n").split("\n"), key=lambda line: not line.strip()):
        lines = list(group)
        if blank and len(lines) > 1:
            parts.append(("", len(lines)))
        elif parts and not parts[-1][1]:
            parts[-1] = ("\n".join([parts[-1][0], *lines]), 0)
        else:
            parts.append(("\n".join(lines), 0))
    return parts


def _headline(metadata: dict[str, Any], results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the name, the value and a note of the most important known results."""
    seconds = metadata.get("seconds")
    span, new = format_number(results.get("run_length"), ",d"), format_number(results.get("new_tokens"), ",d")
    rows = [
        ("Best validation loss", format_number(results.get("best_val_loss"), ".4g"), _best_loss_note(results)),
        (
            "Best bits per byte",
            format_number(results.get("best_bits_per_byte"), ".4g"),
            "of the validation set, comparable between tokenizers",
        ),
        ("Last validation loss", format_number(results.get("val_loss"), ".4g"), "nats per token"),
        ("Last training loss", format_number(results.get("train_loss"), ".4g"), "nats per token"),
        ("Tokens seen", format_number(results.get("tokens_seen"), ",d"), _length_note(results)),
        ("Time", format_duration(seconds) if is_finite_number(seconds) else "-", ""),
        ("Longest memorized span", f"{span} of {new}", "new tokens of the last sample"),
    ]
    return [(name, value, note) for name, value, note in rows if not value.startswith("-")]


def _reference_row(run: RunContents) -> list[tuple[str, str, str]]:
    """Return a row about the run's distance from the reference of its recipe, if there is one."""
    reference = find_reference(run)
    compared = None if reference is None else compare_with_reference(run, reference)
    return [] if compared is None else [("To the reference", *compared)]


def _throughput(metadata: dict[str, Any], results: dict[str, Any]) -> Facts:
    seconds, memory = metadata.get("seconds"), results.get("peak_memory_bytes")
    return facts_table(
        ("Tokens per second in training", format_number(results.get("tokens_per_second"), ",.0f")),
        ("Total time", format_duration(seconds) if is_finite_number(seconds) else None),
        ("Peak memory", format_si(memory, "B") if is_finite_number(memory) else None),
    )


def _curves(run: RunContents) -> list[Picture]:
    found = []
    if run.series("train/loss", "eval/train_loss", "eval/val_loss", "val/loss"):
        alt = "Training and validation loss by optimizer step, with tokens seen on the upper axis."
        found.append(make_picture(curves.run_loss_figure(run, reference=find_reference(run)), "Loss", alt, width="wide"))
    if lr := run.series("lr"):
        figure = curves.metric_figure(lr, label="learning rate")
        found.append(make_picture(figure, "Learning rate", "Learning rate by optimizer step."))
    if norm := run.series("grad_norm"):
        figure = curves.metric_figure(norm, label="gradient norm", color=drawing.GREEN, log=True)
        found.append(make_picture(figure, "Gradient norm before clipping", "Norm of all gradients by optimizer step."))
    return found


def _throughput_curves(run: RunContents) -> list[Picture]:
    series = run.series("tokens_per_second")
    if not series:
        return []
    figure = curves.metric_figure(series, label="tokens per second", color=drawing.PURPLE)
    return [make_picture(figure, "Tokens per second", "Training tokens per second, by optimizer step.")]


def _samples_by_step(samples: list[Sample]) -> list[dict[str, Any]]:
    """Return a selection of the samples, grouped by step."""
    groups = [list(group) for _, group in groupby(samples, key=lambda sample: (sample.epoch, sample.step))]
    chosen = [pick_evenly(group, MAX_SAMPLES_PER_STEP) for group in pick_evenly(groups, MAX_SAMPLE_STEPS)]
    limit = SAMPLE_CHARACTERS // max(1, sum(map(len, chosen)))
    return [
        {
            "heading": f"Epoch {group[0].epoch:,}, step {group[0].step:,}, {group[0].tokens_seen:,} tokens seen",
            "samples": [
                {
                    "sampler": printable(sample.sampler or ""),
                    "memorized_span": sample.memorized_span,
                    "parts": split_blank_lines(shorten(sample.text, limit)),
                }
                for sample in group
            ],
        }
        for group in chosen
    ]


def _next_commands(run: RunContents, results: dict[str, Any]) -> list[str]:
    folder = display_path(run.folder)
    commands = []
    if list_checkpoints(run.folder):
        commands.append(generate_command(folder, start_context=run.config.get("start_context", "Every effort moves you")))
        if run.config.get("model.kind") != "custom":
            commands.append(page_command(folder))
        patience = _spent_patience(run, results)
        commands.append(resume_command(folder, limit=None if patience else _reached_limit(run, results), patience=patience))
    elif run.metadata.get("command") and (command := repeat_command(stored_overrides(run.metadata))):
        commands.append(shorten(command, MESSAGE_CHARACTERS))
    if any(run.folder.glob("events.out.tfevents.*")):
        commands.append(tensorboard_command(display_path(run.folder.parent)))
    return commands


def _reached_limit(run: RunContents, results: dict[str, Any]) -> tuple[str, int] | None:
    """Return the setting that ended a complete run, and its value."""
    steps, tokens, epochs = (_amount(run.config.get(f"trainer.{name}")) for name in ("max_steps", "max_tokens", "max_epochs"))
    if run.metadata.get("state") not in COMPLETE:
        return None
    if steps and isinstance(done := results.get("steps"), int) and done >= steps:
        return "max_steps", steps
    if tokens is not None:
        return "max_tokens", tokens
    return None if epochs is None else ("max_epochs", epochs)


def _spent_patience(run: RunContents, results: dict[str, Any]) -> int | None:
    """Return the patience of early stopping, if nothing else can have ended a complete run."""
    patience, epochs = _amount(run.config.get("callbacks.early_stopping.patience")), _amount(run.config.get("trainer.max_epochs"))
    limited = any(
        run.config.get(f"trainer.{name}", "null") not in ("null", "-1") for name in ("max_steps", "max_tokens", "max_time")
    )
    done = results.get("epochs")
    if run.metadata.get("state") not in COMPLETE or limited or epochs is None or not is_finite_number(done):
        return None
    return patience if done < epochs - 0.5 else None


def _amount(text: str | None) -> int | None:
    """Return a setting's number of steps, tokens or epochs; None if it is not a plain whole number."""
    return int(text) if text is not None and re.fullmatch("[0-9]{1,18}", text) else None


def _describe_model(model: dict[str, Any], config: dict[str, str]) -> str:
    parameters = format_number(model.get("parameters"), ",d")
    names = {"n_layers": "layers", "n_heads": "heads", "emb_dim": "emb_dim", "context_length": "context"}
    if config.get("model.kind") == "custom":
        names = {"context_length": "context"}
    shape = [f"{name} {config[key]}" for field, name in names.items() if (key := f"model.{field}") in config]
    return join_distinct(["" if parameters == "-" else f"{parameters} parameters", *shape])


def _length_note(results: dict[str, Any]) -> str:
    steps, epochs = results.get("steps"), format_number(results.get("epochs"), ".4g")
    return join_distinct([_count(steps, "step"), "" if epochs == "-" else f"{epochs} epochs"])


def _best_loss_note(results: dict[str, Any]) -> str:
    loss, epoch = results.get("best_val_loss"), results.get("best_epoch")
    step = format_number(results.get("best_step"), ",d")
    perplexity = f"perplexity {format_perplexity(loss)}" if is_finite_number(loss) else ""
    average = "of the moving average" if results.get("best_weights") == "ema" else ""
    when = [f"epoch {epoch}" if isinstance(epoch, int) else "", "" if step == "-" else f"step {step}"]
    return join_distinct(["nats per token", average, perplexity, *when])


def _count(number: object, unit: str) -> str | None:
    return format_count(number, unit) if isinstance(number, int) else None


def _time(text: object) -> str | None:
    return text.replace("T", " ").replace("+00:00", " UTC") if isinstance(text, str) else None
