"""Train on two hosts, made of network namespaces, while the link between them is cut."""

from pathlib import Path

import pytest

from tests.helpers.two_hosts import DISTURBANCES, differences_after, missing_requirement, train_on_one_host

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the undisturbed run on one host, and return the folder around it."""
    if (reason := missing_requirement()) is not None:
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("hosts")
    train_on_one_host(path / "one_host")
    return path


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_two_hosts_train_the_same_run_as_one(folder: Path, disturbance: str) -> None:
    assert differences_after(folder / disturbance, disturbance) == []
