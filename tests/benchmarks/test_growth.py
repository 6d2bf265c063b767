"""The measurements of growing costs: slopes, tables and pictures; no test depends on a speed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.growth import __main__ as growth
from benchmarks.growth import commands, page, steps
from benchmarks.growth.steps import Costs

SQUARES = {size: {"step, s": 3.0 * size**2, "memory, MB": 5.0 * size} for size in (1, 10, 100, 1000)}


def test_the_slope_is_the_exponent_of_the_largest_sizes() -> None:
    assert page.slope([(size, 3.0 * size**1.5) for size in (1, 7, 50)]) == pytest.approx(1.5)
    bent = SQUARES | {1: {"step, s": 1e6, "memory, MB": 1e6}}
    assert page.table("tokens", bent)[-1] == ["slope", "2.00", "1.00"]


def test_the_page_keeps_other_tables_and_the_picture_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{page.BEGIN}\n{page.END}\nafter\n")
    monkeypatch.setattr(page, "PAGE", file)
    monkeypatch.setattr(page, "IMAGES", tmp_path)
    for title in ("Batch", "Context", "Batch"):
        page.update_page(title, f"About.\n\n{scale.grid(page.table('tokens', SQUARES))}")
    text = file.read_text()
    assert text.startswith("before") and text.endswith("after\n")
    assert text.count("### Batch") == text.count("### Context") == 1
    assert page.read_tables() == {"Batch": SQUARES, "Context": SQUARES}
    growth.draw_all()
    picture = (tmp_path / "growth-steps.svg").read_text()
    assert "slope 2.00" in picture and "Batch" in picture


def test_a_step_has_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SMALL", replace(steps.SMALL, emb_dim=32, n_layers=1, vocab_size=64, steps=1))
    for measure, size in (
        (steps.by_batch, 2),
        (steps.by_context_with_dropout, 16),
        (steps.by_layers, 2),
        (steps.by_vocabulary, 32),
    ):
        assert 0 < measure(size)["step, s"] < 10


def test_rows_of_metrics_have_costs() -> None:
    costs = commands.by_rows(300)
    assert 0 < costs["report.html, s"] < 10 and 0 < costs["resume, s"] < 10
    assert costs["page, kB"] > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "size", "series"),
    [
        (commands.by_corpus, 100_000, {"start, s", "step, s", "memory, MB"}),
        (commands.by_documents, 3000, {"prepare, s", "start, s", "step, s", "memory, MB"}),
        (commands.by_checkpoints, 5, {"start, s", "step, s", "memory, MB"}),
    ],
)
def test_commands_have_costs(measure: Callable[[int], Costs], size: int, series: set[str]) -> None:
    costs = measure(size)
    assert set(costs) == series
    assert min(costs.values()) > 0
