"""Fixtures of the tests that need a GPU."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _settings_of_torch() -> Iterator[None]:
    """Undo what a run changes for the whole process: deterministic algorithms, and the precision of fp32 products."""
    precision = torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)
    torch.cuda.empty_cache()
