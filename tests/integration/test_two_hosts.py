"""Trainings over a link that is cut, on two hosts made of network namespaces."""

from pathlib import Path

import pytest

from tests.helpers.two_hosts import DISTURBANCES, disturbed, one_host, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that one host trained."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    one_host(folder / "one_host")
    return folder


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_two_hosts_end_where_one_does(place: Path, disturbance: str) -> None:
    assert disturbed(place / disturbance, disturbance) == []
