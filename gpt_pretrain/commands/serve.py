"""The work of serve.py: serve models over HTTP that continue texts, with a page and the interface of OpenAI's completions."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import secrets
import socket
import sys
from collections.abc import Callable, Container
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from gpt_pretrain.commands.process.failures import report_failures
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.inference_rules import serve_problems
from gpt_pretrain.config.inference_schema import ServeSettings, weight_names
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.loading import loading_libraries

if TYPE_CHECKING:
    from gpt_pretrain.checkpoints.weights import Weights
    from gpt_pretrain.generation.prompts import TextModel
    from gpt_pretrain.serving.page import ModelFacts

NOT_INSTALLED = "serve.py needs fastapi and uvicorn. Run: pip install 'gpt-pretrain[serve]'"
ANY_HOST = ("0.0.0.0", "::")
MAX_COUNT = 2**53  # epochs and steps; browsers round larger numbers

log = logging.getLogger(__name__)


def serve_models(config: DictConfig) -> None:
    """Answer requests over HTTP until interrupted.

    Raises:
        SystemExit: If the command fails.
    """
    with report_failures():
        settings = to_settings(config, ServeSettings)
        if problems := serve_problems(settings):
            raise UserError(problems)
        if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
            raise UserError(NOT_INSTALLED)
        _serve(settings)


def _serve(settings: ServeSettings) -> None:
    with loading_libraries():
        from gpt_pretrain.serving.compute_thread import ComputeThread
        from gpt_pretrain.serving.engine import Engine
        from gpt_pretrain.serving.requests import ServingLimits
        from gpt_pretrain.serving.server import Address, open_socket, run_server
        from gpt_pretrain.system.devices import prepare_computing
        from gpt_pretrain.system.terminal import print_escaped

    address = Address(settings.host, settings.port, settings.api_key, settings.cors)
    if not address.is_local and address.api_key is None:
        address = Address(settings.host, settings.port, secrets.token_urlsafe(24), settings.cors)
    opened = open_socket(address)  # An occupied port is refused before the weights are loaded.
    weights = _open_models(settings)
    facts = _training_facts(weights)
    thread = ComputeThread()
    thread.submit(prepare_computing).result()
    models = thread.submit(lambda: {name: _load(weights.pop(name), settings) for name in list(weights)}).result()
    engine = Engine(models, ServingLimits(settings.max_rows, settings.max_queue, settings.max_seconds), thread=thread)
    port = opened.getsockname()[1]

    def ready() -> None:
        print_escaped(f"Models: {', '.join(models)}")
        if address.api_key is not None and settings.api_key is None:
            print_escaped(f"Key: {address.api_key}")
        page = f"http://{_shown_host(settings.host)}:{port}/"
        print_escaped(f"The page is at {page}, and the interface for programs at /v1 (Ctrl-C ends the server)")
        sys.stdout.flush()

    with suppress(KeyboardInterrupt):
        run_server(engine, address, opened, facts=facts, ready=ready)
    print_escaped("The server has stopped.")


def _shown_host(host: str) -> str:
    """Return a host in the form for addresses. For all interfaces, return this machine's name, which browsers can open."""
    if host in ANY_HOST:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _open_models(settings: ServeSettings) -> dict[str, Weights]:
    """Open the models, each with a distinct name that is not a path."""
    from gpt_pretrain.checkpoints.pretrained import open_weights
    from gpt_pretrain.commands.named_weights import open_named_weights
    from gpt_pretrain.config.custom_parts import named_model

    opened = open_named_weights(settings)
    if names := weight_names(settings):
        return _named(list(zip(names, opened, strict=True)))
    (newest,) = opened
    opening = partial(open_weights, kind=settings.weights, custom=named_model(settings.model))
    typed = settings.checkpoint if settings.checkpoint != "latest" else newest.name
    earlier = _earlier_checkpoints(newest, settings.timeline, opening) if settings.timeline else []
    return _named([(typed, newest), *earlier])


def _earlier_checkpoints(newest: Weights, count: int, opening: Callable[[Path], Weights]) -> list[tuple[str, Weights]]:
    """Open some of the other checkpoints of a run, evenly spaced, and at most one of each step."""
    from gpt_pretrain.runs.folder import BEST, checkpoint_dir, list_checkpoints
    from gpt_pretrain.runs.samples import pick_evenly

    file = Path(newest.name)
    last_step = _training_count(newest, "global_step")
    run = file.parent.parent
    # A link in a stranger's run could lead to a private model.
    inside = [one for one in list_checkpoints(run) if one.resolve().is_relative_to(checkpoint_dir(run).resolve())]
    others = [one for one in reversed(inside) if one.name != file.name and file.parent == checkpoint_dir(run)]
    periodic = [one for one in others if one.name not in (BEST, f"step-{last_step or 0:08d}.ckpt")]
    best = [one for one in others if one.name == BEST]  # often the same step as a periodic one
    steps, found = {last_step}, []
    for path in [*pick_evenly(periodic, count), *best][:count]:
        try:
            weights = opening(path)
        except UserError as error:
            log.warning("%s It is left out.", error)
            continue
        if (step := _training_count(weights, "global_step")) not in steps:
            steps.add(step)
            found.append((str(path), weights))
    if not found:
        log.warning("timeline=%d: the run has no checkpoints of other steps. Train with checkpoint.keep=10 to keep some.", count)
    return found


def _named(opened: list[tuple[str, Weights]]) -> dict[str, Weights]:
    """Return weights by distinct names that are not paths."""
    named: dict[str, Weights] = {}
    for typed, weights in opened:
        named[_unused(_public_name(typed), named)] = weights
    return named


def _unused(name: str, taken: Container[str]) -> str:
    """Return a name, with a number added if it is taken."""
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(one for one in names if one not in taken)


def _training_facts(models: dict[str, Weights]) -> dict[str, ModelFacts]:
    """Return the run, epoch and step of each model from a run's checkpoint."""
    from gpt_pretrain.serving.page import ModelFacts

    facts, runs = {}, dict[Path, str]()
    for name, weights in models.items():
        folder = Path(weights.name).resolve().parent
        epoch, step = _training_count(weights, "epoch"), _training_count(weights, "global_step")
        if folder.name != "checkpoints" or epoch is None or step is None:
            continue
        if folder not in runs:
            runs[folder] = _unused(folder.parent.name, runs.values())
        facts[name] = ModelFacts(runs[folder], epoch + 1, step)
    return facts


def _training_count(weights: Weights, field: str) -> int | None:
    """Return a number of epochs or steps in a checkpoint; None if it is missing or invalid, as in a stranger's file."""
    count = weights.content.get(field)
    return count if isinstance(count, int) and 0 <= count <= MAX_COUNT else None


def _load(weights: Weights, settings: ServeSettings) -> TextModel:
    from gpt_pretrain.commands.named_weights import load_text_model

    ready, _ = load_text_model(weights, settings, batch_size=settings.max_rows)
    _ = ready.banned  # computed now, so that the first request does not wait
    return ready


def _public_name(typed: str) -> str:
    """Return the last part of a typed name, on one line. For a checkpoint, add its run's name; omit its own if it is the last."""
    from gpt_pretrain.system.terminal import escape_line

    path = Path(typed)
    parts = [part for part in path.parts if part not in ("checkpoints", "last.ckpt", path.anchor)]
    kept = parts[-2:] if parts[-1:] and parts[-1].endswith(".ckpt") else parts[-1:]
    return escape_line("/".join(kept)) or "model"
