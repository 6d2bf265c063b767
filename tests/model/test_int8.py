"""Weights of 8 bits: exact products of integers, rows that do not depend on each other, and texts close to those in fp32."""

import os
import subprocess
import sys

import pytest
import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation import decoding
from gpt_pretrain.generation.decoding import DecodingModel, pick_decoding_precision
from gpt_pretrain.generation.sampling import generate
from gpt_pretrain.model.kernels.int8_linear import Int8Linear, has_int8_products
from tests.conftest import ROOT, tiny_model

pytestmark = pytest.mark.skipif(not has_int8_products(), reason="this PyTorch has no products of 8-bit integers")


@pytest.mark.parametrize(("n_outputs", "n_inputs"), [(1, 1), (3, 8), (23, 40), (97, 33), (300, 1030)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_equals_the_plain_layer_with_rounded_weights(n_outputs: int, n_inputs: int, bias: bool) -> None:
    plain, x = torch.nn.Linear(n_inputs, n_outputs, bias=bias), torch.randn(2, 3, n_inputs) * torch.rand(2, 3, 1) * 100
    with torch.inference_mode():
        out = Int8Linear(plain.weight, plain.bias, n_rows=1)(x)
        scale = plain.weight.abs().amax(dim=1, keepdim=True) / 127
        rounded = (plain.weight / scale).round() * scale
        expected = torch.nn.functional.linear(x.double(), rounded.double(), None if plain.bias is None else plain.bias.double())
        # Half of a step of 1 in 8,127 of the largest input, at most, for each input.
        error = (rounded.abs().sum(dim=1) * x.abs().amax(dim=-1, keepdim=True) / 8127 / 2).double() + 1e-4 * expected.abs() + 1e-5
    assert out.dtype == torch.float32
    assert bool(((out - expected).abs() <= error).all())


@pytest.mark.parametrize("n_inputs", [40, 768, 3072])
def test_a_row_is_the_same_alone_and_among_others(n_inputs: int) -> None:
    layer, x = Int8Linear(torch.randn(50, n_inputs), torch.randn(50), n_rows=1), torch.randn(5, n_inputs)
    together = layer(x)
    assert all(torch.equal(layer(x[n : n + 1]), together[n : n + 1]) for n in range(len(x)))


def test_rows_of_zeros_stay_zero_and_what_is_not_finite_stays_so() -> None:
    weight = torch.randn(6, 16)
    weight[2] = 0
    layer = Int8Linear(weight, None, n_rows=1)
    assert torch.equal(layer(torch.zeros(2, 16)), torch.zeros(2, 6))
    assert torch.equal(layer(torch.randn(2, 16))[:, 2], torch.zeros(2))
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(2, 16)
        x[1, 3] = bad
        out = layer(x)
        assert bool(out[0].isfinite().all())
        assert not bool(out[1].isfinite().any())


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE"])
def test_products_are_exact_without_instructions_for_them(isa: str) -> None:
    """Processors without VNNI add pairs of products in 16 bits, without a warning when they overflow."""
    code = "from gpt_pretrain.model.kernels.int8_linear import has_int8_products; print(has_int8_products())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_decodes_close_to_fp32_and_stays_unchanged(batch_size: int) -> None:
    model, prompt = tiny_model(drop_rate=0.0), torch.randint(0, 97, (batch_size, 7))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder = DecodingModel(model, dtype=torch.int8, batch_size=batch_size)
    with torch.inference_mode():
        exact, rounded = model(prompt)[:, -1], decoder.next_logits(prompt)
    assert (rounded - exact).norm() <= 0.05 * exact.norm()
    assert generate(decoder, prompt, 30).shape == (batch_size, 37)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_int8_is_refused_where_it_cannot_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    assert pick_decoding_precision("int8", model) == ("int8", "as configured")
    monkeypatch.setattr(decoding, "has_int8_products", lambda: False)
    with pytest.raises(UserError, match="precision=int8: PyTorch cannot multiply"):
        pick_decoding_precision("int8", model)
    with pytest.raises(UserError, match="the model is on meta"):
        pick_decoding_precision("int8", model.to("meta"))
