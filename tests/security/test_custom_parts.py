"""A checkpoint names the user's own classes only as texts: nothing is imported or built for it until the user names it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.config.custom_parts import resume_custom_parts, storable_parts
from gpt_pretrain.config.custom_targets import call_target, find_target
from gpt_pretrain.errors import UserError
from tests.conftest import TINY_RUN
from tests.helpers.training_runs import checkpoint, with_stored

Train = Callable[..., float]
OWN = ["optimizer=custom", "++optimizer._target_=tests.helpers.own_parts.Growing"]
QUICK = ["callbacks=minimal", "logger=none"]
RESUMED = ["trainer.accelerator=cpu", "trainer.max_steps=2"]
EVIL = "evil_module_of_a_stranger"


@pytest.fixture
def run(train: Train, tmp_path: Path) -> Path:
    """A finished run with an optimizer of the user's own."""
    train(*OWN, "++optimizer.growth=1.5", *QUICK, "trainer.max_steps=1")
    return tmp_path / "run"


def growth(run: Path) -> float:
    group: dict[str, float] = checkpoint(run)["optimizer_states"][0]["param_groups"][0]
    return group["growth"]


def test_a_class_that_only_the_checkpoint_names_is_not_imported(
    train: Train, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{EVIL}.py").write_text("raise SystemExit('this code has run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with_stored(run, lambda config: config["custom"]["optimizer"].update({"class": f"{EVIL}.Payload"}))
    with pytest.raises(UserError, match="A checkpoint never decides which code runs"):
        train(f"resume='{run}'", base=RESUMED)
    with pytest.raises(UserError, match=rf"optimizer\._target_ was {EVIL}\.Payload, is"):
        train(f"resume='{run}'", *OWN, base=RESUMED)
    assert EVIL not in sys.modules


def test_a_model_that_only_the_checkpoint_names_is_not_imported(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{EVIL}.py").write_text("raise SystemExit('this code has run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "++model._target_=tests.helpers.own_models.Recurrent"
    base = [*(one for one in TINY_RUN if not one.startswith("model")), "model=custom", name]
    train(*QUICK, "trainer.max_steps=1", base=base)
    run = tmp_path / "run"
    with_stored(run, lambda config: config["custom"]["model"].update({"class": f"{EVIL}.Payload"}))
    with pytest.raises(UserError, match="A checkpoint never decides which code runs"):
        train(f"resume='{run}'", base=RESUMED)
    with pytest.raises(UserError, match="A checkpoint never decides which code runs"):
        load_pretrained(run)
    with pytest.raises(UserError, match=rf"model\._target_ was {EVIL}\.Payload, is"):
        train(f"resume='{run}'", "model=custom", name, base=RESUMED)
    load_pretrained(run, custom={"_target_": "tests.helpers.own_models.Recurrent"})
    with_stored(run, lambda config: config.pop("custom"))
    with pytest.raises(UserError, match="but not its class"):
        load_pretrained(run)
    with pytest.raises(UserError, match=r"model\.kind=custom: this is your own class"):
        train(f"resume='{run}'", base=RESUMED)
    assert EVIL not in sys.modules


def test_arguments_of_a_stranger_are_not_taken(train: Train, run: Path) -> None:
    with_stored(run, lambda config: config["custom"]["optimizer"]["arguments"].update({"growth": 7.0}))
    with pytest.raises(UserError, match=r"optimizer\.growth=7\.0 comes from .*which is not signed with your key"):
        train(f"resume='{run}'", *OWN, base=RESUMED)
    train(f"resume='{run}'", *OWN, "++optimizer.growth=1.2", base=RESUMED)
    assert growth(run) == 1.2


def test_arguments_of_an_own_checkpoint_are_taken(train: Train, run: Path) -> None:
    train(f"resume='{run}'", *OWN, base=RESUMED)
    assert growth(run) == 1.5


WRONG_STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "text": lambda state: state["state"][0].update(rows="x"),
    "shape": lambda state: state["state"][0].update(rows=torch.zeros(2)),
    "table": lambda state: state["state"][0].update(rows={"a": 1}),
    "setting": lambda state: state["param_groups"][0].update(size="x"),
    "missing": lambda state: state["param_groups"][0].pop("size"),
    "groups": lambda state: state["param_groups"].append(state["param_groups"][0]),
}


@pytest.mark.parametrize("kind", WRONG_STATES)
def test_a_state_that_does_not_fit_an_own_optimizer_is_a_message(train: Train, run: Path, kind: str) -> None:
    content = checkpoint(run)
    WRONG_STATES[kind](content["optimizer_states"][0])
    write_checkpoint(content, run / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=r"its training state is damaged \(.*\)\. Start from its weights"):
        train(f"resume='{run}'", *OWN, "++optimizer.growth=1.2", base=RESUMED)


def test_a_stored_target_is_refused(train: Train, run: Path) -> None:
    with_stored(run, lambda config: config["custom"]["optimizer"]["arguments"].update({"inner": {"_target_": "os.system"}}))
    (run / "checkpoints" / "best.ckpt").unlink()  # which is intact
    with pytest.raises(UserError, match="the stored settings contain a _target_"):
        train(f"resume='{run}'", *OWN, base=RESUMED)


def test_a_name_with_control_characters_is_shown_escaped_and_never_suggested() -> None:
    for name in ("a.b\n\x1b[2Jrm -rf", "x.y; rm -rf ~", "a" * 300 + ".b", 7, None):
        _, (problem,), _ = resume_custom_parts({"optimizer": {"class": name, "arguments": {}}}, {}, own=False, origin="a file")
        assert "\x1b" not in problem
        assert "\n" not in problem
        assert "_target_=," in problem, "the remedy names no class"


def test_arguments_that_name_classes_are_not_stored() -> None:
    fields = {"_target_": "a.B", "parts": [{"deep": {"_target_": "os.system"}}], "lr": 1.0}
    assert storable_parts({"optimizer": fields}) == {"optimizer": {"class": "a.B", "arguments": None}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, whose modules are forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_the_current_folder_is_searched_for_the_named_class_only(folder: Path) -> None:
    before = list(sys.path)
    (folder / "neighbor_of_mine.py").write_text("WORTH = 3")
    (folder / "mine_here.py").write_text("import neighbor_of_mine\ndef worth(): return neighbor_of_mine.WORTH")
    (folder / "gone_here.py").write_text("raise ValueError('no')")
    assert find_target("mine_here.worth", setting="x")() == 3
    with pytest.raises(UserError, match="ValueError: no"):
        find_target("gone_here.worth", setting="x")
    assert sys.path == before


def test_nothing_of_the_current_folder_is_imported_for_an_installed_class(folder: Path) -> None:
    (folder / f"{EVIL}.py").write_text("raise SystemExit('this code has run')")
    (folder / "site").mkdir()
    (folder / "site" / "installed_here.py").write_text(f"try:\n    import {EVIL}\nexcept ImportError: pass\nclass Fine: pass")
    sys.path.append(str(folder / "site"))
    try:
        find_target("installed_here.Fine", setting="x")
    finally:
        sys.path.remove(str(folder / "site"))
    assert EVIL not in sys.modules


def test_a_package_of_the_current_folder_is_used_several_times(folder: Path) -> None:
    (folder / "own_package").mkdir()
    (folder / "own_package" / "__init__.py").write_text("")
    (folder / "own_package" / "first.py").write_text("def lazy():\n    from own_package import third\n    return third.WORTH")
    (folder / "own_package" / "second.py").write_text("import lonely_here\ndef worth(inner): return inner")
    (folder / "own_package" / "third.py").write_text("WORTH = 4")
    (folder / "lonely_here.py").write_text("")
    (folder / "inner_here.py").write_text("Part = dict")
    assert find_target("own_package.first.lazy", setting="x")() == 4
    fields = {"_target_": "own_package.second.worth", "inner": {"_target_": "inner_here.Part", "a": 1}}
    assert call_target(fields, setting="x") == {"a": 1}


def test_stored_names_of_callbacks_may_be_anything(train: Train, run: Path) -> None:
    with_stored(run, lambda config: config["callbacks"].update(custom=[1, "x"]))
    train(f"resume='{run}'", *OWN, "++optimizer.growth=1.2", base=RESUMED)
    assert growth(run) == 1.2


def test_the_message_on_a_class_says_whose_it_is_and_what_typing_it_means() -> None:
    stored = {"model": {"class": "their.Model", "arguments": {}}}
    _, (theirs,), _ = resume_custom_parts(stored, {}, own=False, origin="run/last.ckpt")
    assert theirs.startswith("run/last.ckpt, which is not signed with your key")
    assert "Typing the name runs the code of its module" in theirs and "add model._target_=their.Model" in theirs
    _, (own,), _ = resume_custom_parts(stored, {}, own=True, origin="run/last.ckpt")
    assert "Name it again: model._target_=their.Model" in own
