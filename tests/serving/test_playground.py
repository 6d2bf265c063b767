"""The page in a browser: it writes, copies and stops, and keeps its settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import openai
import pytest

from tests.helpers.playground import FACTS, PROMPT, generate, hold, set_slider, tokens_of, wait_for_end
from tests.helpers.waiting import wait_until
from tests.serving.conftest import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_text_grows_and_goes_on(page: Page, playground: Served) -> None:
    generate(page)
    assert tokens_of(page) == len(PROMPT) + 12
    assert page.locator(".token.given").count() == len(PROMPT)
    assert re.match(r"12 tokens, ([\d.]+ tokens per second, )?the first after [\d.]+ s\.", page.locator(".status").inner_text())
    first = page.locator(".written").inner_text()
    generate(page, button="Continue")
    assert tokens_of(page) == len(PROMPT) + 24
    generate(page)
    assert page.locator(".written").inner_text() == first, "the same seed gives the same text"
    generate(page, button="Regenerate")
    assert page.locator("#setting-seed").input_value() == "2"
    assert page.locator(".written").inner_text() != first
    assert page.locator(".branches").is_visible()
    page.get_by_role("button", name="Back").click()
    assert page.locator(".written").inner_text() == first
    generate(page, length=500)
    assert "64 tokens" not in page.locator(".status").inner_text()
    assert tokens_of(page) <= 65


def test_the_text_is_that_of_the_interface_for_programs(page: Page, playground: Served) -> None:
    set_slider(page, "temperature", 1.2)
    set_slider(page, "top_k", 0)
    set_slider(page, "min_p", 0.02)
    set_slider(page, "repetition_penalty", 1.3)
    page.locator("#setting-seed").fill("7")
    generate(page, length=30)
    client = openai.OpenAI(base_url=f"{playground.url}/v1", api_key="none")
    made = client.completions.create(
        model=next(iter(FACTS)),
        prompt=PROMPT,
        max_tokens=30,
        temperature=1.2,
        seed=7,
        extra_body={"min_p": 0.02, "repetition_penalty": 1.3},
    )
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == PROMPT + made.choices[0].text


def test_a_text_is_copied_without_the_clipboard_of_secure_pages(page: Page) -> None:
    generate(page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('')")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('denied')) }")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith(PROMPT)


def test_stop_ends_the_work_of_the_server(page: Page, playground: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold(playground.engine, monkeypatch)
    set_slider(page, "max_tokens", 40)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator(".token").nth(len(PROMPT)).wait_for()
    page.get_by_role("button", name="Stop").click()
    wait_for_end(page)
    gate.set()
    assert "Stopped." in page.locator(".status").inner_text()
    assert tokens_of(page) == len(PROMPT) + 1
    page.wait_for_timeout(300)
    assert playground.engine.load == (0, 0)
    monkeypatch.undo()
    generate(page, button="Continue")
    assert tokens_of(page) == len(PROMPT) + 13


def test_the_end_of_a_long_text_stays_in_sight_until_somebody_scrolls(page: Page, playground: Served) -> None:
    set_slider(page, "temperature", 2)
    page.locator("#prompt").fill("\n" * 30)
    box = page.locator(".written")
    generate(page, length=30)
    wait_until(lambda: box.evaluate("one => one.scrollHeight - one.scrollTop - one.clientHeight") < 40)
    box.evaluate("one => one.scrollTo(0, 0)")
    page.wait_for_timeout(100)
    generate(page, length=2, button="Continue")
    wait_until(lambda: box.evaluate("one => one.scrollHeight - one.scrollTop - one.clientHeight") < 40)  # new tokens are shown


def test_the_page_keeps_its_prompt_and_settings_when_it_is_loaded_again(page: Page) -> None:
    page.locator("#prompt").fill("Kept <b>text</b>")
    set_slider(page, "temperature", 1.35)
    page.locator("#setting-seed").fill("77")
    generate(page, button="Generate")
    generate(page, button="Regenerate")
    page.reload()
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    assert page.locator("#prompt").input_value() == "Kept <b>text</b>"
    assert [page.locator(f"#setting-{name}").input_value() for name in ("temperature", "seed")] == ["1.35", "78"]
    assert page.locator(".setting .value").first.inner_text() == "1.35"


def test_nothing_is_taken_for_markup(page: Page, playground: Served) -> None:
    markup = "<img src=x onerror=document.title='forged'><script>document.title='forged'</script>"[:60]
    page.locator("#prompt").fill(markup)
    for number in range(3):
        page.locator("#setting-seed").fill(str(number))
        set_slider(page, "temperature", 2)
        set_slider(page, "top_k", 0)
        generate(page, length=500)
    assert page.title() == "Continue a text - gpt-pretrain"
    assert page.locator(".written img, .written script, .tokens img").count() == 0


def test_markup_from_text_is_an_error(browser: Browser, playground: Served) -> None:
    opened = browser.new_page()
    opened.goto(playground.url)
    assert opened.evaluate("() => { try { document.body.innerHTML = '<b>'; return false } catch { return true } }")
    opened.close()
