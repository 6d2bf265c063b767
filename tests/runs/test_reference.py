"""Report pages show the reference of a run's own recipe, and never another one."""

import dataclasses
import shlex
from pathlib import Path

import pytest
import yaml

from benchmarks.references import reference_curve
from gpt_pretrain.commands.notebook import load_settings
from gpt_pretrain.config.schema import USUAL_BATCH
from gpt_pretrain.runs import reference
from gpt_pretrain.runs.reader import MetricSeries, RunContents, read_run
from gpt_pretrain.runs.reference import METRIC, ReferenceCurve, compare_with_reference, deciding_settings, find_reference
from gpt_pretrain.runs.report.run_page import render_run_page

CONFIG = {
    **{"model.emb_dim": "128", "model.kind": "gpt2", "optimizer.lr": "0.0004", "scheduler.name": "constant"},
    **{"tokenizer.name": "gpt2", "data.batch_size": "2", "eval_iter": "5", "seed": "1", "trainer.max_steps": "10"},
}
STEPS = [0, 5, 10]


def run(losses: list[float], config: dict[str, str] = CONFIG, *, sha256: str = "ab", folder: Path = Path()) -> RunContents:
    series = MetricSeries(STEPS[: len(losses)], [0, 1, 2][: len(losses)], losses)
    return RunContents(folder, {"data": {"sha256": sha256}}, "", config, {METRIC: series}, [])


CURVE = reference_curve("python train.py model=tiny", {"1": run([9.0, 7.0, 6.0]), "2": run([9.2, 7.2, 6.0])})


@pytest.fixture(autouse=True)
def _one_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_table", lambda: [CURVE])


def test_the_last_common_evaluation_is_compared_with_the_mean_of_the_seeds() -> None:
    text, note = compare_with_reference(run([9.0, 7.15]), CURVE) or ("", "")
    assert text == "+0.05"
    assert note == "0.05 above the reference at step 5: python train.py model=tiny, mean of 2 seeds, which differ by 0.20 there"
    below = compare_with_reference(run([9.0, 7.0, 5.9]), CURVE) or ("", "")
    assert below[1].startswith("0.10 below the reference at step 10")
    assert compare_with_reference(dataclasses.replace(run([]), metrics={}), CURVE) is None


def test_the_same_recipe_is_found_with_any_seed_and_length() -> None:
    assert find_reference(run([9.0], CONFIG | {"seed": "7", "trainer.max_steps": "99", "logger.csv": "true"})) is CURVE
    for unused in ("null", "false", "0"):
        assert find_reference(run([9.0], CONFIG | {"model.new_option": unused})) is CURVE, "of a later version, and not used"


OTHERS = {
    "model.emb_dim": "64",
    "optimizer.lr": "0.001",
    "scheduler.name": "warmup_cosine",
    "tokenizer.name": "byte",
    "data.batch_size": "4",
    "eval_iter": "1",
    "optimizer.new_option": "0.5",
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_recipe_has_no_reference(name: str) -> None:
    assert find_reference(run([9.0], CONFIG | {name: OTHERS[name]})) is None


def test_another_text_has_no_reference() -> None:
    assert find_reference(run([9.0], sha256="cd")) is None


def test_the_length_counts_where_the_learning_rate_follows_it() -> None:
    assert "trainer.max_steps" not in deciding_settings(CONFIG)
    assert deciding_settings(CONFIG | {"scheduler.name": "warmup_cosine"})["trainer.max_steps"] == "10"


def test_the_page_draws_the_reference_and_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text('{"state": "complete"}')
    monkeypatch.setattr("gpt_pretrain.runs.report.run_page.read_run", lambda folder: run([9.0, 7.15], folder=folder))
    page = render_run_page(tmp_path)
    assert "0.05 above the reference at step 5" in page
    assert "python train.py model=tiny, mean of 2 seeds" in page


def test_a_curve_of_one_seed_has_no_spread() -> None:
    single = dataclasses.replace(CURVE, losses={"1": CURVE.losses["1"]})
    assert (compare_with_reference(run([9.0, 7.0]), single) or ("", ""))[1].endswith("python train.py model=tiny, one seed")


def test_the_recorded_recipes_are_those_of_today(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run of each command finds its curve; when a recipe changes, `python -m benchmarks references COMMAND` records it anew."""
    monkeypatch.undo()
    for curve in reference._table():
        settings = dataclasses.asdict(load_settings(*shlex.split(curve.command)[2:]))
        if settings["tokenizer"]["name"] == "auto":
            settings["tokenizer"]["name"] = "gpt2"  # as for every text that is not the user's own
        if settings["data"]["batch_size"] is None:
            settings["data"]["batch_size"] = USUAL_BATCH  # as recorded
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        contents = dataclasses.replace(read_run(tmp_path), metadata={"data": {"sha256": curve.text_sha256}})
        assert find_reference(contents) is curve, f"the recipe of {curve.command} has changed"


def test_the_table_of_the_package_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for curve in reference._table():
        assert isinstance(curve, ReferenceCurve)
        assert all(len(losses) == len(curve.steps) for losses in curve.losses.values())
        assert len(curve.text_sha256) == 64
