"""The page on which people try the models: one HTML file with its script and style, and the list of models that it loads."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.serving.completions import describe_tokens

TEMPLATES, SHARED_TEMPLATES = "gpt_pretrain.serving.templates", "gpt_pretrain.runs.report.templates"
STYLES = ((SHARED_TEMPLATES, "style.css"), (TEMPLATES, "page.css"))
SCRIPT_NAMES = (
    "elements.js",
    "kept.js",
    "requests.js",
    "pace.js",
    "tree.js",
    "tokens.js",
    "settings.js",
    "written.js",
    "text.js",
    "pane.js",
    "page.js",
)
SCRIPTS = ((SHARED_TEMPLATES, "token_keys.js"), *((TEMPLATES, name) for name in SCRIPT_NAMES))  # the last one starts the page


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model's weights: the run and the moment in it at which they were saved.

    Args:
        run: Name of the run; None if it is unknown.
        epoch: The epoch, counted from 1.
        step: Optimizer steps until then.
    """

    run: str | None = None
    epoch: int | None = None
    step: int | None = None


def add_page(app: FastAPI, models: Mapping[str, TextModel], facts: Mapping[str, ModelFacts]) -> None:
    """Add the page and the list of models that it shows to an application."""
    content, headers = build_page()

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(content, headers=headers)

    @app.get("/api/models")
    async def described_models() -> dict[str, Any]:
        """Describe the models for the page."""
        return {"models": [_describe_model(name, model, facts.get(name, ModelFacts())) for name, model in models.items()]}


def build_page() -> tuple[str, dict[str, str]]:
    """Return the page, and headers that forbid a browser to run or load anything that is not part of it."""
    style, script = _concatenate(STYLES), _concatenate(SCRIPTS)
    content = _concatenate(((TEMPLATES, "page.html"),)).replace("{{ style }}", style).replace("{{ script }}", script)
    policy = [
        *("default-src 'none'", "connect-src 'self'", "img-src data:"),
        f"style-src '{_digest(style)}'",
        f"script-src '{_digest(script)}'",
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
        *("require-trusted-types-for 'script'", "trusted-types 'none'"),  # Using a text as markup is an error.
    ]
    headers = {
        "content-security-policy": "; ".join(policy),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }
    return content, headers


def _concatenate(files: tuple[tuple[str, str], ...]) -> str:
    return "\n".join((resources.files(package) / name).read_text(encoding="utf-8") for package, name in files)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _describe_model(name: str, model: TextModel, facts: ModelFacts) -> dict[str, Any]:
    end_id = model.tokenizer.eos_id
    end_tokens = [] if end_id is None else describe_tokens([end_id], model.tokenizer)
    context = model.decoder.config.context_length
    return {"name": name, "context_length": context, "end_token": end_tokens[0] if end_tokens else None} | asdict(facts)
