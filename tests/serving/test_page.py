"""The page as it is sent: what a browser may do in it, who gets it, and the models that it lists."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import requests
from omegaconf import OmegaConf

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint, write_checkpoint
from gpt_pretrain.commands.serve import _open_models, _training_facts
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.inference_rules import serve_problems
from gpt_pretrain.config.inference_schema import ServeSettings
from gpt_pretrain.serving.page import ModelFacts, build_page
from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address
from tests.conftest import ROOT
from tests.serving.conftest import Served

MARKUP_SINKS = (
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser|createContextualFragment|srcdoc"
)


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_a_browser_runs_and_loads_nothing_else(served: Served) -> None:
    answer = requests.get(f"{served.url}/", timeout=60)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    (script,) = re.findall(r"<script type=\"module\">(.*?)</script>", answer.text, re.DOTALL)
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == f"'sha256-{digest(script)}'"
    assert policy["style-src"] == f"'sha256-{digest(style)}'"
    assert policy["connect-src"] == "'self'"
    assert policy["trusted-types"] == "'none'"
    assert re.findall(r"https?://|//[\w-]+\.\w|\bstyle=|\bon\w+=", answer.text) == []
    assert re.findall(MARKUP_SINKS, script) == []


def test_the_page_has_all_its_scripts() -> None:
    content, _ = build_page()
    files = [*(ROOT / "gpt_pretrain/serving/templates").glob("*.js"), ROOT / "gpt_pretrain/runs/report/templates/token_keys.js"]
    assert [file.name for file in files if file.read_text(encoding="utf-8") not in content] == []


def test_the_page_needs_no_key_but_its_models_do() -> None:
    server = Served(ServingLimits(), Address(port=0, api_key="secret-key"))
    try:
        page = requests.get(f"{server.url}/", timeout=60)
        assert (page.status_code, "secret-key" in page.text) == (200, False)
        assert requests.get(f"{server.url}/api/models", timeout=60).status_code == 401
        assert requests.get(f"{server.url}/", headers={"Host": "evil.example"}, timeout=60).status_code == 403
    finally:
        server.close()


def test_models_are_described_for_the_page(served: Served) -> None:
    (described,) = requests.get(f"{served.url}/api/models", timeout=60).json()["models"]
    assert (described["name"], described["context_length"], described["run"]) == ("m", 64, None)
    assert described["end_token"] == {"id": 256, "text": "<|endoftext|>", "bytes": list(b"<|endoftext|>")}


def test_a_prompt_is_scored_only_if_that_is_asked_for(served: Served) -> None:
    for echo in (True, False):
        body = {"model": "m", "prompt": list(b"Every"), "max_tokens": 2, "temperature": 0, "echo": echo}
        answer = requests.post(f"{served.url}/api/continue", json=body, timeout=60)
        first = json.loads(answer.text.split("\n\n")[0].removeprefix("data: "))
        assert len(first.get("prompt", [])) == (5 if echo else 0)
        assert len(first["tokens"][0]["alternatives"]) == 10


def serve_settings(**changes: object) -> ServeSettings:
    defaults = OmegaConf.load(ROOT / "conf" / "serve.yaml")
    plain = {name: value for name, value in defaults.items() if name not in ("defaults", "hydra")}
    return to_settings(OmegaConf.merge(OmegaConf.structured(ServeSettings), plain, changes), ServeSettings)


@pytest.fixture
def run_with_checkpoints(tmp_path: Path) -> Path:
    """Return a run with six checkpoints, of which the best and the last one have the steps of others."""
    content = read_checkpoint(ROOT / "tests/data/compat/0.1.0/run/checkpoints/last.ckpt")
    folder = tmp_path / "outputs" / "RUN" / "checkpoints"
    folder.mkdir(parents=True)
    for name, epoch, step in (
        ("step-00000002", 0, 2),
        ("step-00000004", 1, 4),
        ("step-00000006", 2, 6),
        ("step-00000008", 3, 8),
        ("best", 1, 4),
        ("last", 3, 8),
    ):
        write_checkpoint(content | {"epoch": epoch, "global_step": step}, folder / f"{name}.ckpt")
    return folder.parent


def test_the_checkpoints_of_a_run_are_served_by_step(run_with_checkpoints: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = _open_models(serve_settings(checkpoint=str(run_with_checkpoints), timeline=10))
    facts = _training_facts(opened)
    assert sorted((one.step, one.epoch, one.run) for one in facts.values()) == [
        *((2, 1, "RUN"), (4, 2, "RUN"), (6, 3, "RUN"), (8, 4, "RUN"))
    ]
    assert not any(str(run_with_checkpoints.parent) in name for name in opened)
    assert next(iter(opened)) == "RUN"
    for count, steps in ((1, {2, 8}), (2, {2, 6, 8})):
        facts = _training_facts(_open_models(serve_settings(checkpoint=str(run_with_checkpoints), timeline=count)))
        assert {one.step for one in facts.values()} == steps
    assert list(_open_models(serve_settings(checkpoint=str(run_with_checkpoints)))) == ["RUN"]
    (run_with_checkpoints / "checkpoints" / "step-00000006.ckpt").write_bytes(b"damaged")
    assert len(_open_models(serve_settings(checkpoint=str(run_with_checkpoints), timeline=10))) == 3
    assert "It is left out." in caplog.text


def test_runs_of_the_same_name_stay_apart(run_with_checkpoints: Path, tmp_path: Path) -> None:
    other = tmp_path / "others" / "RUN"
    shutil.copytree(run_with_checkpoints, other)
    facts = _training_facts(_open_models(serve_settings(models=[str(run_with_checkpoints), str(other)])))
    assert facts == {"RUN": ModelFacts("RUN", 4, 8), "RUN-2": ModelFacts("RUN-2", 4, 8)}


def test_a_time_line_belongs_to_a_run() -> None:
    assert serve_problems(serve_settings(timeline=3)) == []
    (problem,) = serve_problems(serve_settings(timeline=3, pretrained="gpt2"))
    assert problem.startswith("timeline=3 adds checkpoints of the run that checkpoint= names.")
    (problem,) = serve_problems(serve_settings(timeline=-1))
    assert problem == "timeline=-1: must be between 0 and 100 checkpoints."


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        *(
            ("localhost", True),
            ("::1", True),
            ("::", True),
            ("0.0.0.0", True),
            ("my-host.example", True),
            ("::ffff:127.0.0.1", True),
        ),
        *(("[::1]", False), ("http://localhost", False), ("localhost:8001", False), ("*", False), ("", False), ("a b", False)),
    ],
)
def test_a_host_is_a_name_or_an_address_alone(host: str, is_one: bool) -> None:
    problems = serve_problems(serve_settings(host=host))
    assert (problems == []) == is_one
    assert is_one or "without http://, brackets or a port, such as localhost or ::1; 0.0.0.0 stands for all" in problems[0]
