"""Load large libraries quickly."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Import PyTorch and what needs it in a block, without looking for garbage among their objects.

    There are a million of them, and all stay to the end. Python would go through them again and again while their number
    grows, then during the training, and once more when the program ends. Where PyTorch is loaded already, as in a notebook or in
    a later job of a sweep, nothing is changed, since other objects may become garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
