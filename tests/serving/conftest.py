"""A server for the tests, with a model of random weights."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.serving.engine import Engine
from gpt_pretrain.serving.page import ModelFacts
from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address, InterruptibleServer, guarded_app, open_socket, server_config
from tests.helpers.playground import FACTS, PROMPT
from tests.serving.test_engine import text_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


class Served:
    """A server in a thread, with its engine.

    Args:
        limits: The limits of the engine.
        address: The address to listen on.
        facts: The facts about each served model, by name.
        models: The models by name; None makes models with random weights.
        send_buffer: Bytes that the system holds for a client that does not read; None leaves it as it is.
    """

    def __init__(
        self,
        limits: ServingLimits,
        address: Address,
        facts: Mapping[str, ModelFacts] = {"m": ModelFacts()},
        *,
        models: Mapping[str, TextModel] | None = None,
        send_buffer: int | None = None,
    ) -> None:
        made = {name: text_model(kind) for name, kind in zip(facts, itertools.cycle(("gpt2", "modern")))}
        self.models = made if models is None else models
        self.model = next(iter(self.models.values()))
        self.engine = Engine(self.models, limits)
        self.engine.start()
        opened = open_socket(address)
        if send_buffer is not None:  # connections inherit the size from the listening socket
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.port = opened.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        ready = threading.Event()
        config = server_config(guarded_app(self.engine, address, facts))
        self.server = InterruptibleServer(config, self.engine, ready=ready.set)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[opened])), daemon=True)
        self.thread.start()
        assert ready.wait(60)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Return a server that no test may end."""
    server = Served(ServingLimits(rows=4, queue=60), Address(port=0))
    yield server
    server.close()


@pytest.fixture(scope="module")
def playground() -> Iterator[Served]:
    """Serve two checkpoints of a run, whose random weights write bytes of every kind."""
    server = Served(ServingLimits(rows=8), Address(port=0), FACTS)
    yield server
    server.close()


@pytest.fixture
def page(browser: Browser, playground: Served) -> Iterator[Page]:
    """Open the page; no test may leave an error in its console."""
    opened, errors = browser.new_page(viewport={"width": 1200, "height": 900}), list[str]()
    opened.set_default_timeout(10_000)
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(playground.url)
    opened.get_by_role("button", name="Generate", exact=True).wait_for()
    opened.locator("#prompt").fill(PROMPT)
    yield opened
    assert errors == []
    opened.close()
