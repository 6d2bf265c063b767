"""The page in a browser: tokens, branches at a token, and models side by side, by mouse and keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.playground import FACTS, PROMPT, generate, tokens_of, wait_for_end

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.serving.conftest import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_another_token_opens_a_branch_by_mouse(page: Page) -> None:
    generate(page)
    first = page.locator(".written").inner_text()
    place = page.locator(".token").nth(len(PROMPT) + 4)
    place.hover()
    note = page.locator(".note")
    assert note.locator("button").count() == 10
    shown = note.inner_text()
    place.click()
    page.locator(".token").nth(len(PROMPT) + 1).hover()
    assert note.inner_text() == shown, "a clicked token stays"
    note.locator("button:not([aria-current])").first.click()
    wait_for_end(page)
    assert page.locator(".written").inner_text() != first
    assert tokens_of(page) == len(PROMPT) + 5 + 12
    assert page.locator(".token.fork").count() == 1
    second = page.locator(".written").inner_text()
    page.locator(".branches summary").click()
    page.locator(".branches button:not([aria-current])").click()
    assert page.locator(".written").inner_text() == first
    page.get_by_role("button", name="Back").click()
    assert page.locator(".written").inner_text() == second


def test_another_token_opens_a_branch_by_keyboard(page: Page) -> None:
    page.locator("#prompt").press("Control+Enter")
    wait_for_end(page)
    page.locator(".token").first.focus()
    for key, number in (("ArrowRight", 1), ("End", tokens_of(page) - 1), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        assert page.evaluate(f"document.activeElement === document.querySelectorAll('.token')[{number}]"), key
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.matches('.note button')")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[1]")
    page.keyboard.press("Enter")
    if page.locator(".note button").first.get_attribute("aria-current"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wait_for_end(page)
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[1]"), "the chosen token has the focus"
    assert page.locator(".token").nth(1).get_attribute("class") is not None
    assert "branches" in (page.locator(".token").nth(1).get_attribute("aria-label") or "")


def test_arrow_keys_follow_the_direction_of_a_text(page: Page) -> None:
    page.locator("#prompt").fill("\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd")
    generate(page, length=1)
    assert page.locator(".written").evaluate("one => getComputedStyle(one).direction") == "rtl"
    page.locator(".token").first.focus()
    for key, number in (("ArrowLeft", 1), ("ArrowLeft", 2), ("ArrowRight", 1)):
        page.keyboard.press(key)
        assert page.evaluate(f"document.activeElement === document.querySelectorAll('.token')[{number}]"), key


def test_the_prompt_is_shown_as_its_tokens(page: Page) -> None:
    page.locator("#prompt").fill("a\n \u00e9\U0001f600<b>")
    page.locator("#counts", has_text="12, for 8").wait_for()
    page.locator("#tokenizer summary").click()
    shown = [" ".join(text.split()) for text in page.locator(".tokens li").all_inner_texts()]
    assert shown[:4] == ["a id 97 61", "\u21b5 id 10 0a", "\u00b7 id 32 20", "\\xc3 id 195 c3"]
    page.locator("#prompt").fill("")
    page.locator("#counts", has_text="0, for 0").wait_for()
    generate(page)
    assert tokens_of(page) == 13, "an empty prompt begins with the end of text"


def test_a_prompt_with_too_many_tokens_is_not_shown_as_the_one_before_it(browser: Browser, playground: Served) -> None:
    opened = browser.new_page()
    opened.goto(playground.url)
    opened.locator("#counts", has_text="22, for 22").wait_for()
    opened.locator("#prompt").fill("a" * 20_000)
    opened.locator("#prompt-warning", has_text="are described at a time").wait_for()
    assert opened.locator("#counts").inner_text() == "Tokens of the prompt"
    assert opened.locator(".tokens li").count() == 0
    opened.close()


def test_two_models_and_the_checkpoints_of_a_run(page: Page) -> None:
    page.get_by_label("two models side by side").check()
    assert page.locator(".pane select").evaluate_all("all => all.map(one => one.value)") == list(FACTS)
    generate(page)
    texts = page.locator(".written").all_inner_texts()
    assert texts[0] != texts[1]
    boxes = [page.locator(".pane").nth(number).bounding_box() for number in (0, 1)]
    assert boxes[0] is not None and boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"], "they stand side by side"
    page.locator(".pane select").nth(1).select_option(next(iter(FACTS)))
    generate(page)
    texts = page.locator(".written").all_inner_texts()
    assert texts[0] == texts[1], "the same model, prompt and seed"
    page.get_by_label("the checkpoints of a run").check()
    assert page.locator(".pane h2").all_inner_texts() == ["Epoch 1, step 10", "Epoch 2, step 20"]
    generate(page)
    assert [tokens_of(page, number) for number in (0, 1)] == [len(PROMPT) + 12] * 2
