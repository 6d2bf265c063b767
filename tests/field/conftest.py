"""Fixtures of the field trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel

from tests.helpers.other_models import hugging_face
from tests.helpers.vocabularies import KINDS, gpt2_files


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder with a vocabulary of each kind."""
    folder = tmp_path_factory.mktemp("vocabularies")
    made = {name: make(folder / name) for name, make in KINDS.items()}
    return made | {"gpt2_files": gpt2_files(folder / "gpt2_files", added={"<|user|>": 401, "<pad>": 402})}


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    """Return a small GPT-2 of transformers, which tests must not change."""
    return hugging_face()
