"""The page of an evaluation shows each token as text, with what the model expected in its place."""

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_pretrain.evaluation.alternatives import find_alternatives
from gpt_pretrain.evaluation.page import LEVELS, MAX_PAGE_TOKENS, PageModel, color_tokens, render_evaluation_page, show_token
from gpt_pretrain.evaluation.passages import PASSAGE, extreme_documents, extreme_passages
from gpt_pretrain.evaluation.results import result_rows, summarize
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.text_scores import score_text
from gpt_pretrain.model.kernels.chunks import LOGITS_BYTES
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import tiny_model
from tests.evaluation.test_text_scores import text_of

BYTE = build_tokenizer("byte")
HOSTILE = "<script>alert(1)</script> \"'&<i title=x>\n{{ 7*7 }} \x1b[31m \u202e \U0001f600"


def page_model(text: str, *, max_tokens: int = MAX_PAGE_TOKENS, name: str = "a model") -> PageModel:
    scorer = Scorer(tiny_model(vocab_size=257), name=name)
    tokens = text_of(list(text.encode()))
    scores = score_text(scorer, tokens)
    result = summarize(name, scores, stride=16, context_length=16)
    return PageModel(result, scores, find_alternatives(scorer, tokens, max_tokens=max_tokens))


def page_of(*models: PageModel, name: str = "the text") -> str:
    return render_evaluation_page(models, text_name=name, rows=result_rows([one.result for one in models]), sentences=["A > B."])


def test_warnings_stand_on_the_page() -> None:
    model = page_model("abc")
    page = render_evaluation_page(
        [model], text_name="a text", rows=result_rows([model.result]), sentences=[], warnings=["<b>seen</b> before"]
    )
    assert "<strong>Warning:</strong> &lt;b&gt;seen&lt;/b&gt; before" in page


class Tokens(HTMLParser):
    """The tokens on a page, and the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.notes: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "i":
            self.notes.append(dict(attrs)["title"] or "")
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "i":
            self.texts[-1] += data


def test_alternatives_are_the_most_likely_tokens_of_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=257)
    stream = [*np.random.default_rng(0).integers(0, 256, 40).tolist(), 256, 5, 6]
    scorer, text = Scorer(model), text_of(stream)
    found = find_alternatives(scorer, text, max_tokens=100, count=3)
    np.testing.assert_allclose(found.losses, score_text(scorer, text).losses, atol=1e-4)
    with torch.no_grad():
        rows = model(torch.tensor([[256, *stream[:15]]]))[0].softmax(-1)
    assert found.likely_ids[:16].tolist() == rows.topk(3).indices.tolist()
    np.testing.assert_allclose(found.probabilities[:16], rows.topk(3).values, atol=1e-5)
    monkeypatch.setitem(LOGITS_BYTES, "cpu", 4 * 257 * 5)  # five positions at a time
    np.testing.assert_allclose(find_alternatives(scorer, text, max_tokens=100, count=3).losses, found.losses, atol=1e-4)
    shorter = find_alternatives(scorer, text, max_tokens=20, count=3)
    np.testing.assert_allclose(shorter.losses[:16], found.losses[:16], atol=1e-4)
    assert len(shorter.token_ids) == 20


def test_a_hostile_text_and_name_are_only_text() -> None:
    page = page_of(page_model(HOSTILE * 3, name="<b>model</b>"), name="<script>alert(2)</script>")
    found = Tokens(page)
    assert found.tags.count("script") == 1
    assert "b" not in found.tags
    assert "\x1b" not in page
    assert "".join(found.texts).startswith("<script>alert(1)</script> \"'&<i title=x>\u21b5")
    script = re.search(r"<script>(.*)</script>\s*</body>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import| on\w+=", page)


def test_a_long_text_stays_below_the_limit() -> None:
    models = [page_model("Every effort moves you. " * 400, max_tokens=MAX_PAGE_TOKENS // 2) for _ in range(2)]
    page = page_of(*models)
    assert len(page.encode()) < 3_000_000
    assert len(Tokens(page).texts) == MAX_PAGE_TOKENS
    assert f"The first {MAX_PAGE_TOKENS // 2:,} of 9,600 tokens." in page


def test_notes_and_shades_follow_the_losses() -> None:
    model = page_model("abc\n")
    colored = color_tokens(model.alternatives, BYTE)
    for token, loss in zip(colored, model.alternatives.losses.tolist(), strict=True):
        assert f"{loss:.2f} nats, {math.exp(-loss):.1%}" in token.note
        assert token.level == sum(loss >= limit for limit in LEVELS)
        assert len(token.note.splitlines()) == 7
    assert [token.ends_line for token in colored] == [False, False, False, True]


@pytest.mark.parametrize(
    ("token_id", "shown"), [(10, "\u21b5"), (65, "A"), (0xE9, "\\xe9"), (256, "<|endoftext|>"), (300, "[300]")]
)
def test_each_token_is_visible(token_id: int, shown: str) -> None:
    assert show_token(BYTE, token_id) == shown


def test_extremes_are_those_of_a_plain_computation() -> None:
    model = page_model("".join(chr(97 + index % 26) for index in range(400)))
    hardest, easiest = extreme_passages(model.scores)
    means = model.scores.losses[: 400 // PASSAGE * PASSAGE].reshape(-1, PASSAGE).mean(1)
    assert [one.nats_per_token for one in hardest] == pytest.approx(sorted(means, reverse=True)[:5], abs=1e-4)
    assert [one.nats_per_token for one in easiest] == pytest.approx(sorted(means)[:5], abs=1e-4)
    assert extreme_documents(model.scores) == ([], [])
    several = score_text(Scorer(tiny_model(vocab_size=257)), text_of([1, 2, 256, 256, 3, 256]))
    assert [len(side) for side in extreme_documents(several)] == [1, 1], "no document is both"


def test_a_text_without_passages_has_a_page(tmp_path: Path) -> None:
    page = page_of(page_model("ab"))
    assert "Hardest" not in page
    assert "A &gt; B." in page


def test_the_name_of_a_model_is_no_formula() -> None:
    model = page_model("Every effort")
    page = page_of(replace(model, result=replace(model.result, model=r"$\frac$")))
    assert r"$\frac$" in page and "Does context help?" in page
