"""Stop training, generation and evaluation, and check that each message says what is wrong and what helps."""

from __future__ import annotations

import errno
import importlib.util
import io
import multiprocessing
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from gpt_pretrain.checkpoints.weight_averages import choose_weights
from gpt_pretrain.commands import evaluate, generate, report
from gpt_pretrain.commands.command_line.command_words import sort_arguments
from gpt_pretrain.commands.command_line.hydra_arguments import check_arguments
from gpt_pretrain.config.checkpoint_settings import read_data_settings, read_stored_settings
from gpt_pretrain.config.custom_parts import named_model
from gpt_pretrain.config.schema import RemoteSettings
from gpt_pretrain.data import private_cache
from gpt_pretrain.data.remote import remote_files
from gpt_pretrain.data.remote.remote_files import RemoteFiles
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.packing import ScoreRequest
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.evaluation.tasks import hub_tasks
from gpt_pretrain.evaluation.tasks.task_scoring import _check_lengths
from gpt_pretrain.evaluation.texts import TextSource, _beginning, validation_source
from gpt_pretrain.generation import decoding, prompt_files
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.sampling import sample_next
from gpt_pretrain.model.custom import CustomModel, _state_problem
from gpt_pretrain.runs import tracking
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.characters import CharacterTokenizer
from gpt_pretrain.training.optimization.custom_optimizer import build_custom_optimizer
from gpt_pretrain.training.optimization.custom_schedule import ScaledSchedule, build_custom_schedule
from tests.conftest import tiny_model
from tests.helpers.data_settings import data_settings
from tests.helpers.training_runs import Train


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Have Python find no package of a name."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))


def fail(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def missing(*_: Any) -> None:
    raise ImportError("Install s3fs")


def test_weights_that_cannot_be_rounded_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"precision=int8: your own model is decoded as it is, and only the built-in ones can"):
        decoding._check_int8(CustomModel.__new__(CustomModel))
    monkeypatch.setattr(decoding, "has_int8_products", lambda: False)
    with pytest.raises(UserError, match=r"integers of 8 bits exactly on this processor\. Choose auto, 32-true or bf16-mixed\."):
        decoding._check_int8(tiny_model())


def test_a_prompt_that_is_too_long_for_a_line_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_files, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.txt").write_text("a word " * 200)
    with pytest.raises(UserError, match=r"a\.txt: line 1 has more than 1,000 bytes\. Shorten it\."):
        list(prompt_files.read_prompts(tmp_path / "a.txt", name="prompts=a.txt"))
    settings = SimpleNamespace(prompts=None, prompt="x", prompt_file=str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match=r"prompt_file=.*a\.txt has more than 1,000 bytes\. Shorten it\."):
        generate._read_prompt(settings)  # type: ignore[arg-type]


def test_logits_that_are_not_finite_are_explained() -> None:
    logits = torch.full((1, 5), float("nan"))
    with pytest.raises(UserError, match=r"The model's logits are not finite, because its training diverged\. Train again with"):
        sample_next(logits, SamplerConfig(max_new_tokens=1, temperature=1.0))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (3, 0, "pairs, line 4: the tokenizer makes no tokens of the continuation, so it has no probability."),
        (0, 3, "pairs, line 4: the context is empty, and the tokenizer has no end-of-text token to begin with."),
        (3, 30, "pairs, line 4: the continuation has 30 tokens, but the context holds 16."),
    ],
)
def test_an_item_that_cannot_be_scored_is_named(before: int, after: int, message: str) -> None:
    task, item = SimpleNamespace(name="pairs"), SimpleNamespace(line=4)
    with pytest.raises(UserError) as caught:
        _check_lengths(before, after, 16, task=task, item=item)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("rows", "most", "message"),
    [
        ([], 10, "tasks.names=piqa: baber/piqa, validation: it has no items."),
        ([{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}] * 3, 2, "it is far larger than this task. Nothing was scored."),
    ],
    ids=["empty", "large"],
)
def test_a_task_of_the_hub_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], most: int, message: str
) -> None:
    monkeypatch.setattr(hub_tasks, "_rows", lambda *_: (row for row in rows))
    monkeypatch.setattr(hub_tasks, "MAX_HUB_ITEMS", most)
    with pytest.raises(UserError) as caught:
        hub_tasks.read_hub_task("piqa")
    assert message in str(caught.value)


def test_a_text_that_is_too_short_to_evaluate_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    settings = data_settings(tmp_path / "cache", name="text", path=str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match=r"a\.txt has 1 token, but needs at least 2\."):
        TextSource("a.txt", settings, True).tokenize(CharacterTokenizer("ab", end_of_text=False))


def test_tokens_without_bytes_have_no_beginning() -> None:
    with pytest.raises(UserError, match=r"max_bytes=9: the tokens of ids:5 do not show how many bytes of text they stand for\."):
        _beginning(SimpleNamespace(), build_tokenizer("ids:5"), max_bytes=9)  # type: ignore[arg-type]


def test_a_stored_path_of_another_user_must_be_typed(tmp_path: Path) -> None:
    weights = SimpleNamespace(name="last.ckpt", content={"config": {"data": {"path": "/etc/hosts"}}, "text_sha256": "0"})
    with pytest.raises(UserError, match=r"last\.ckpt records a data path that is only used if you give it: data\.path=FILE"):
        validation_source([weights])  # type: ignore[list-item]


def test_weights_without_a_finite_loss_have_no_result() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.tok_emb.weight[0] = float("nan")
    for precision, remedy in (("32-true", "Its weights are damaged"), ("bf16-mixed", "Try precision=32-true.")):
        scorer = Scorer(model, name="x.ckpt", precision=precision, batch_tokens=64)
        with pytest.raises(UserError, match=rf"NaN or infinite in precision={precision}, so it has no result\. {remedy}"):
            list(scorer.score_groups([[request()]]))


def request() -> Any:
    """Return a request to score some tokens."""
    return ScoreRequest(np.arange(5), 3)


def test_batches_that_do_not_fit_into_memory_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Scorer, "_score_batch", fail)
    scorer = Scorer(tiny_model(), name="x.ckpt", precision="32-true", batch_tokens=64)
    with pytest.raises(UserError, match=r"too small for batches of 64 tokens\. Set a smaller one: batch_tokens=16"):
        list(scorer.score_groups([[request()]]))


def test_results_and_answers_that_cannot_be_written_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluate, "_show_results", fail)
    with pytest.raises(UserError, match=r"The results cannot be written to .*: No space left on device\."):
        evaluate._write_results([], None, SimpleNamespace(run_dir=tmp_path))  # type: ignore[arg-type]


def test_settings_of_a_checkpoint_with_wrong_types_are_named() -> None:
    with pytest.raises(UserError, match=r"The checkpoint: its settings are not valid\. seed: "):
        read_stored_settings({"seed": "many"}, own=False, origin="The checkpoint")
    with pytest.raises(UserError, match=r"The checkpoint's settings cannot be used: data\.train_ratio=7\.0: must be above 0"):
        read_data_settings({"config": {"data": vars(data_settings(Path("cache"), train_ratio=7.0, remote={}))}})
    with pytest.raises(UserError, match=r"The checkpoint's data settings are not complete: batch_size is missing\."):
        read_data_settings({"config": {"data": {"name": "sample"}}})


def test_only_a_class_of_ones_own_is_chosen_for_weights() -> None:
    with pytest.raises(UserError, match=r"model=: weights of a built-in model describe their own architecture\. Name only a"):
        named_model({"n_layers": 3})


def test_weights_without_shapes_are_named() -> None:
    module = torch.nn.LazyLinear(3)
    assert _state_problem(module) == (
        "has weights whose shapes are not known before the first batch, such as weight. State their sizes."
    )


class NoRate(Optimizer):
    """An optimizer without a learning rate."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> Any:
        return None


def test_an_optimizer_without_a_learning_rate_is_named() -> None:
    with pytest.raises(UserError, match=r"NoRate has no lr in its parameter groups, which schedules set\."):
        build_custom_optimizer(tiny_model(), {"_target_": f"{__name__}.NoRate"})


def rate_of(optimizer: Optimizer) -> float:
    return 0.5


def test_a_function_of_the_optimizer_must_return_a_schedule() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(
        UserError, match=r"rate_of returned a float\. It must return the factor on the learning rate of a step, or"
    ):
        build_custom_schedule(optimizer, {"_target_": f"{__name__}.rate_of"}, total_steps=9, scale=lambda: 1.0)


def test_a_schedule_that_ends_before_the_run_is_named() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    cycle = OneCycleLR(optimizer, 0.1, total_steps=2, cycle_momentum=False)
    schedule = ScaledSchedule(cycle, total_steps=9, scale=lambda: 1.0)
    optimizer.step()
    with pytest.raises(UserError, match=r"the schedule fails at optimizer step \d: .*Its lengths count optimizer steps\."):
        for _ in range(5):
            schedule.step()


def test_places_that_cannot_be_written_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "TemporaryDirectory", fail)
    with pytest.raises(UserError, match=r"No folder for temporary files can be written \(No space .*TMPDIR=FOLDER, or a cache"):
        private_cache.temporary_cache.__wrapped__()
    monkeypatch.setattr(report, "find_run_folder", lambda _: tmp_path)
    monkeypatch.setattr(report, "write_report", fail)
    with pytest.raises(UserError, match=r"report\.html cannot be written \(No space left on device\)\. Check the permissions"):
        report.report_command(["run"])


def test_workers_without_shared_memory_are_explained(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    with pytest.raises(UserError) as caught:
        train("data.num_workers=2")
    assert str(caught.value) == (
        "data.num_workers=2: no worker process can be started here, since locks cannot be made in /dev/shm (Read-only file "
        "system). Set data.num_workers=0."
    )


def test_a_database_without_its_packages_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(monkeypatch, tracking.MLFLOW_DATABASE_PACKAGES[0])
    with pytest.raises(UserError, match=r"for the database in the run's folder\. Run: pip install mlflow, or name a server"):
        tracking._local_store(tmp_path)


def test_a_url_without_its_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "open_file_system", missing)
    with pytest.raises(
        UserError, match=r"data\.path=s3://x: Install s3fs\. For s3://, run: pip install 'gpt-pretrain\[remote\]'\."
    ):
        RemoteFiles("s3://x", RemoteSettings()).size("manifest.json")


def test_a_launcher_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "hydra_plugins.hydra_joblib_launcher")
    arguments = sort_arguments(["-m", "hparams_search=parallel", "seed=1,2"])
    with pytest.raises(UserError, match=r"The launcher joblib is not installed\. Run: pip install hydra-joblib-launcher$"):
        check_arguments(arguments, script="train")


def test_answers_that_cannot_be_written_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_with_warnings", fail)
    with pytest.raises(UserError, match=r"The answers cannot be written: No space left on device\."):
        generate._write_answers(io.StringIO(), SimpleNamespace(tokenizer=None), None, None, prompts=[])  # type: ignore[arg-type]


def test_a_line_that_is_no_text_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(["\udcff\udcfe", "Hello", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert list(generate._interactive_prompts()) == ["Hello"]
    assert "This line is not UTF-8 text. Set the terminal's encoding to UTF-8" in capsys.readouterr().err


class NoCredentialsError(Exception):
    """Raised by a library that finds no keys."""


def test_keys_that_are_missing_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_keys(*_: Any, **__: Any) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    system = SimpleNamespace(ls=without_keys, info=without_keys)
    monkeypatch.setattr(remote_files, "open_file_system", lambda *_: (system, "x"))
    with pytest.raises(UserError, match=r"Unable to locate credentials\. To read public data without credentials, add \+data\."):
        RemoteFiles("s3://x", RemoteSettings()).size("manifest.json")


def test_weights_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"weights=mean: must be one of trained, ema, average\."):
        choose_weights(SimpleNamespace(), "mean")  # type: ignore[arg-type]
