"""The page of an evaluation: losses, hard and easy passages, and the text colored by surprise."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from gpt_pretrain.evaluation.alternatives import TokenAlternatives
from gpt_pretrain.evaluation.passages import Passage, extreme_documents, extreme_passages
from gpt_pretrain.evaluation.results import TextResult, rank_results
from gpt_pretrain.evaluation.text_scores import TextScores
from gpt_pretrain.runs.charts.drawing import COLORS, NATS, label_text
from gpt_pretrain.runs.report.page_parts import Picture, make_picture, printable, render_page, shorten
from gpt_pretrain.tokenizers.base import Tokenizer

MAX_PAGE_TOKENS = 10_000  # Tokens of all models together; each token takes up to 300 bytes.
MAX_TOKEN_CHARACTERS = 40
LEVELS = (0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0)  # nats; limits between the shades
SMOOTHED = 16  # A group of positions has this fraction of the positions before it.


@dataclass(frozen=True)
class ColoredToken:
    """A token on the page.

    Args:
        text: Its characters, with visible line ends.
        level: Its shade, from 0.
        note: The note that is shown for it.
        ends_line: Whether a line ends after it.
    """

    text: str
    level: int
    note: str
    ends_line: bool


@dataclass(frozen=True)
class PageModel:
    """The parts of one model's results that the page shows."""

    result: TextResult
    scores: TextScores
    alternatives: TokenAlternatives


def render_evaluation_page(
    models: Sequence[PageModel],
    *,
    text_name: str,
    rows: Sequence[Sequence[str]],
    sentences: Sequence[str],
    warnings: Sequence[str] = (),
) -> str:
    """Return the page as HTML, with the best model first.

    Args:
        rows: The table of results, with the heading first.
        sentences: The comparisons of the models.
        warnings: Sentences about misleading results.
    """
    order = [result.model for result in rank_results([model.result for model in models])]
    models = sorted(models, key=lambda model: order.index(model.result.model))
    files = (("gpt_pretrain.runs.report", "token_keys.js"), ("gpt_pretrain.evaluation", "evaluation.js"))
    script = "\n".join((resources.files(room) / "templates" / name).read_text(encoding="utf-8") for room, name in files)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render_page(
        "evaluation.html",
        package="gpt_pretrain.evaluation",
        title=shorten(text_name, 200),
        heading=[printable(cell) for cell in rows[0]],
        rows=[[printable(cell) for cell in row] for row in rows[1:]],
        sentences=[printable(sentence) for sentence in sentences],
        warnings=[printable(warning) for warning in warnings],
        pictures_found=[_position_picture(models)] if any(model.result.context_length > 1 for model in models) else [],
        models=[_model_values(model) for model in models],
        levels=range(len(LEVELS) + 1),
        limits=LEVELS,
        script=Markup(script),
        script_policy=Markup(f"script-src 'sha256-{digest}'; "),
    )


def _model_values(model: PageModel) -> dict[str, Any]:
    passages, documents = extreme_passages(model.scores), extreme_documents(model.scores)
    titled = zip(
        ("Hardest passages", "Easiest passages", "Hardest documents", "Easiest documents"), (*passages, *documents), strict=True
    )
    return {
        "name": shorten(model.result.model, 200),
        "tokens": color_tokens(model.alternatives, model.scores.text.tokenizer),
        "shown": len(model.alternatives.token_ids),
        "total": model.scores.text.tokens.count,
        "lists": [(title, [_passage_values(one) for one in found]) for title, found in titled if found],
    }


def _passage_values(passage: Passage) -> dict[str, str]:
    text = passage.text.strip() or show_line_ends(passage.text)
    return {"text": shorten(text, 400), "loss": f"{passage.nats_per_token:.2f}", "tokens": f"{passage.tokens:,}"}


def color_tokens(found: TokenAlternatives, tokenizer: Tokenizer) -> list[ColoredToken]:
    """Return the tokens of a text, each with a shade for its loss and a note with the tokens that the model expected."""
    shown: dict[int, str] = {}

    def text_of(token_id: int) -> str:
        if token_id not in shown:
            shown[token_id] = show_token(tokenizer, token_id)
        return shown[token_id]

    colored = []
    rows = zip(
        found.token_ids.tolist(), found.losses.tolist(), found.likely_ids.tolist(), found.probabilities.tolist(), strict=True
    )
    for token_id, loss, likely, probabilities in rows:
        level, note = 0, "not scored: no token precedes it"
        if not math.isnan(loss):
            level = int(np.searchsorted(LEVELS, loss, side="right"))
            expected = "".join(
                f"\n{share:6.1%}  {_with_blanks(text_of(one))}" for one, share in zip(likely, probabilities, strict=True)
            )
            note = f"{_with_blanks(text_of(token_id))}\n{loss:.2f} nats, {math.exp(-loss):.1%}{expected}"
        colored.append(ColoredToken(text_of(token_id), level, note, b"\n" in tokenizer.token_bytes(token_id)))
    return colored


def show_token(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as visible text: line ends as arrows, and incomplete characters as hexadecimal bytes."""
    data = tokenizer.token_bytes(token_id) if token_id < tokenizer.vocab_size else b""
    if not data:
        return f"[{token_id}]"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "".join(f"\\x{byte:02x}" for byte in data)
    text = show_line_ends(text)
    return printable(text[:MAX_TOKEN_CHARACTERS] + ("\u2026" if len(text) > MAX_TOKEN_CHARACTERS else ""))


def show_line_ends(text: str) -> str:
    """Return a text with its line ends and tabs as arrows."""
    return text.replace("\n", "\u21b5").replace("\t", "\u2192")


def _with_blanks(text: str) -> str:
    """Return a token with its blanks as dots. A note lists tokens that differ only in a blank."""
    return text.replace(" ", "\u00b7")


def _position_picture(models: Sequence[PageModel]) -> Picture:
    """Draw the mean loss by the number of tokens of context."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for index, model in enumerate(models):
        losses = model.scores.position_losses
        edges = _position_edges(len(losses))
        groups = [losses[low:high] for low, high in itertools.pairwise(edges)]
        points = [(low + 1, float(np.nanmean(one))) for low, one in zip(edges, groups, strict=False) if not np.isnan(one).all()]
        if points:
            axes.plot(*zip(*points, strict=True), color=COLORS[index % len(COLORS)], label=label_text(model.result.model))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens of context")
    axes.set_ylabel(NATS)
    axes.legend(fontsize=8)
    return make_picture(figure, "Does context help?", "Mean loss by the number of tokens before the predicted one", width="wide")


def _position_edges(count: int) -> list[int]:
    """Return the limits of groups of positions. The size of a group grows with its position."""
    edges = [0]
    while edges[-1] < count:
        edges.append(min(count, edges[-1] + max(1, edges[-1] // SMOOTHED)))
    return edges
