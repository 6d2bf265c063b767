"""Every kind of source at the size of GPT-2 small: logits, greedy text and memory."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.checkpoints.pretrained import load_pretrained, load_weights_into_gpt
from gpt_pretrain.generation.sampling import generate
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from tests.conftest import ROOT
from tests.helpers.other_models import nanogpt_forward, numpy_params, shaken, to_nanogpt

pytestmark = pytest.mark.slow

GPT2 = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.1}
TOKENS = torch.randint(0, 50257, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval()


@pytest.fixture(scope="module")
def folder(theirs: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(path)
    yield path
    (path / "model.safetensors").unlink()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "weights"
    (tmp_path / "weights").unlink()  # half a gigabyte


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(TOKENS)
    return getattr(found, "logits", found)


def test_a_folder_of_transformers_is_loaded(theirs: GPT2LMHeadModel, folder: Path) -> None:
    ours = load_pretrained(folder)
    assert (logits(ours) - logits(theirs)).abs().max() <= 1e-4
    assert ours.num_parameters() == 124_439_808
    expected = theirs.generate(
        TOKENS[:, :4], attention_mask=torch.ones(1, 4), max_new_tokens=50, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(generate(ours, TOKENS[:, :4], 50), expected)


def test_openai_s_parameters_are_loaded(theirs: GPT2LMHeadModel) -> None:
    ours = GPTModel(GPTConfig(**GPT2, qkv_bias=True)).eval()  # type: ignore[arg-type]
    load_weights_into_gpt(ours, numpy_params(theirs, under_ln_f=False))
    assert (logits(ours) - logits(theirs)).abs().max() <= 1e-4


def test_a_checkpoint_of_nanogpt_is_loaded(theirs: GPT2LMHeadModel, file: Path) -> None:
    state = to_nanogpt(theirs.state_dict())
    arguments = {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "block_size": 1024,
        "bias": True,
        "vocab_size": 50257,
        "dropout": 0.0,
    }
    torch.save({"model": state, "model_args": arguments}, file)
    expected = nanogpt_forward(state, TOKENS, n_layer=12, n_head=12)
    assert (logits(load_pretrained(file)) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["GPTModel", "GPTModelFast"])
def test_the_state_dict_of_chapter_5_is_loaded(file: Path, kind: str) -> None:
    chapter4 = pytest.importorskip("llms_from_scratch.ch04", reason="pip install --no-deps llms-from-scratch")
    torch.manual_seed(0)
    model = getattr(chapter4, kind)(GPT2 | {"qkv_bias": True}).eval()
    torch.save(model.state_dict(), file)
    assert (logits(load_pretrained(file)) - logits(model)).abs().max() <= 1e-4


def test_this_program_s_own_checkpoint_is_loaded(file: Path) -> None:
    torch.manual_seed(0)
    model = shaken(GPTModel(GPTConfig(**GPT2)))  # type: ignore[arg-type]
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    write_checkpoint({"state_dict": state, "architecture": model.config.to_dict(), "tokenizer": "gpt2"}, file)
    assert torch.equal(logits(load_pretrained(file)), logits(model))


MEASURE = """
import sys, torch
from gpt_pretrain.checkpoints.pretrained import load_pretrained

def peak():  # of resident memory, in KiB
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
model = load_pretrained(sys.argv[1])
print((peak() - before) * 1024 / sum(value.nbytes for value in model.state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory peak is read from /proc")
def test_loading_needs_at_most_a_fifth_more_memory_than_the_weights(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) <= 1.2
