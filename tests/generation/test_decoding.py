"""Fast decoding gives the same result as the plain model."""

import os
import subprocess
import sys

import pytest
import torch

from gpt_pretrain.generation import decoding
from gpt_pretrain.generation.decoding import PRECISIONS, DecodingModel, pick_decoding_precision
from gpt_pretrain.generation.sampling import generate
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.kernels import packed_linear
from gpt_pretrain.model.kernels.packed_linear import PackedLinear
from gpt_pretrain.model.kv_cache import KVCache, StaticKVCache
from tests.conftest import ROOT, tiny_model


@pytest.mark.parametrize("n_rows", [1, 2, 8, 200])
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_equals_the_plain_layer(n_rows: int, batch_size: int, bias: bool) -> None:
    plain, x = torch.nn.Linear(40, 23, bias=bias), torch.randn(n_rows, 1, 40)
    with torch.inference_mode():
        expected = plain(x)
        fast = PackedLinear(plain.weight, plain.bias, dtype=torch.float32, n_rows=batch_size)(x)
        rounded = PackedLinear(plain.weight, plain.bias, dtype=torch.bfloat16, n_rows=batch_size)(x)
    torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-6)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_inputs", [7, 48, 768, 1536, 3072])
def test_a_row_is_the_same_alone_and_among_others(dtype: torch.dtype, n_inputs: int) -> None:
    layer = PackedLinear(torch.randn(200, n_inputs), torch.randn(200), dtype=dtype, n_rows=1)
    assert layer.packed or not packed_linear.can_pack(torch.device("cpu"), dtype)
    x = torch.randn(5, n_inputs)
    if layer.packed:
        with torch.inference_mode():
            together = layer(x)
            assert all(torch.equal(layer(x[n : n + 1]), together[n : n + 1]) for n in range(len(x)))


def test_a_layer_that_cannot_be_packed_equals_the_plain_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = torch.nn.Linear(40, 23), torch.randn(2, 40)
    monkeypatch.setattr(packed_linear, "can_pack", lambda device, dtype: False)
    with torch.inference_mode():
        layer = PackedLinear(plain.weight, plain.bias, dtype=torch.float32, n_rows=8)
        assert not layer.packed
        assert torch.equal(layer(x), plain(x))


def naive_greedy(model: GPTModel, token_ids: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Decode greedily with the plain model, reading the whole window for each token."""
    for _ in range(n_tokens):
        with torch.no_grad():
            logits = model(token_ids[:, -model.config.context_length :])[:, -1]
        token_ids = torch.cat([token_ids, logits.argmax(-1, keepdim=True)], dim=1)
    return token_ids


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("n_prompt", [1, 5, 15, 16, 20])
def test_a_decoding_model_generates_the_same_tokens_as_the_model(tied: bool, batch_size: int, n_prompt: int) -> None:
    model = tiny_model(tie_embeddings=tied)
    prompt = torch.randint(0, 97, (batch_size, n_prompt))
    expected = naive_greedy(model, prompt, 24)
    assert torch.equal(generate(DecodingModel(model, batch_size=batch_size), prompt, 24), expected)
    assert torch.equal(generate(model, prompt, 24), expected)


def test_decoding_leaves_the_model_unchanged_and_shares_its_other_weights() -> None:
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder = DecodingModel(model, dtype=torch.bfloat16)
    assert decoder._blocks.tok_emb.weight is model.tok_emb.weight
    assert decoder._blocks.trf_blocks[0].norm1.weight is model.trf_blocks[0].norm1.weight
    generate(decoder, torch.tensor([[1, 2]]), 5)
    assert all(module.training for module in model.modules())
    assert isinstance(model.trf_blocks[0].att.qkv, torch.nn.Linear)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_models_of_other_dtypes_generate(dtype: torch.dtype, batch_size: int) -> None:
    model, prompt = tiny_model().to(dtype), torch.randint(0, 97, (batch_size, 5))
    made = generate(model, prompt, 20)
    assert made.shape == (batch_size, 25)
    if dtype == torch.float64:
        assert torch.equal(made, naive_greedy(model, prompt, 20))


def test_bf16_works_on_a_cpu_without_bf16_in_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ONEDNN_MAX_CPU_ISA=AVX2` has the same effect."""
    real = packed_linear.can_pack
    monkeypatch.setattr(packed_linear, "can_pack", lambda device, dtype: dtype != torch.bfloat16 and real(device, dtype))
    model = tiny_model()
    assert pick_decoding_precision("auto", model)[0] in PRECISIONS
    assert not DecodingModel(model, dtype=torch.bfloat16)._head.packed
    generate(DecodingModel(model, dtype=torch.bfloat16), torch.tensor([[1, 2]]), 5)


@pytest.mark.slow
def test_generation_works_on_an_older_processor() -> None:
    code = (
        "import torch; from tests.conftest import tiny_model; from gpt_pretrain.generation.decoding import *; from gpt_pretrain.generation.sampling import *\n"
        "model = tiny_model()\n"
        "for precision in (pick_decoding_precision('auto', model)[0], 'bf16-mixed', '32-true'):\n"
        "    print(generate(DecodingModel(model, dtype=PRECISIONS[precision]), torch.tensor([[1, 2]]), 5).shape)"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["torch.Size([1, 7])"] * 3, done.stderr


def test_bf16_logits_are_as_close_as_those_of_autocast() -> None:
    model, token_ids = tiny_model(drop_rate=0.0), torch.randint(0, 97, (2, 9))
    with torch.inference_mode():
        exact = model(token_ids)[:, -1]
        fast = DecodingModel(model, dtype=torch.bfloat16, batch_size=2).next_logits(token_ids)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(token_ids)[:, -1].float()
    assert fast.dtype == torch.float32
    assert (fast - exact).norm() <= 1.5 * (rounded - exact).norm()


def test_decoding_ignores_the_compiled_form_of_blocks() -> None:
    model = tiny_model()
    for block in model.trf_blocks:
        block._compiled_call_impl = lambda *args, **kwargs: pytest.fail("the compiled block was called")
    assert generate(model, torch.tensor([[1, 2]]), 3).shape == (1, 5)


def test_a_static_cache_continues_like_a_growing_cache() -> None:
    """Run the step that a CUDA graph captures, without a graph."""
    model = tiny_model()
    prompt = torch.randint(0, 97, (2, 6))
    with torch.inference_mode():
        growing = KVCache(model.config, 2, device=torch.device("cpu"), dtype=torch.float32)
        other = KVCache(model.config, 2, device=torch.device("cpu"), dtype=torch.float32)
        model.hidden_states(prompt, cache=growing)
        model.hidden_states(prompt, cache=other)
        static = StaticKVCache(other)
        # A warm-up step, which the first real step overwrites.
        model.hidden_states(torch.zeros(2, 1, dtype=torch.int64), cache=static)
        for _ in range(10):
            new = torch.randint(0, 97, (2, 1))
            torch.testing.assert_close(model.hidden_states(new, cache=static), model.hidden_states(new, cache=growing))
            static.advance()
        with pytest.raises(ValueError, match="context_length"):
            static.advance()


def test_the_precision_is_the_configured_one_or_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    assert pick_decoding_precision("32-true", model) == ("32-true", "as configured")
    precision, reason = pick_decoding_precision("auto", model)
    assert precision in PRECISIONS
    assert "times as fast as fp32 on this CPU" in reason
    for times, expected in ((2.0, "bf16-mixed"), (1.2, "bf16-mixed"), (1.19, "32-true")):
        monkeypatch.setattr(decoding, "_bf16_row_speedup", lambda model, times=times: times)
        assert pick_decoding_precision("auto", model)[0] == expected
