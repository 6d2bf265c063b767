"""The page in a browser: on a phone, for everybody, behind a proxy, with a key, and when the server refuses or goes away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address
from tests.helpers.playground import PROMPT, generate, hold, set_slider, tokens_of, wait_for_end
from tests.serving.conftest import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(browser: Browser, playground: Served, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    opened = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=width < 600)  # type: ignore[arg-type]
    opened.set_default_timeout(10_000)
    opened.goto(playground.url)
    opened.locator("#prompt").fill(PROMPT)
    opened.get_by_label("two models side by side").check()
    if width < 600:
        assert not opened.locator("#settings").evaluate("one => one.open")
        opened.locator("#settings summary").click()
    generate(opened, length=30)
    opened.locator("#tokenizer summary").click()
    place = opened.locator(".token").nth(14)
    if width < 600:
        place.tap()
    else:
        place.click()
    opened.locator(".note button:not([aria-current])").nth(3).click()
    wait_for_end(opened)
    opened.locator(".token").nth(15).click()
    opened.locator(".branches summary").first.click()
    found = axe.Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 20
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.get_by_label("the checkpoints of a run").check()
    generate(opened, length=30)
    found = axe.Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


def test_a_text_is_in_sight_on_a_phone_and_its_blanks_take_room(browser: Browser, playground: Served) -> None:
    opened = browser.new_page(viewport={"width": 390, "height": 700})
    opened.goto(playground.url)
    opened.locator("#prompt").fill("a" + " " * 40)
    opened.locator("#settings summary").click()
    generate(opened, length=1)
    written = opened.locator(".written").bounding_box()
    assert written is not None and written["y"] < 700
    blanks = [box for token in opened.locator(".token.given").all()[1:] if (box := token.bounding_box()) is not None]
    assert len(blanks) == 40 and all(box["width"] > 1 for box in blanks)
    opened.close()


def test_the_page_works_in_a_folder_of_a_proxy(browser: Browser, playground: Served) -> None:
    opened = browser.new_page()
    opened.set_default_timeout(10_000)
    opened.route("**/proxy/8000/**", lambda route: route.continue_(url=route.request.url.replace("/proxy/8000/", "/")))
    opened.goto(f"{playground.url}/proxy/8000/")
    opened.locator("#prompt").fill(PROMPT)
    generate(opened)
    assert tokens_of(opened) == len(PROMPT) + 12
    opened.close()


def test_a_server_with_a_key_asks_for_it(browser: Browser) -> None:
    server = Served(ServingLimits(), Address(port=0, api_key="secret-key"))
    opened = browser.new_page()
    opened.goto(server.url)
    for key in ("wrong", "secret-key"):
        opened.get_by_label("Key of this server").fill(key)
        opened.get_by_role("button", name="Use it").click()
        opened.get_by_text("This is not the key" if key == "wrong" else "Generate", exact=False).first.wait_for()
    opened.locator("#prompt").fill(PROMPT)
    generate(opened)
    assert tokens_of(opened) == len(PROMPT) + 12
    opened.close()
    server.close()


def test_what_the_server_refuses_is_shown(page: Page) -> None:
    page.locator("#prompt").fill("a" * 70)
    set_slider(page, "max_tokens", 5)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator(".status", has_text="The text fills the model's context of 64 tokens.").wait_for()
    page.locator("#setting-seed").fill("")
    page.get_by_role("button", name="Generate", exact=True).click()
    assert page.locator("#setting-seed").evaluate("seed => seed.matches(':invalid')")


def test_a_server_that_goes_away_is_reported(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Served(ServingLimits(), Address(port=0))
    opened = browser.new_page()
    opened.set_default_timeout(10_000)
    opened.goto(server.url)
    opened.locator("#prompt").fill(PROMPT)
    gate = hold(server.engine, monkeypatch)
    opened.get_by_role("button", name="Generate", exact=True).click()
    opened.locator(".token").nth(len(PROMPT)).wait_for()
    server.engine._stopping = True
    gate.set()
    opened.locator(".status", has_text="The server is stopping.").wait_for()
    server.close()
    opened.get_by_role("button", name="Continue", exact=True).click()
    opened.locator(".status", has_text="The server cannot be reached. Is it still running?").wait_for()
    assert opened.locator(".token").count() > len(PROMPT), "the text stays"
    opened.close()
