"""The counters of the server in Prometheus' text format."""

from __future__ import annotations

from gpt_pretrain.serving.engine import Engine

MEANINGS = {
    "finished": "Texts that were continued to their end.",
    "failed": "Texts that ended with an error.",
    "cancelled": "Texts whose client disconnected.",
    "rejected": "Requests that found the queue full.",
    "prompt_tokens": "Tokens of prompts that were read.",
    "new_tokens": "Tokens that were generated.",
    "steps": "Steps that added a token to each text of a model.",
}


def metrics_text(engine: Engine) -> str:
    """Return the totals since the start, and the current load."""
    lines = []
    for name, count in engine.counts.items():
        metric = f"gpt_pretrain_{name}_total"
        lines += [f"# HELP {metric} {MEANINGS[name]}", f"# TYPE {metric} counter", f"{metric} {count}"]
    running, waiting = engine.load
    for name, meaning, value in (("running", "are being continued", running), ("waiting", "wait for a row", waiting)):
        metric = f"gpt_pretrain_{name}_texts"
        lines += [f"# HELP {metric} Texts that {meaning}.", f"# TYPE {metric} gauge", f"{metric} {value}"]
    return "\n".join(lines) + "\n"
