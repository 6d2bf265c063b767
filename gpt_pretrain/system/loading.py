"""Load large libraries quickly."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Import PyTorch and modules that need it in a block, without garbage collection of their objects.

    There are a million of these objects, and all of them stay to the end. Python's collector would go through them many times:
    while their number grows, during the training, and when the program ends. If PyTorch is already loaded, as in a notebook or in
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
