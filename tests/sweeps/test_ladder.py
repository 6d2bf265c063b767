"""The ladder: its rungs, the law that they correct, and how it goes on after an interruption."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.costs import training_flops_per_token
from gpt_pretrain.runs.metadata import update_metadata
from gpt_pretrain.sweeps import ladder_run
from gpt_pretrain.sweeps.ladder import Rung, RungResult, plan_rungs
from gpt_pretrain.sweeps.ladder_chart import ladder_figure, measured_bits
from gpt_pretrain.sweeps.ladder_choice import best_lr_factor, choose_rest, measured_training
from gpt_pretrain.sweeps.ladder_file import StoredLadder, read_ladder
from gpt_pretrain.sweeps.report_page import save_sweep_page
from gpt_pretrain.sweeps.runner import JobRunner
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.law import Difficulty, Training, fitted_law
from gpt_pretrain.training.budget.own_law import MeasuredTraining, fit_own_law
from gpt_pretrain.training.budget.speed import Speed
from tests.helpers.made_runs import make_sweep_folder

PILOT = Training(98_304, 1024, 1_000_000, 125_000, 2.7)
DIFFICULTY = Difficulty(PILOT, 2.6, {20_000: 3.2, 125_000: 2.8, 500_000: 2.5})
TEXT = choice.TextFacts(1_000_000, {512: 2.0, 1024: 2.45, 2048: 2.9, 4096: 3.3}, DIFFICULTY)
SPEED = Speed((1.5e6, 7e6, 3.6e7), (8e9, 2e10, 4e10), 8e-3)
LIMITS = choice.Limits(7200.0, 8 * 10**9, 10**11)
HARDER = 1.1  # how much higher the losses of the made-up text are than the law's


def result_of(rung: Rung) -> dict[str, Any]:
    """Return the results that a training of a made-up text has."""
    rate = SPEED.rate(training_flops_per_token(rung.config)) / training_flops_per_token(rung.config)
    tokens = int(rate * rung.seconds * 0.9)
    training = measured_training(RungResult(rung, 1.0, tokens, rate), TEXT).training
    bits = HARDER * fitted_law().bits_per_byte(training, DIFFICULTY) * (1 + 0.02 * math.log2(rung.lr_factor) ** 2)
    return {"best_bits_per_byte": bits, "best_val_loss": bits, "tokens_seen": tokens, "tokens_per_second": rate, "steps": 500}


class FakeSweep:
    """Runs the jobs of a ladder by writing what they would leave behind.

    Args:
        fails: The names of jobs that fail; "interrupted" after the first job that is named so raises Ctrl-C.
    """

    def __init__(self, folder: Path, *, fails: Sequence[str] = (), interrupted: str | None = None) -> None:
        self.folder = make_sweep_folder(folder)
        self.fails = fails
        self.interrupted = interrupted
        self.started: list[str] = []

    def launch(self, jobs: Sequence[Sequence[str]], first: int) -> None:
        for overrides in jobs:
            values = dict(override.split("=", 1) for override in overrides)
            name = values["hydra.sweep.subdir"].strip("'")
            if name == self.interrupted:
                raise KeyboardInterrupt
            self.started.append(name)
            width, layers = int(values["model.emb_dim"]), int(values["model.n_layers"])
            factor = float(values.get("optimizer.lr", 0.02)) / 0.02
            rung = Rung(width, layers, int(values["tokenizer.vocab_size"]), factor, float(values["budget"].removesuffix("s")))
            own = [one for one in overrides if not one.startswith("hydra.")]
            state = "failed" if name in self.fails else "finished"
            (self.folder / name).mkdir(exist_ok=True)
            update_metadata(
                self.folder / name, state=state, result=result_of(rung), seconds=rung.seconds, overrides=own, swept=own[1:]
            )

    def run(self, budget: str = "2h") -> list[str]:
        """Run the ladder, and return the names of the jobs that are left."""
        runner = JobRunner(self.folder, launch=self.launch, common=[])
        settings = SimpleNamespace(budget=budget, data=None, optimizer=SimpleNamespace(lr=0.02))
        ladder_run.run_ladder(
            runner,
            settings,  # type: ignore[arg-type]
            ["seed=1"],
            began=time.monotonic(),
            save_settings=lambda: None,
        )
        return runner.unfinished()


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurements of the text and of the machine."""
    monkeypatch.setattr(ladder_run, "describe_text", lambda *_: TEXT)
    monkeypatch.setattr(ladder_run, "measured_speed", lambda *_: SPEED)
    monkeypatch.setattr(ladder_run, "measured_limits", lambda _, seconds: dataclasses.replace(LIMITS, seconds=seconds))


def test_a_ladder_trains_its_rungs_and_then_the_best_with_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = FakeSweep(tmp_path / "sweep")
    sweep.run()
    *rungs, best = sweep.started
    assert [name.count("lr") for name in rungs] == [0, 0, 0, 1, 1]
    assert best.startswith("best-")
    stored = read_ladder(sweep.folder)
    assert stored is not None and stored.choice is not None
    spent = sum(rung.seconds for rung in stored.rungs) + stored.choice.best.seconds
    assert 0.98 * 7200 < spent <= 7200
    chosen = stored.choice.chosen
    assert chosen.low < result_of(stored.choice.best)["best_bits_per_byte"] < chosen.high
    assert "Expected: " in (shown := capsys.readouterr().out) and "Chosen for the remaining 1 h 2" in shown
    sweep.run()  # resumed: nothing is left to do
    assert sweep.started == [*rungs, best]


def test_an_interrupted_ladder_goes_on_with_the_rungs_that_are_missing(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path / "sweep")
    names = [rung.name for rung in plan_rungs(TEXT, SPEED, LIMITS, seconds=7200)]
    sweep.interrupted = names[2]
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    assert sweep.started == names[:2]
    sweep.interrupted = None
    sweep.run()
    assert sweep.started[:-1] == names and sweep.started[-1].startswith("best-")
    with pytest.raises(UserError, match="cannot change after"):
        sweep.run("3h")


def test_rungs_that_failed_are_left_out_and_too_few_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [rung.name for rung in plan_rungs(TEXT, SPEED, LIMITS, seconds=7200)]
    one = FakeSweep(tmp_path / "one", fails=[names[2], names[3], names[4]])
    assert one.run() == [], "the choice is made without them, so the ladder is complete"
    assert one.started[-1].startswith("best-")
    assert f"{names[2]} is left out" in capsys.readouterr().out
    best = one.started[-1]
    assert FakeSweep(tmp_path / "last", fails=[best]).run() == [best]
    two = FakeSweep(tmp_path / "two", fails=names[1:3])
    with pytest.raises(UserError, match="Only 1 of 3 sizes"):
        two.run()


@pytest.mark.parametrize(
    ("budget", "message"), [("5m", "at least 13m"), ("1e9 tokens", "divides a time"), ("auto", "divides a time")]
)
def test_budgets_that_a_ladder_cannot_divide_are_refused(tmp_path: Path, budget: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FakeSweep(tmp_path / "sweep").run(budget)
    assert not (tmp_path / "sweep" / "ladder.json").exists()


def test_a_machine_that_is_too_slow_for_three_sizes_is_said() -> None:
    slow = Speed(SPEED.flops, tuple(rate / 200 for rate in SPEED.rates))
    with pytest.raises(UserError, match="of the 3 sizes"):
        plan_rungs(TEXT, slow, LIMITS, seconds=800)


WRONG = {
    "width": 65,
    "layers": "2; x",
    "vocab_size": 10**9,
    "lr_factor": 1e9,
    "seconds": float("inf"),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_a_strangers_ladder_do_not_become_settings(tmp_path: Path, name: str) -> None:
    sweep = FakeSweep(tmp_path / "sweep")
    sweep.run()
    file = sweep.folder / "ladder.json"
    for change in (lambda content: content["rungs"][0], lambda content: content["choice"]["best"]):
        content = json.loads(file.read_text())
        change(content)[name] = WRONG[name]
        (tmp_path / "ladder.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="is damaged"):
            read_ladder(tmp_path)


def test_a_ladder_has_a_prediction_for_what_it_has_chosen(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path / "sweep")
    sweep.run()
    content = json.loads((sweep.folder / "ladder.json").read_text())
    for prediction in content["choice"]["sizes"]:
        prediction["parameters"] = 7
    (sweep.folder / "ladder.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no prediction for the model that it has chosen"):
        read_ladder(sweep.folder)
    assert ">Ladder<" not in save_sweep_page(sweep.folder).read_text()


def test_the_page_of_a_ladder_has_its_picture(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path / "sweep")
    sweep.run()
    page = save_sweep_page(sweep.folder).read_text()
    assert ">Ladder<" in page and "the law that was fitted" in page
    (sweep.folder / "ladder.json").write_text("{")
    assert ">Ladder<" not in save_sweep_page(sweep.folder).read_text()


def test_a_ladder_without_a_choice_has_a_picture_too() -> None:
    rungs = plan_rungs(TEXT, SPEED, LIMITS, seconds=7200)
    stored = StoredLadder(7200.0, rungs)
    bits = measured_bits(stored, {rungs[0].name: result_of(rungs[0]), rungs[1].name: {"best_bits_per_byte": "x"}})
    assert list(bits) == [rungs[0].name]
    ladder_figure(stored, bits)
    ladder_figure(stored, {})


def test_measured_trainings_correct_the_law() -> None:
    law, small, large = fitted_law(), Training(2e5, 1024, 1e6, 1e6, 2.7), Training(8e5, 1024, 1e6, 1e6, 2.7)
    far = Training(8e5, 1024, 1e6, 3e7, 2.7)
    measured = [MeasuredTraining(one, HARDER * law.bits_per_byte(one, DIFFICULTY)) for one in (small, large)]
    own = fit_own_law(law, DIFFICULTY, measured)
    assert own.bits_per_byte(small, DIFFICULTY) == pytest.approx(measured[0].bits, rel=0.01)
    low, high = own.interval(small, DIFFICULTY)
    far_low, far_high = own.interval(far, DIFFICULTY)
    assert 1.01 < high / low < far_high / far_low < 2
    assert low < measured[0].bits < high


@pytest.mark.parametrize(
    ("bits", "factor"),
    [((2.2, 2.0, 2.2), 1.0), ((2.3, 2.2, 2.0), 2.0), ((2.0, 2.2, 2.3), 0.5), ((2.003, 2.0, 1.999), 1.0), ((2.1, 2.2, 2.0), 2.0)],
)
def test_the_learning_rate_follows_its_line(bits: tuple[float, float, float], factor: float) -> None:
    ratios = {Rung(96, 3, 1024, lr, 60.0): loss for lr, loss in zip((0.5, 1.0, 2.0), bits, strict=True)}
    assert best_lr_factor(ratios) == pytest.approx(factor, rel=0.05)
    assert best_lr_factor({Rung(96, 3, 1024, 1.0, 60.0): 2.0}) == 1.0
    del ratios[Rung(96, 3, 1024, 2.0, 60.0)]  # a rung that failed, or was too slow to be compared
    assert best_lr_factor(ratios) == 1.0


def test_a_rung_on_a_slower_machine_does_not_move_the_learning_rate() -> None:
    rungs = plan_rungs(TEXT, SPEED, LIMITS, seconds=7200)
    results = []
    for rung in rungs:
        share = 0.4 if rung.lr_factor == 2 else 1.0  # of the text is read in the same time
        found = RungResult(rung, 1.0, int(share * result_of(rung)["tokens_seen"]), result_of(rung)["tokens_per_second"])
        training = measured_training(found, TEXT).training
        bits = fitted_law().bits_per_byte(training, DIFFICULTY) * (1 + 0.02 * (math.log2(rung.lr_factor) - 1) ** 2)
        results.append(dataclasses.replace(found, bits=bits))
    assert choose_rest(results, TEXT, LIMITS).best.lr_factor > 1.5


def test_settings_that_a_ladder_decides_are_refused_together() -> None:
    problems = ladder_run.ladder_problems({"model.emb_dim", "optimizer.lr", "trainer.max_steps", "seed"}, {"seed"})
    assert len(problems) == 6
    assert ladder_run.ladder_problems({"data.path", "budget", "seed", "hparams_search", "model_average"}, set()) == []
