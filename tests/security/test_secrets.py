"""Secrets of URLs and options are in no file, name or message."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gpt_pretrain.commands.process.hydra_files import cut_sweep_settings
from gpt_pretrain.config.secrets import metadata_without_secrets
from gpt_pretrain.runs.reader import read_run
from gpt_pretrain.runs.report.saving import save_run_page
from gpt_pretrain.sweeps.folder import job_folder_name
from gpt_pretrain.sweeps.report_page import save_sweep_page
from tests.helpers.hostile_files import SMALL, hostile_sweep
from tests.helpers.hostile_server import Stranger

Script = Callable[..., "subprocess.CompletedProcess[str]"]


SECRETS = ("PASSWORD1", "SIGNATURE1", "OPTIONSECRET1")


def texts_below(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_secrets_are_in_no_file_of_a_run_and_its_export(script: Script, stranger: Stranger, tmp_path: Path) -> None:
    stranger.files["/t.txt"] = ("Every effort moves you. " * 400).encode()
    url = f"http://user:PASSWORD1@127.0.0.1:{stranger.server_port}/t.txt?X-Amz-Signature=SIGNATURE1"
    typed = [one for one in SMALL if not one.startswith("logger=")]
    done = script(
        "train.py", *typed, "logger=tensorboard", "data=the_verdict", "data.sha256=null", f"data.cache_dir={tmp_path / 'cache'}",
        f"data.url={url}", "+data.remote.options.secret=OPTIONSECRET1", "+data.remote.options.anon=true", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    exported = script("-m", "gpt_pretrain", "export", "checkpoint=run", "out=exported")
    assert exported.returncode == 0, exported.stderr
    found = texts_below(tmp_path / "run", tmp_path / "exported", tmp_path / "cache")
    found |= {"output": (done.stdout + done.stderr).encode(), "names": "\n".join(found).encode()}
    assert {name for name, content in found.items() if any(secret.encode() in content for secret in SECRETS)} == set()
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert f"url: http://***@127.0.0.1:{stranger.server_port}/t.txt?X-Amz-Signature=***" in config
    assert "anon: true" in config
    assert "PASSWORD1" not in (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    asked = len(stranger.asked)
    resumed = script("train.py", "resume=run", "trainer.max_steps=6", f"data.cache_dir={tmp_path / 'empty'}")
    assert resumed.returncode == 2
    assert "ype" in resumed.stderr and "again" in resumed.stderr and "data.url=" in resumed.stderr
    assert len(stranger.asked) == asked
    again = script("train.py", "resume=run", "trainer.max_steps=6", f"data.cache_dir={tmp_path / 'empty'}", f"data.url={url}")
    assert again.returncode == 0, again.stderr
    found = texts_below(tmp_path / "run")
    assert {name for name, content in found.items() if any(secret.encode() in content for secret in SECRETS)} == set()


def test_errors_show_no_secrets(script: Script, stranger: Stranger, tmp_path: Path) -> None:
    port = stranger.server_port
    for url in (
        f"http://user:PASSWORD1@127.0.0.1:{port}/x?X-Amz-Signature=SIGNATURE1",
        "http://user:PASSWORD1@127.0.0.1:9/x?q=SIGNATURE1",
    ):
        for number, changes in enumerate(
            (["data=the_verdict", f"data.url={url}"], ["data=shards", f"data.path={url}", "data.remote.retries=1"])
        ):
            folder = f"run{number}"
            done = script("train.py", *SMALL, *changes, "+data.remote.options.secret=OPTIONSECRET1", f"hydra.run.dir={folder}")
            assert done.returncode == 2
            seen = texts_below(tmp_path / folder) | {"output": (done.stdout + done.stderr).encode()}
            assert {name for name, content in seen.items() if any(secret.encode() in content for secret in SECRETS)} == set()


TYPED = ["data.url=http://user:PASSWORD1@host/t.txt?sig=SIGNATURE1", "+data.remote.options.secret=OPTIONSECRET1", "seed=1,2"]


def test_a_sweep_is_stored_and_named_without_secrets() -> None:
    settings = {
        "data": {"url": TYPED[0].partition("=")[2], "remote": {"options": {"secret": "OPTIONSECRET1", "anon": True}}},
        "seed": 1,
        "hydra": {
            "overrides": {"task": TYPED, "hydra": []},
            "job": {"override_dirname": ",".join(TYPED)},
            "run": {"dir": "${x:y}"},
        },
    }
    stored = OmegaConf.to_yaml(cut_sweep_settings(OmegaConf.create(settings)))
    assert not any(secret in stored for secret in SECRETS), stored
    assert "${x:y}" in stored and "anon: true" in stored and "sig=***" in stored
    unchanged = OmegaConf.create({"data": {"url": "http://host/t.txt"}, "hydra": {}})
    assert cut_sweep_settings(unchanged) is unchanged
    names = {job_folder_name([TYPED[0], "seed=1"]), job_folder_name([TYPED[0].replace("SIGN", "sign"), "seed=1"])}
    assert len(names) == 2
    assert not any(secret in name for secret in SECRETS for name in names)


@pytest.mark.parametrize(
    "urls",
    [
        ["http://user:PASSWORD1@PLACE"],
        ["http://user:PASSWORD1@PLACE", "http://user:SIGNATURE1@PLACE"],
        ["'http://PLACE?X-Amz-Signature=SIGNATURE1'", "'http://user:PASSWORD1@PLACE?X-Amz-Signature=SIGNATURE1'"],
    ],
    ids=["one", "two", "quoted"],
)
def test_secrets_are_in_no_file_and_no_name_of_a_sweep(
    script: Script, stranger: Stranger, tmp_path: Path, urls: list[str]
) -> None:
    stranger.files["/t.txt"] = ("Every effort moves you. " * 400).encode()
    swept = "seed=1" if len(urls) > 1 else "seed=1,2"
    typed = f"data.url={','.join(urls)}".replace("PLACE", f"127.0.0.1:{stranger.server_port}/t.txt")
    options = ["data=the_verdict", "data.sha256=null", f"data.cache_dir={tmp_path / 'cache'}", swept]
    done = script("train.py", "-m", *SMALL, *options, typed, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweep"

    def places_of_secrets(output: str) -> set[str]:
        found = texts_below(sweep, tmp_path / "cache")
        found |= {"output": output.encode(), "names": "\n".join(map(str, sweep.rglob("*"))).encode()}
        return {name for name, content in found.items() if any(secret.encode() in content for secret in SECRETS)}

    assert places_of_secrets(done.stdout + done.stderr) == set()
    jobs = set(sweep.glob("*/run.json"))
    assert len(jobs) == 2
    resumed = script("train.py", "sweep_resume=sweep")
    assert resumed.returncode == 2
    assert "Type it again" in resumed.stderr and "data.url=" in resumed.stderr
    again = script("train.py", "sweep_resume=sweep", typed)
    assert again.returncode == 0, again.stderr
    assert set(sweep.glob("*/run.json")) == jobs
    assert places_of_secrets(resumed.stdout + resumed.stderr + again.stdout + again.stderr) == set()


def test_options_that_a_sweep_varies_are_not_stored() -> None:
    typed = [
        "start_context=a",
        "+data.remote.options.secret=OPTIONSECRET1,PASSWORD1",
        "data.url=http://h/x,s3://k:SIGNATURE1@b/x",
    ]
    settings = {"data": {}, "hydra": {"overrides": {"task": typed, "hydra": []}, "job": {"override_dirname": ",".join(typed)}}}
    stored = OmegaConf.to_yaml(cut_sweep_settings(OmegaConf.create(settings)))
    assert not any(secret in stored for secret in SECRETS), stored
    assert "data.url=http://h/x,s3://***@b/x" in stored


def test_a_run_of_an_earlier_version_is_shown_without_secrets(tmp_path: Path) -> None:
    url = TYPED[0].partition("=")[2]
    settings = {"data": {"url": url, "remote": {"options": {"secret": "OPTIONSECRET1"}}}, "seed": 1}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(settings))
    (tmp_path / "run.json").write_text(
        json.dumps({"command": shlex.join(["python", *TYPED]), "overrides": TYPED, "state": "finished"})
    )
    run = read_run(tmp_path)
    assert not any(secret in f"{run.config_text} {run.config} {run.metadata}" for secret in SECRETS)
    assert run.config["seed"] == "1" and run.config["data.url"] == "http://***@host/t.txt?sig=***"
    assert "OPTIONSECRET1" not in save_run_page(tmp_path).read_text()


def test_a_sweep_of_an_earlier_version_is_shown_without_secrets(tmp_path: Path) -> None:
    sweep = hostile_sweep(tmp_path / "sweep", task=TYPED)
    metadata = {"command": shlex.join(["python", *TYPED]), "overrides": TYPED, "swept": TYPED, "error": f"no {TYPED[0]}"}
    for number in range(2):
        (sweep / f"job{number}").mkdir()
        (sweep / f"job{number}" / "run.json").write_text(
            json.dumps(metadata | {"state": "finished", "result": {"best_val_loss": 1.0 + number}})
        )
    page = save_sweep_page(sweep).read_text()
    assert not any(secret in page for secret in SECRETS)
    assert page.count("sig=***") > 4, "the command of the sweep, its best job, the errors and the table"


def test_metadata_of_an_earlier_version_is_shown_without_secrets() -> None:
    command = shlex.join(["python", "train.py", *TYPED, "+data.remote.options.anon=true"])
    before = {"command": command, "overrides": TYPED, "data": {"path": TYPED[0].partition("=")[2]}, "seconds": 3.0}
    after = metadata_without_secrets(before)
    assert not any(secret in json.dumps(after) for secret in SECRETS), after
    assert "data.remote.options.anon=true" in after["command"] and after["overrides"][2] == "seed=1,2"
    assert after["seconds"] == 3.0
