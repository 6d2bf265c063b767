"""Libraries are loaded without looking for garbage among their objects."""

import gc
import subprocess
import sys

import pytest

from gpt_pretrain.system.loading import loading_libraries
from tests.conftest import ROOT

FIRST = """
import gc, sys
from gpt_pretrain.system.loading import loading_libraries
try:
    with loading_libraries():
        print(gc.isenabled(), gc.get_freeze_count())
        if sys.argv[1] == "fails":
            raise ImportError
except ImportError:
    pass
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""


@pytest.mark.parametrize("case", ["succeeds", "fails"])
def test_the_objects_of_libraries_are_never_looked_through(case: str) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST, case], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False 0", "True True"]


def test_nothing_is_changed_once_pytorch_is_loaded() -> None:
    import torch  # noqa: F401

    before = gc.get_freeze_count()
    with loading_libraries():
        assert gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == before
