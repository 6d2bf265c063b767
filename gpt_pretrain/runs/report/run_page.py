"""The page of a run."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from gpt_pretrain.runs.charts import curves, drawing
from gpt_pretrain.runs.folder import display_path, list_checkpoints
from gpt_pretrain.runs.metadata import COMPLETE
from gpt_pretrain.runs.next_commands import generate_command, resume_command, tensorboard_command
from gpt_pretrain.runs.reader import RunContents, read_run, run_results, section
from gpt_pretrain.runs.report.page import (
    Picture,
    ending,
    facts_table,
    findings,
    joined,
    listed,
    picture,
    render,
    shorten,
    state_words,
    visible,
)
from gpt_pretrain.runs.samples import Sample, thin_out
from gpt_pretrain.system.formatting import (
    format_count,
    format_duration,
    format_number,
    format_perplexity,
    format_si,
    is_finite_number,
)

Facts = list[tuple[str, str]]

MOMENTS = 8  # of which samples are shown
SAMPLES_TOGETHER = 6  # of one moment
SAMPLE_TEXT = 60_000  # characters of all samples together
CONFIG_TEXT = 50_000
NOISE = 4_000  # characters of a command or an error


def run_page(folder: Path) -> str:
    """The page of a run's folder."""
    run = read_run(folder)
    record, result = run.record, run_results(run)
    state, samples = str(record.get("state", "unknown")), _samples(run.samples)
    return render(
        "run.html",
        title=visible(folder.resolve().name),
        place=visible(display_path(folder)),
        state=state if state in (*COMPLETE, "failed", "interrupted", "running") else "unknown",
        state_words=state_words(state),
        error=shorten(ending(record), NOISE),
        headline=_headline(record, result),
        curves=_curves(run),
        samples=samples,
        samples_shown=sum(len(moment["texts"]) for moment in samples),
        samples_in_all=len(run.samples),
        findings=findings(record),
        throughput=_throughput(record, result),
        speed=_speed(run),
        setup=setup_facts(record, config=run.config),
        command=shorten(record.get("command") or "", NOISE),
        config_title="All settings (config.yaml)",
        config=shorten(run.config_text, CONFIG_TEXT),
        files_listed=listed(folder),
        next_commands=[visible(command) for command in _commands(run, result)],
    )


def setup_facts(record: dict[str, Any], *, config: dict[str, str]) -> Facts:
    """What was run, on what, with what."""
    data, model, program, machine = (section(record, name) for name in ("data", "model", "program", "machine"))
    memory = machine.get("memory_bytes")
    versions = [f"{name} {version}" for name, version in section(record, "versions").items()]
    return facts_table(
        ("Started", _moment(record.get("started"))),
        ("Ended", _moment(record.get("ended"))),
        ("Text", joined([data.get("name"), data.get("path"), *_text_amounts(data)])),
        ("Its SHA-256", data.get("sha256")),
        ("To train on", joined([_amount(data.get("train_tokens"), "token"), _amount(data.get("train_windows"), "window")])),
        ("To validate", joined([_amount(data.get("val_tokens"), "token"), _amount(data.get("val_windows"), "window")])),
        ("Tokenizer", record.get("tokenizer") or config.get("tokenizer.name")),
        ("Vocabulary", _amount(section(record, "model").get("vocab_size"), "token")),
        ("Model", _model(model, config)),
        ("Precision", joined([record.get("precision"), "compiled" if record.get("compiled") is True else None])),
        ("Device", machine.get("device")),
        ("Machine", joined([machine.get("cpu"), _amount(machine.get("cores"), "core"), machine.get("system")])),
        ("Memory", format_si(memory, "B") if is_finite_number(memory) else None),
        ("Program", f"gpt-pretrain {program['version']}" if program.get("version") else None),
        ("Git revision", program.get("git")),
        ("Versions", joined(versions)),
        ("Seed", config.get("seed")),
    )


def _headline(record: dict[str, Any], result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The numbers that matter most: name, value and what belongs to it; those that are known."""
    best, step = result.get("best_val_loss"), format_number(result.get("best_step"), ",d")
    seconds = record.get("seconds")
    length, new = format_number(result.get("run_length"), ",d"), format_number(result.get("new_tokens"), ",d")
    rows = [
        ("Best validation loss", format_number(best, ".4g"), _about_best(best, result.get("best_epoch"), step)),
        ("Last validation loss", format_number(result.get("val_loss"), ".4g"), "nats a token"),
        ("Last training loss", format_number(result.get("train_loss"), ".4g"), "nats a token"),
        ("Tokens seen", format_number(result.get("tokens_seen"), ",d"), _length(result)),
        ("Time", format_duration(seconds) if is_finite_number(seconds) else "-", ""),
        ("Memorised", f"{length} of {new}", "tokens of the last sample in a row stand in the training text"),
    ]
    return [(name, value, note) for name, value, note in rows if not value.startswith("-")]


def _throughput(record: dict[str, Any], result: dict[str, Any]) -> Facts:
    seconds, memory = record.get("seconds"), result.get("peak_memory_bytes")
    return facts_table(
        ("Tokens a second, while training", format_number(result.get("tokens_per_second"), ",.0f")),
        ("Whole time", format_duration(seconds) if is_finite_number(seconds) else None),
        ("Peak memory", format_si(memory, "B") if is_finite_number(memory) else None),
    )


def _curves(run: RunContents) -> list[Picture]:
    found = []
    if run.series("train/loss", "eval/train_loss", "eval/val_loss", "val/loss"):
        alt = "Training and validation loss by optimizer step, with tokens seen above."
        found.append(picture(curves.run_losses(run), "Losses", alt, look="wide"))
    if lr := run.series("lr"):
        found.append(picture(curves.run_metric(lr, label="learning rate"), "Learning rate", "Learning rate by optimizer step."))
    if norm := run.series("grad_norm"):
        figure = curves.run_metric(norm, label="gradient norm", color=drawing.GREEN, log=True)
        found.append(picture(figure, "Gradient norm, before clipping", "Norm of all gradients by optimizer step."))
    return found


def _speed(run: RunContents) -> list[Picture]:
    speed = run.series("tokens_per_second")
    if not speed:
        return []
    figure = curves.run_metric(speed, label="tokens per second", color=drawing.PURPLE)
    return [picture(figure, "Tokens per second", "Tokens trained on per second, by optimizer step.")]


def _samples(samples: list[Sample]) -> list[dict[str, Any]]:
    """Some of the samples, by the moment at which they were made."""
    moments = [list(group) for _, group in groupby(samples, key=lambda sample: (sample.epoch, sample.step))]
    chosen = [(group[0], thin_out(group, SAMPLES_TOGETHER)) for group in thin_out(moments, MOMENTS)]
    most = SAMPLE_TEXT // max(1, sum(len(group) for _, group in chosen))
    return [
        {
            "head": f"Epoch {first.epoch:,}, step {first.step:,}, {first.tokens_seen:,} tokens seen",
            "texts": [
                {"sampler": visible(one.sampler or ""), "run": _run(one), "text": shorten(one.text, most)} for one in group
            ],
        }
        for first, group in chosen
    ]


def _run(sample: Sample) -> str:
    if sample.run_length is None:
        return ""
    return f"{sample.run_length:,} of {sample.new_tokens:,} new tokens in a row stand in the training text"


def _commands(run: RunContents, result: dict[str, Any]) -> list[str]:
    """What to do next."""
    folder = display_path(run.folder)
    commands = []
    if list_checkpoints(run.folder):
        commands.append(generate_command(folder, start_context=run.config.get("start_context", "Every effort moves you")))
        commands.append(resume_command(folder, limit=_limit(run, result)))
    elif run.record.get("command"):
        commands.append(shorten(run.record["command"], NOISE))
    if any(run.folder.glob("events.out.tfevents.*")):
        commands.append(tensorboard_command(display_path(run.folder.parent)))
    return commands


def _limit(run: RunContents, result: dict[str, Any]) -> tuple[str, int] | None:
    """The setting that ended a complete run, and its value."""
    steps, tokens, epochs = (run.config.get(f"trainer.{name}", "") for name in ("max_steps", "max_tokens", "max_epochs"))
    if run.record.get("state") not in COMPLETE:
        return None
    if steps.isdecimal() and isinstance(done := result.get("steps"), int) and done >= int(steps) > 0:
        return "max_steps", int(steps)
    if tokens.isdecimal():
        return "max_tokens", int(tokens)
    return ("max_epochs", int(epochs)) if epochs.isdecimal() else None


def _model(model: dict[str, Any], config: dict[str, str]) -> str:
    size_words = format_number(model.get("parameters"), ",d")
    names = {"n_layers": "layers", "n_heads": "heads", "emb_dim": "emb_dim", "context_length": "context"}
    shape = [f"{name} {config[key]}" for field, name in names.items() if (key := f"model.{field}") in config]
    return joined(["" if size_words == "-" else f"{size_words} parameters", *shape])


def _length(result: dict[str, Any]) -> str:
    steps, epochs = result.get("steps"), format_number(result.get("epochs"), ".4g")
    words = [format_count(steps, "step") if isinstance(steps, int) else "", "" if epochs == "-" else f"{epochs} epochs"]
    return joined(words)


def _about_best(loss: object, epoch: object, step: str) -> str:
    exact = f"perplexity {format_perplexity(loss)}" if is_finite_number(loss) else ""
    words = [f"epoch {epoch}" if isinstance(epoch, int) else "", "" if step == "-" else f"step {step}"]
    return joined(["nats a token", exact, *words])


def _text_amounts(data: dict[str, Any]) -> list[str | None]:
    return [_amount(data.get(f"{unit}s"), unit) for unit in ("character", "document", "byte")]


def _amount(number_of: object, what: str) -> str | None:
    return format_count(number_of, what) if isinstance(number_of, int) else None


def _moment(text: object) -> str | None:
    return text.replace("T", " ").replace("+00:00", " UTC") if isinstance(text, str) else None
