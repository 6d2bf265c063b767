"""The decoding step in C computes what PyTorch's operators compute, in each row by itself."""

from typing import Any

import pytest
import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.sampling import generate
from gpt_pretrain.model import native_step
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kernels.int8_linear import Int8Linear, has_int8_products
from gpt_pretrain.model.kernels.native_linear import NativeLinear
from gpt_pretrain.model.kv_cache import RowCaches
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.model.native_step import load_step_code
from gpt_pretrain.system.native_code import load_native_code
from tests.conftest import tiny_model
from tests.helpers.resource_limits import within

pytestmark = pytest.mark.skipif(load_native_code(native_step.SOURCE) is None, reason="this needs Linux and gcc")

GPT2: dict[str, Any] = {"vocab_size": 97, "context_length": 32, "emb_dim": 64, "n_heads": 4, "n_layers": 2}
MODERN = GPT2 | {"kind": "modern", "init": "modern", "tie_embeddings": False}
ARCHITECTURES = {
    "gpt2": GPT2 | {"qkv_bias": True},
    "exact GELU, a head of its own, wide": GPT2
    | {"gelu_approximate": "none", "tie_embeddings": False, "emb_dim": 1088, "n_layers": 1},
    "modern": MODERN,
    "modern, two heads of keys": MODERN | {"n_kv_heads": 2},
    "modern, with tables": MODERN | {"n_kv_heads": 2, "value_embeddings": True, "bigram_rows": 50},
}
# An error of bf16 is 1 in 256 of a number, of which the step in C makes fewer: it rounds no inputs of layers.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.int8: 2e-3}


def random_model(fields: dict[str, Any]) -> LanguageModel:
    torch.manual_seed(3)
    model = new_model(GPTConfig(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def decoders(model: LanguageModel, dtype: torch.dtype, batch_size: int) -> tuple[DecodingModel, DecodingModel]:
    """Return a decoding model with the step in C, and one without."""
    if dtype == torch.int8 and not has_int8_products():
        pytest.skip("this PyTorch has no products of 8-bit integers")
    fast, plain = (DecodingModel(model, dtype=dtype, batch_size=batch_size) for _ in range(2))
    assert fast._native is not None
    plain._native = None
    return fast, plain


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_step_equals_the_operators(name: str, dtype: torch.dtype) -> None:
    model = random_model(ARCHITECTURES[name])
    prompt = torch.randint(0, 97, (2, 7))
    with torch.inference_mode():
        both = [(one, one.new_cache(2, capacity=30)) for one in decoders(model, dtype, 2)]
        for one, cache in both:
            one.next_logits(prompt, cache=cache)
        for _ in range(20):
            new = torch.randint(0, 97, (2, 1))
            fast, plain = (one.next_logits(new, cache=cache) for one, cache in both)
            assert (fast - plain).norm() <= TOLERANCES[dtype] * plain.norm()


@pytest.mark.parametrize("name", ["gpt2", "modern, two heads of keys"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n_rows", [2, 3, 4, 5, 8, 11])
def test_a_row_is_the_same_alone_and_among_others_at_other_positions(name: str, dtype: torch.dtype, n_rows: int) -> None:
    decoder, _ = decoders(random_model(ARCHITECTURES[name]), dtype, n_rows)
    new = torch.randint(0, 97, (n_rows, 1))
    with torch.inference_mode():
        caches = [decoder.new_cache(1, capacity=30) for _ in range(n_rows)]
        for length, cache in enumerate(caches, start=1):
            decoder.next_logits(torch.randint(0, 97, (1, length)), cache=cache)
        alone = torch.cat([decoder.next_logits(new[row : row + 1], cache=one.copy()) for row, one in enumerate(caches)])
        together = decoder.next_logits(new, cache=RowCaches(caches))
    assert torch.equal(alone, together)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_row_is_the_same_for_any_number_of_threads(dtype: torch.dtype) -> None:
    decoder, _ = decoders(random_model(ARCHITECTURES["gpt2"]), dtype, 3)
    cache, new, before = decoder.new_cache(3, capacity=4), torch.randint(0, 97, (3, 1)), torch.get_num_threads()
    logits = []
    try:
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            cache.length = 0
            with torch.inference_mode():
                logits.append(decoder.next_logits(new, cache=cache))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n_rows", [1, 2, 7, 8, 9])
def test_a_layer_equals_the_one_for_more_rows(dtype: torch.dtype, n_rows: int) -> None:
    decoder, _ = decoders(random_model(ARCHITECTURES["gpt2"]), dtype, 1)
    x = torch.randn(n_rows, 1, 64)
    for layer in (decoder._head, decoder._blocks.trf_blocks[0].ff.layers[0]):
        with torch.inference_mode():
            few, many = layer(x), layer.layer(x)
        assert few.dtype == many.dtype
        assert few.shape == many.shape
        assert (few - many).norm() <= TOLERANCES[dtype] * many.norm()


def layer_of_8_bits(weight: torch.Tensor, bias: torch.Tensor | None) -> NativeLinear:
    if not has_int8_products():
        pytest.skip("this PyTorch has no products of 8-bit integers")
    library = load_step_code(random_model(GPT2), dtype=torch.int8)
    assert library is not None
    return NativeLinear(library, Int8Linear(weight, bias, n_rows=1))


@pytest.mark.parametrize(("n_outputs", "n_inputs"), [(1, 64), (23, 1024), (97, 1088), (40, 4096)])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 8])
def test_a_layer_of_8_bits_equals_the_plain_layer_with_rounded_weights(n_rows: int, n_outputs: int, n_inputs: int) -> None:
    torch.manual_seed(n_inputs)
    plain = torch.nn.Linear(n_inputs, n_outputs)
    x = torch.randn(n_rows, n_inputs) * torch.logspace(-6, 6, n_rows)[:, None] * torch.rand(n_inputs) ** 8
    with torch.inference_mode():
        layer = layer_of_8_bits(plain.weight, plain.bias)
        rounded = layer.layer.rounded.double() * layer.layer.scale[:, None]
        expected = torch.nn.functional.linear(x.double(), rounded, plain.bias.double())
        # Half of a step of 1 in 32,767 of the row's largest input, at most, for each input.
        error = rounded.abs().sum(dim=1) * x.abs().amax(dim=1, keepdim=True) / 32767 / 2 + 1e-5 * expected.abs() + 1e-6
    assert bool(((layer(x) - expected).abs() <= error).all())


@pytest.mark.parametrize("n_rows", [2, 4, 8])
@pytest.mark.parametrize("largest", [0.0, 1e-44, 1e-38, 3.99e-34, 1e30, torch.inf, -torch.inf, torch.nan])
def test_a_layer_of_8_bits_takes_any_number(n_rows: int, largest: float) -> None:
    torch.manual_seed(n_rows)
    x = torch.randn(n_rows, 64).clamp(-1, 1)
    x[1] *= min(abs(largest), 1e30) if largest == largest else 1.0
    x[1, 3] = largest
    weight = torch.randn(6, 64)
    with torch.inference_mode():
        out, expected = layer_of_8_bits(weight, None)(x), x.double() @ weight.double().T
    others = [row for row in range(n_rows) if row != 1]
    assert (out[others] - expected[others]).norm() <= 0.02 * expected[others].norm()
    if abs(largest) < torch.inf:
        assert bool(((out[1] - expected[1]).abs() <= 0.02 * expected[1].norm() + 1e-36).all())
    else:
        assert not bool(out[1].isfinite().any())


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("n_prompt", [1, 15, 16, 20])
def test_a_greedy_text_is_that_of_the_whole_window(batch_size: int, n_prompt: int) -> None:
    model = tiny_model(emb_dim=64)
    prompt = torch.randint(0, 97, (batch_size, n_prompt))
    assert DecodingModel(model)._native is not None
    assert torch.equal(generate(model, prompt, 24), generate(model, prompt, 24, use_cache=False))


def test_weights_in_fp32_are_shared() -> None:
    model = tiny_model(emb_dim=64)
    decoder = DecodingModel(model)
    assert decoder._head.layer.weight.data_ptr() == model.tok_emb.weight.data_ptr()
    assert decoder._blocks.trf_blocks[0].att.qkv.layer.weight.data_ptr() == model.trf_blocks[0].att.qkv.weight.data_ptr()


def test_ids_outside_of_the_vocabulary_are_refused() -> None:
    decoder = DecodingModel(tiny_model(emb_dim=64))
    assert decoder._native is not None
    cache = decoder.new_cache(1, capacity=8)
    for wrong in (-1, 97):
        with pytest.raises(IndexError, match=rf"token ids must be from 0 to 96: \[{wrong}\]"):
            decoder._native.logits(torch.tensor([[wrong]]), cache)


@pytest.mark.parametrize("name", ["pos_emb.weight", "trf_blocks.0.att.qkv.weight", "trf_blocks.1.ff.layers.0.bias"])
def test_numbers_that_are_not_finite_are_found(name: str) -> None:
    for bad in (torch.nan, torch.inf):
        model = tiny_model(emb_dim=64, qkv_bias=True)
        with torch.no_grad():
            model.get_parameter(name).view(-1)[-70:] = bad  # the last of 16 positions, the values, the hidden numbers
        prompt = torch.randint(0, 97, (1, 15))
        with pytest.raises(UserError, match="logits are not finite"):
            generate(model, prompt, 2)


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_large_numbers_stay_those_of_the_operators(size: float) -> None:
    model = random_model(ARCHITECTURES["gpt2"])
    with torch.no_grad():
        for block in model.trf_blocks:
            block.att.qkv.weight.mul_(size)
            block.ff.layers[0].weight.mul_(size)
    with torch.inference_mode():
        both = [(one, one.new_cache(1, capacity=30)) for one in decoders(model, torch.float32, 1)]
        for token in range(20):
            fast, plain = (one.next_logits(torch.tensor([[token]]), cache=cache) for one, cache in both)
            torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3)


def test_ids_without_a_token_are_refused() -> None:
    decoder = DecodingModel(tiny_model(emb_dim=64))
    for token_id in (-1, 97):
        with pytest.raises(IndexError, match="from 0 to 96"):
            decoder.next_logits(torch.tensor([[token_id]]), cache=decoder.new_cache(1, capacity=4))


@pytest.mark.parametrize("changes", [{}, {"emb_dim": 64, "n_heads": 8}])
def test_other_widths_are_left_to_the_operators(changes: dict[str, int]) -> None:
    assert DecodingModel(tiny_model(**changes))._native is None


def test_other_dtypes_are_left_to_the_operators() -> None:
    assert DecodingModel(tiny_model(emb_dim=64).double())._native is None
    assert DecodingModel(tiny_model(emb_dim=64).bfloat16())._native is None


def test_a_model_decodes_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = tiny_model(emb_dim=64), torch.randint(0, 97, (2, 5))
    expected = generate(model, prompt, 24)
    monkeypatch.setattr(native_step, "load_native_code", lambda source: None)
    assert DecodingModel(model)._native is None
    assert torch.equal(generate(model, prompt, 24), expected)


def test_a_long_context_takes_no_memory_before_a_text_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_step, "FEWEST_POSITIONS", 4)
    model = random_model(MODERN | {"context_length": 10**8})
    with within(5, 100), torch.inference_mode():
        both = [(one, one.new_cache(1, capacity=30)) for one in decoders(model, torch.float32, 1)]
        for one, cache in both:
            one.next_logits(torch.tensor([[1, 2, 3]]), cache=cache)
        for new in range(20):
            fast, plain = (one.next_logits(torch.tensor([[new]]), cache=cache) for one, cache in both)
            assert (fast - plain).norm() <= 1e-5 * plain.norm()
