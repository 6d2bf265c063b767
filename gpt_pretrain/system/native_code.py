"""Compile C files of this program once per machine, and load them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gpt_pretrain.system.environment import user_cache_folder
from gpt_pretrain.system.resources import cpu_features

COMPILER = "gcc"  # It links the same OpenMP library as PyTorch, so that both share their threads.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared")
COMPILE_SECONDS = 120

log = logging.getLogger(__name__)


@functools.cache
def load_native_code(source: Path) -> ctypes.CDLL | None:
    """Compile a C file for this processor, unless the user's cache has it, and load it.

    Returns:
        The library, or None if no compiler can build it. Callers must work without it.
    """
    compiler = shutil.which(COMPILER)
    if sys.platform != "linux" or compiler is None:
        log.debug("%s is not compiled: this needs Linux and a C compiler.", source.name)
        return None
    try:
        return _load(source, compiler)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("%s is not compiled: %s", source.name, error)
        return None


def _load(source: Path, compiler: str) -> ctypes.CDLL:
    headers = (header.read_bytes() for header in sorted(source.parent.glob("*.h")))
    parts = (source.read_bytes(), *headers, compiler.encode(), " ".join(FLAGS).encode(), cpu_features().encode())
    folder = user_cache_folder() / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} can be written by others, so no code is loaded from it")
    library = folder / f"{source.stem}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:32]}.so"
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            log.debug("%s is compiled again: %s", library, error)
    handle, new = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        command = [compiler, *FLAGS, str(source), "-o", new, "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS, cwd=folder)
        os.replace(new, library)
    finally:
        Path(new).unlink(missing_ok=True)
    return ctypes.CDLL(str(library))
