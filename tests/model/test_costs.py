"""The cost formulas equal what PyTorch counts and allocates."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model import costs
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.kernels import attention, chunks, loss, native_loss
from tests.conftest import tiny_model
from tests.helpers.model_checks import kept_bytes, peak_bytes

CONFIGS = [
    GPTConfig(vocab_size=97, context_length=16, emb_dim=32, n_heads=4, n_layers=3),
    GPTConfig(vocab_size=300, context_length=200, emb_dim=48, n_heads=3, n_layers=2, qkv_bias=True, tie_embeddings=False),
]
GPT2 = GPTConfig(vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12, qkv_bias=True)


@pytest.mark.parametrize("config", CONFIGS)
def test_parameter_counts_equal_the_model_s(config: GPTConfig) -> None:
    model = GPTModel(config)
    assert costs.num_parameters(config) == model.num_parameters()
    counted = {
        "token embedding": model.tok_emb,
        "position embedding": model.pos_emb,
        "attention": torch.nn.ModuleList(block.att for block in model.trf_blocks),
        "feed-forward": torch.nn.ModuleList(block.ff for block in model.trf_blocks),
        "norms": torch.nn.ModuleList(module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)),
        "output head": torch.nn.ModuleList() if config.tie_embeddings else model.out_head,
    }
    assert costs.parameter_counts(config) == {
        part: sum(p.numel() for p in module.parameters()) for part, module in counted.items()
    }


def test_gpt2_small_has_124_million_parameters() -> None:
    assert costs.num_parameters(GPT2) == 124_439_808  # the size of OpenAI's released weights


@pytest.mark.parametrize("config", CONFIGS)
def test_flops_equal_pytorch_s_count(config: GPTConfig) -> None:
    model, tokens = GPTModel(config), 2 * config.context_length
    token_ids = torch.randint(config.vocab_size, (2, config.context_length))
    with FlopCounterMode(display=False) as forward, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(token_ids)
    assert forward.get_total_flops() == tokens * costs.forward_flops_per_token(config)
    with FlopCounterMode(display=False) as both, sdpa_kernel(SDPBackend.MATH):
        next_token_loss(model, token_ids, token_ids).backward()
    # Only a single chunk is counted in full, because PyTorch does not count the in-place products of later chunks.
    assert chunks.chunk_rows(tokens, config.vocab_size, "cpu") == tokens
    assert both.get_total_flops() == tokens * costs.training_flops_per_token(config)


@pytest.mark.parametrize("drop_rate", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activation_bytes_equal_what_autograd_saves(drop_rate: float, precision: str) -> None:
    model = tiny_model(emb_dim=64, context_length=200, drop_rate=drop_rate).train()
    measured = kept_bytes(model, torch.randint(97, (3, 200)), precision=precision)
    formula = costs.activation_bytes(model.config, batch_size=3, precision=precision, device="cpu")
    assert formula == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("drop_rate", [0.0, 0.1])
def test_training_memory_equals_what_pytorch_allocates(drop_rate: float) -> None:
    model = tiny_model(vocab_size=2000, emb_dim=64, context_length=128, n_layers=4, drop_rate=drop_rate).train()
    token_ids = torch.randint(2000, (8, 128))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        next_token_loss(model, token_ids, token_ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # The first step creates the optimizer's moments.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    peak = peak_bytes(profile)
    memory = costs.training_memory(model.config, batch_size=8, precision="32-true", device="cpu")
    assert memory.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert memory.moments == sum(t.nbytes for state in optimizer.state.values() for name, t in state.items() if name != "step")
    assert memory.peak - memory.weights - memory.moments == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("in_c", [True, False])
def test_the_memory_of_the_loss_equals_what_pytorch_allocates(
    in_c: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_c:
        monkeypatch.setattr(native_loss, "load_native_code", lambda source: None)
    config = GPTConfig(vocab_size=20_000, context_length=1000, emb_dim=64, n_heads=4, n_layers=1)  # two chunks of logits
    hidden, weight = torch.randn(1000, 64, requires_grad=True), torch.randn(20_000, 64, requires_grad=True)
    targets = torch.randint(20_000, (1000,))
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"),
    ):
        kept = loss.linear_cross_entropy(hidden, weight, targets)
    assert kept.isfinite()
    formula = costs.loss_bytes(config, batch_size=1, precision=precision, device="cpu")
    peak = peak_bytes(profile)
    if in_c:
        assert peak <= 1.05 * formula, "C code needs no memory for a block of probabilities"
        assert formula <= 1.15 * peak
    else:
        assert formula == pytest.approx(peak, rel=0.05)


def test_half_precision_halves_the_memory() -> None:
    def memory(precision: str) -> costs.TrainingMemory:
        return costs.training_memory(GPT2, batch_size=8, precision=precision, device="cuda")

    assert memory("bf16-true").weights * 2 == memory("32-true").weights == memory("bf16-mixed").weights
    assert memory("bf16-mixed").activations < memory("32-true").activations
    assert costs.checkpoint_bytes(GPT2, precision="bf16-true") < 0.51 * costs.checkpoint_bytes(GPT2, precision="32-true")


def test_the_formulas_use_the_chunk_sizes_of_the_kernels() -> None:
    assert costs.chunk_rows is loss.chunk_rows is chunks.chunk_rows
    assert costs.query_blocks is attention.query_blocks is chunks.query_blocks
