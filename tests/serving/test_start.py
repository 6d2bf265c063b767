"""The start of the server: an address that it cannot have, and packages that are missing."""

from __future__ import annotations

import importlib.util
import socket

import pytest
from hydra import compose, initialize_config_dir

from gpt_pretrain.commands.serve import serve_models
from gpt_pretrain.errors import UserError
from gpt_pretrain.serving.server import Address, open_socket
from tests.conftest import CONF


def test_an_address_that_the_server_cannot_have_is_explained() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"\(Address already in use\)\. Choose another port, such as port=8001, or port=0"):
            open_socket(Address("127.0.0.1", taken.getsockname()[1]))
    with pytest.raises(UserError, match=r"cannot listen there \(Cannot assign .*\)\. Choose host=127\.0\.0\.1, this machine"):
        open_socket(Address("192.0.2.1", 0))
    for host in ("a..b", f"{'a' * 64}.example"):
        with pytest.raises(UserError, match=r"\(there is no such host\)\. Choose host=127\.0\.0\.1, this machine itself\."):
            open_socket(Address(host, 0))


def test_a_server_without_its_packages_names_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("serve")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "fastapi" else find(name, *more))
    with pytest.raises(SystemExit):
        serve_models(config)
    assert "serve.py needs fastapi and uvicorn. Run: pip install 'gpt-pretrain[serve]'" in capsys.readouterr().err
