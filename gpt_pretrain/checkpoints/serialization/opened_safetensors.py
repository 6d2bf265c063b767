"""Keep a safetensors file open while its tensors are read one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

KEPT = 1 << 26  # bytes that are read before the file is opened again


class OpenedSafetensors:
    """Reads the tensors of a file.

    Opening a file parses its header, so the file is not opened for each tensor. While it is open, everything that has been read
    stays in memory, so it is opened again from time to time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._left = 0

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        return self._counted(self._opened().get_tensor(name))

    def read_rows(self, name: str, first: int, last: int) -> Tensor:
        """Return the rows of a tensor from `first` up to, but not including, `last`."""
        return self._counted(self._opened().get_slice(name)[first:last])

    def _opened(self) -> Any:
        if self._file is None:
            self._file, self._left = safe_open(self.path, framework="pt"), KEPT
        return self._file

    def _counted(self, tensor: Tensor) -> Tensor:
        self._left -= tensor.nbytes
        if self._left <= 0:
            self._file = None
        return tensor
