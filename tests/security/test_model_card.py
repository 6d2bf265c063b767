"""The README.md of an export: whatever a checkpoint says is shown as text, and opens or loads nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from gpt_pretrain.checkpoints.export.model_card import model_card
from gpt_pretrain.model.config import GPTConfig

SIZE = {"context_length": 8, "emb_dim": 8, "n_heads": 1, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}
MARKUP = [
    *("<img src=https://h/x>", "</td><script>alert(1)</script>", "[click](https://h)", "![x](https://h/x.png)", "https://h/x"),
    *(
        "www.example.org",
        "a | b\n\n# Heading\n\n<b>x</b>",
        "`<b>x</b>`",
        "``<b>x</b>",
        "\\`<b>x</b>",
        "\\|<b>x</b>",
        "<!-- x -->",
    ),
    *(
        "x\n~~~\n\n<img src=https://h/x>\n\n~~~",
        "x\n\n~~~~~~~~\n<b>x</b>\n",
        "\x1b]0;x\x07 \u202e",
        "&lt;b&gt;",
        "[x]: https://h",
        "@all",
    ),
    "a\n~~~\n# Hello <img src=http://evil/x.png onerror=alert(1)>\n<script>alert(1)</script>",
    *("---\ntags: [x]\n---", "$$x$$", "", " ", "*", "a\r\n<b>x</b>", "x\u2028<b>x</b>"),
]


def card_of(name: str = "run", tokenizer: str = "byte", **training: Any) -> str:
    """Return the model card of a tiny model."""
    config = GPTConfig(vocab_size=257, **SIZE)
    return model_card(config, name=name, n_parameters=1, tokenizer=tokenizer, training=training)


def markup_in(card: str) -> set[str]:
    """Return the kinds of elements that a page of the card has, and its number of headings."""
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = [token.type for token in tokens] + [child.type for token in tokens for child in token.children or []]
    return {*kinds, f"{kinds.count('heading_open')} headings", f"{kinds.count('tr_open')} rows", f"{kinds.count('fence')} blocks"}


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_a_checkpoint_is_shown_as_text(text: str) -> None:
    def config(value: str) -> dict[str, Any]:
        return {"init_from": f"a{value}", "start_context": value, "data": {"path": f"a{value}", value: value, "list": [value]}}

    card = card_of(f"a{text}", f"a{text}", config=config(text))
    plain = card_of(config=config("b"))
    assert markup_in(card) - {"code_inline", "text"} == markup_in(plain) - {"code_inline", "text"}
    assert "\x1b" not in card and "\u202e" not in card
    outside = "".join(
        child.content
        for token in MarkdownIt("commonmark").enable("table").parse(card)
        for child in token.children or []
        if child.type == "text"
    )
    assert "www." not in outside and "://" not in outside


@pytest.mark.parametrize("wrong", ["x", None, [], {}, 1, float("nan"), torch.zeros(2), [[]], {"SaveRun": 1}, 10**400, [10**5000]])
def test_facts_of_wrong_types_are_left_out(wrong: Any) -> None:
    fields = ("tokens_seen", "global_step", "train_losses", "val_losses", "callbacks", "config")
    for name in fields:
        assert "## Architecture" in card_of(**{"config": {"data": {}}, name: wrong})
    assert "## Architecture" in card_of(config={"data": wrong, "model": wrong, "init_from": wrong})
    for name in ("best_loss", "best_step", "best_epoch"):
        best = {"best_loss": 1.0, "best_step": 1, "best_epoch": 1, name: wrong}
        assert "## Architecture" in card_of(config={}, callbacks={"SaveRun": best})


def test_settings_that_the_program_does_not_know_are_left_out() -> None:
    settings = {
        "seed": 1,
        "License": "Buy at h",
        "data": {"path": "a", "Note": "b", "remote": {"options": {"k": 1}, "threads": 2}},
    }
    shown = card_of(config=settings).partition("## Settings")[2]
    assert yaml.safe_load(shown.strip(" \n~").removeprefix("yaml")) == {
        "seed": 1,
        "data": {"path": "a", "remote": {"threads": 2}},
    }
