"""Names of runs and folders that lead to nothing, or to something else than a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt_pretrain.data.sources import find_data_sources
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import find_checkpoints, find_run, find_run_folder
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.helpers.data_settings import data_settings


def test_a_url_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a URL\. For a text, give data\.url=URL\. For token shards, add data=shards\."):
        find_data_sources(data_settings(tmp_path, name="text", path="https://example.org/corpus"), build_tokenizer("byte"))


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    with pytest.raises(UserError, match=r"text\.txt is a file, but the folder of a run is needed, or a file in its folder"):
        find_run_folder(str(tmp_path / "text.txt"))


def test_a_folder_of_weights_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        UserError, match=r"this folder holds weights \(model\.safetensors\), but no run\. .* type pretrained=.* init_from="
    ):
        find_run(str(tmp_path))


def test_a_folder_of_checkpoints_that_may_not_be_read_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="checkpoints"):
        find_run(str(tmp_path / "run"))


def test_a_run_is_found_by_its_parts_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("outputs") / "a"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "run.json").write_text("{}")
    for name in ("outputs/a/", "outputs/a/checkpoints", "outputs/a/checkpoints/last.ckpt"):
        assert find_run(name) == run
    for name, message in (
        ("outputs/a/run.json", r"or a file in its folder checkpoints\. Name outputs/a instead\."),
        ("outputs", r"outputs: this folder holds runs, of which one is needed, such as outputs/a\. `latest` is the newest"),
        ("a", r"a: no such run folder\. Runs are folders below outputs/\. Did you mean outputs/a\?"),
        ("last", r"last: no such run folder\. Runs are folders .* Did you mean outputs/a/checkpoints/last\.ckpt\?"),
        ("nowhere", r"nowhere: no such run folder\. Runs are folders below outputs/\. `latest` is the newest\."),
    ):
        with pytest.raises(UserError, match=message):
            find_run(name)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("my run", "'outputs/my run'"),
        ("outputs/My Run", "'outputs/my run'"),
        ("my_run", "'outputs/my run'"),
        ("last", "'outputs/my run/checkpoints/last.ckpt'"),
        ("outputs/my run/checkpoints/last", "'outputs/my run/checkpoints/last.ckpt'"),
        ("best", None),
        ("report.htm", None),
    ],
)
def test_the_run_that_a_name_means_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "my run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "outputs" / "my run" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "report.html").touch()
    with pytest.raises(UserError) as caught:
        find_checkpoints(typed)
    assert str(caught.value).endswith(f" Did you mean {meant}?" if meant else " `latest` is the newest run below outputs/.")
