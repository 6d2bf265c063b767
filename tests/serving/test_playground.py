"""The page in a browser: it writes, stops, branches, compares and shows time lines, by mouse, touch and keyboard."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import openai
import pytest

from gpt_pretrain.serving.page import ModelFacts
from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address
from tests.helpers.waiting import wait_until
from tests.serving.conftest import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROMPT = "Every effort"
FACTS = {"RUN/step-00000010.ckpt": ModelFacts("RUN", 1, 10), "RUN": ModelFacts("RUN", 2, 20)}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


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
    gate, advance = threading.Event(), playground.engine._advance

    def held(rows: object) -> None:
        gate.wait(20)
        advance(rows)  # type: ignore[arg-type]

    monkeypatch.setattr(playground.engine, "_advance", held)
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


def test_what_the_server_refuses_is_shown(page: Page) -> None:
    page.locator("#prompt").fill("a" * 70)
    set_slider(page, "max_tokens", 5)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator(".status", has_text="The text fills the model's context of 64 tokens.").wait_for()
    page.locator("#setting-seed").fill("")
    page.get_by_role("button", name="Generate", exact=True).click()
    assert page.locator("#setting-seed").evaluate("seed => seed.matches(':invalid')")


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


def test_the_page_works_in_a_folder_of_a_proxy(browser: Browser, playground: Served) -> None:
    opened = browser.new_page()
    opened.set_default_timeout(10_000)
    opened.route("**/proxy/8000/**", lambda route: route.continue_(url=route.request.url.replace("/proxy/8000/", "/")))
    opened.goto(f"{playground.url}/proxy/8000/")
    opened.locator("#prompt").fill(PROMPT)
    generate(opened)
    assert tokens_of(opened) == len(PROMPT) + 12
    opened.close()


def test_a_server_that_goes_away_is_reported(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Served(ServingLimits(), Address(port=0))
    opened = browser.new_page()
    opened.set_default_timeout(10_000)
    opened.goto(server.url)
    opened.locator("#prompt").fill(PROMPT)
    gate, advance = threading.Event(), server.engine._advance

    def held(rows: object) -> None:
        gate.wait(20)
        advance(rows)  # type: ignore[arg-type]

    monkeypatch.setattr(server.engine, "_advance", held)
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


def test_arrow_keys_follow_the_direction_of_a_text(page: Page) -> None:
    page.locator("#prompt").fill("\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd")
    generate(page, length=1)
    assert page.locator(".written").evaluate("one => getComputedStyle(one).direction") == "rtl"
    page.locator(".token").first.focus()
    for key, number in (("ArrowLeft", 1), ("ArrowLeft", 2), ("ArrowRight", 1)):
        page.keyboard.press(key)
        assert page.evaluate(f"document.activeElement === document.querySelectorAll('.token')[{number}]"), key
