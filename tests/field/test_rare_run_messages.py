"""Give each part of runs and sweeps an input that it refuses, and check what its message says."""

from __future__ import annotations

import runpy
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from gpt_pretrain.commands import lm_eval, verify_resume
from gpt_pretrain.commands.command_line import stored_overrides
from gpt_pretrain.commands.process.rank_processes import _stored_devices
from gpt_pretrain.config.override_messages import explain_locations
from gpt_pretrain.data.custom_data import LoaderWindows, _find_loader
from gpt_pretrain.runs.results_file import _run_problems
from gpt_pretrain.sweeps import report_page, search
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.training import preflight, run_tokenizer
from gpt_pretrain.training.distributed import launch
from gpt_pretrain.training.distributed.rendezvous import _agreed_start
from gpt_pretrain.training.optimization.custom_optimizer import build_custom_optimizer
from gpt_pretrain.training.start.remaining import check_incomplete
from gpt_pretrain.training.start.restored_settings import _keep_epoch_limits
from gpt_pretrain.training.start.starting_point import _build_custom
from tests.conftest import tiny_model
from tests.helpers.own_parts import Counting, Numbers
from tests.helpers.refusals import Make, check_each
from tests.helpers.vocabularies import word_pieces


def stored_devices(folder: Path) -> object:
    (folder / "config.yaml").write_text("trainer: {devices: 0, num_nodes: 1, accelerator: cpu}\n")
    return _stored_devices(folder / "config.yaml")


def damaged_settings(folder: Path) -> object:
    (folder / "config.yaml").write_text("trainer:\n\tdevices: 1\n")
    return _stored_devices(folder / "config.yaml")


def finished_beyond(_: Path) -> object:
    """Resume a run of 9 epochs with a limit of 5, which it did not have before."""
    content = {
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 9}}}},
        **{"global_step": 90, "tokens_seen": 900, "callbacks": {}, "config": {"trainer": {"max_epochs": 10}}},
    }
    trainer = SimpleNamespace(max_epochs=5, max_steps=-1, max_tokens=None)
    callbacks = SimpleNamespace(early_stopping=None)
    return check_incomplete(SimpleNamespace(run_dir="run", budget=None, trainer=trainer, callbacks=callbacks), content)  # type: ignore[arg-type]


def other_own_model(_: Path) -> object:
    fields = {"_target_": "tests.helpers.own_models.Recurrent"}
    settings = SimpleNamespace(custom={"model": fields})
    return _build_custom(settings, tiny_model().config, SimpleNamespace(stored_shapes={"x": (1,)}, resume="run"))  # type: ignore[arg-type]


def epoch_limits(_: Path) -> object:
    """Resume a run of one device on three."""

    def config(devices: int) -> dict[str, Any]:
        trainer = {"devices": devices, "num_nodes": 1, "limit_train_batches": 5, "limit_val_batches": None}
        return {"data": {"batch_size": 2}, "trainer": trainer}

    return _keep_epoch_limits(config(3), config(1), set())


class Failing(Counting):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("nothing here")


class Empty(Numbers):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Counting(0, 8))


RUNS: dict[str, tuple[Make, str]] = {
    "devices_of_a_stored_run": (stored_devices, "has no valid number of devices. Add trainer.devices=N and trainer.num_nodes=N."),
    "damaged_settings_of_a_stored_run": (
        damaged_settings,
        "config.yaml cannot be used: it cannot be read as YAML (while scanning for the next token). Delete it, or add "
        "trainer.devices=N: the checkpoint has all other settings.",
    ),
    "place_that_a_file_names": (
        lambda _: explain_locations(["data.path=/x"], origin="multirun.yaml"),
        "Such a setting is used only if you type it. To use it, add: data.path=/x",
    ),
    "places_that_a_file_names": (
        lambda _: explain_locations(["data.path=/x", "init_from=y"], origin="multirun.yaml"),
        "Such settings are used only if you type them. To use them, add: data.path=/x init_from=y",
    ),
    "secret_that_is_not_stored": (
        lambda _: explain_locations(["data.path=/x"], origin="multirun.yaml", own=True),
        "data.path=/x comes from multirun.yaml. Its secret parts are never stored. Type it again in full: data.path=/x",
    ),
    "run_beyond_its_limit": (
        finished_beyond,
        "run has already trained 9 epochs, more than trainer.max_epochs=5. To train further, for example: trainer.max_epochs=18",
    ),
    "own_model_of_other_shapes": (other_own_model, "run does not fit model._target_=tests.helpers.own_models.Recurrent: "),
    "epoch_of_other_devices": (
        epoch_limits,
        "trainer.limit_train_batches=5 was 10 windows, which is not a multiple of the 6 windows that a batch of all devices now has",
    ),
    "optimizer_without_parameters": (
        lambda _: build_custom_optimizer(torch.nn.Linear(1, 1), {"_target_": "tests.helpers.own_parts.of_others"}),
        "has parameters that are not the model's. Its first argument must be the parameters to train.",
    ),
    "data_that_fail": (
        lambda _: LoaderWindows(DataLoader(Failing(4, 8)), name="mine.Data", vocab_size=99, context_length=8),
        "data._target_=mine.Data: reading its data fails: KeyError: 'nothing here'",
    ),
    "data_without_windows": (
        lambda _: _find_loader(Empty(8), "train", "mine.Data"),
        "data._target_=mine.Data: the dataset of train_dataloader() is empty.",
    ),
    "entry_of_other_results": (lambda _: list(_run_problems([], 3)), "entry 3 is not an object."),
}


def test_runs_that_are_refused(tmp_path: Path) -> None:
    check_each(RUNS, tmp_path)


def test_a_stored_sweep_asks_for_what_no_file_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["seed=[", "+trainer._target_=os.system", "start_context=${oc.env:HF_TOKEN}", "eval_iter=99999999"]
    monkeypatch.setattr(stored_overrides, "read_stored_overrides", lambda _: [texts])
    monkeypatch.setattr(stored_overrides, "own_overrides", lambda *_, **__: [])
    with pytest.raises(stored_overrides.UserError) as caught:
        stored_overrides.admit_overrides(tmp_path, script="train", typed=set())
    reasons = (
        "cannot be an override of this program",
        "may run code, change Hydra itself, or is no setting of this program",
        "holds an interpolation ${...}",
        "exceeds the limit for files from elsewhere (eval_iter is at most 10,000)",
    )
    assert len(caught.value.problems) == len(texts)
    for reason, problem in zip(reasons, caught.value.problems, strict=True):
        assert reason in problem


def test_a_search_needs_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(search.UserError, match=r"A search needs the package optuna\. Run: pip install optuna, or leave out"):
        runpy.run_path(search.__file__)


def test_ranks_that_do_not_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SimpleNamespace(add=lambda name, _: int(name == "starts"), check=lambda _: False)
    with pytest.raises(torch.distributed.DistStoreError, match="Some ranks have not connected within the timeout"):
        _agreed_start(store, 0, 2, timeout=timedelta(0))  # type: ignore[arg-type]


def test_a_vocabulary_that_transformers_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_tokenizer, "is_exportable", lambda _: False)
    settings = SimpleNamespace(export=True, start_context="a", callbacks=SimpleNamespace(grid=None))
    (problem,) = run_tokenizer.tokenizer_problems(settings, SimpleNamespace(name="mine"), set())  # type: ignore[arg-type]
    assert problem == "export=true: transformers has no tokenizer like mine. Leave out export=true."


def test_a_prompt_for_which_a_vocabulary_has_no_token(tmp_path: Path) -> None:
    settings = SimpleNamespace(export=False, start_context="\n", callbacks=SimpleNamespace(grid=None))
    tokenizer = build_tokenizer(str(word_pieces(tmp_path / "words")))
    (problem,) = run_tokenizer.tokenizer_problems(settings, tokenizer, {"start_context"})  # type: ignore[arg-type]
    assert f"the tokenizer {tokenizer.name} has no token for it. Choose another text or tokenizer." in problem


def test_the_harness_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(lm_eval.UserError, match=r"The LM Evaluation Harness is not installed\. Run: pip install "):
        lm_eval.lm_eval_command([])


def test_a_training_that_fails_is_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verify_resume.verify_resume_command(["model=absent"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: model=absent: ")


@pytest.mark.parametrize("typed", ["trainer.max_steps=6", "+trainer.max_epochs=2", "checkpoint.every_n_steps=3"])
def test_a_proof_has_its_own_number_of_steps(typed: str) -> None:
    with pytest.raises(verify_resume.UserError, match=r"before= and after= are the steps of gpt-pretrain verify_resume"):
        verify_resume.verify_resume_command([typed])


def started_by_others(devices: int, nodes: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        preflight, "ranks", SimpleNamespace(is_distributed=lambda: True, world_size=lambda: 4, local_world_size=lambda: 2)
    )
    return preflight._resolve_devices(
        SimpleNamespace(trainer=SimpleNamespace(devices=devices, num_nodes=nodes, accelerator="cpu"))
    )  # type: ignore[arg-type]


def test_processes_that_others_have_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_by_others(2, 2, monkeypatch).trainer.num_nodes == 2
    with pytest.raises(preflight.UserError) as caught:
        started_by_others(3, 1, monkeypatch)
    assert str(caught.value) == (
        "trainer.devices=3 and trainer.num_nodes=1 do not match the 2 processes that were started on each of 2 machines. "
        "Remove both settings, or set them to these numbers."
    )


def test_devices_that_a_machine_lacks() -> None:
    trainer = SimpleNamespace(devices=torch.cuda.device_count() + 2, num_nodes=1, accelerator="gpu")
    with pytest.raises(preflight.UserError, match=rf"trainer\.devices={trainer.devices} is more than the \d GPU"):
        preflight._resolve_devices(SimpleNamespace(trainer=trainer))  # type: ignore[arg-type]


def test_a_sweep_is_not_started_by_torchrun() -> None:
    _, problems = launch._overrides_of_main(lambda: ["-m", "seed=1,2"], lambda: None)
    assert problems == ["A sweep starts the processes of each job itself: python train.py -m ... trainer.devices=N"]


def test_a_sweep_of_texts_has_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "read_sweep", lambda _: [SimpleNamespace(metadata={"texts": 1})])
    with pytest.raises(report_page.UserError, match=r"a sweep of generate\.py has no report page\. Its texts are compared in "):
        report_page.save_sweep_page(tmp_path)


def test_a_search_whose_trials_all_lie_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_UNFINISHED", 3)
    monkeypatch.setattr(search.Search, "_is_in_ranges", lambda *_: False)
    study = SimpleNamespace(ask=lambda _: SimpleNamespace(params={}), tell=lambda *_, **__: None)
    with pytest.raises(search.UserError, match="more than 3 of its trials are out of range"):
        search.Search(study, {}, tmp_path / "study.journal").ask(1)  # type: ignore[arg-type]
