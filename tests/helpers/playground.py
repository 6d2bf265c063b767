"""The page in a browser, as the tests use it: its settings, buttons and tokens."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from gpt_pretrain.serving.engine import Engine
from gpt_pretrain.serving.page import ModelFacts

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROMPT = "Every effort"
FACTS = {"RUN/step-00000010.ckpt": ModelFacts("RUN", 1, 10), "RUN": ModelFacts("RUN", 2, 20)}


def set_slider(page: Page, name: str, value: float) -> None:
    page.locator(f"#setting-{name}").fill(str(value))


def generate(page: Page, *, length: int = 12, button: str = "Generate") -> None:
    """Press a button, and wait for the texts of all panes."""
    set_slider(page, "max_tokens", length)
    page.get_by_role("button", name=button, exact=True).click()
    wait_for_end(page)


def wait_for_end(page: Page) -> None:
    page.locator("#stop:disabled").wait_for()  # the page's policy forbids functions made from text, with which playwright waits


def tokens_of(page: Page, pane: int = 0) -> int:
    return page.locator(".written").nth(pane).locator(".token").count()


def hold(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Keep an engine from computing its next token until the returned event is set."""
    gate, advance = threading.Event(), engine._advance

    def held(rows: object) -> None:
        gate.wait(20)
        advance(rows)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "_advance", held)
    return gate
