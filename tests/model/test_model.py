"""The model equals transformers' GPT-2, and its own invariants hold."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.kv_cache import KVCache
from tests.conftest import tiny_model
from tests.helpers.model_checks import assert_causal


def from_transformers(theirs: GPT2LMHeadModel) -> GPTModel:
    """Copy the weights into our model; transformers stores linear layers as (in, out)."""
    c = theirs.config
    ours = GPTModel(
        GPTConfig(
            vocab_size=c.vocab_size,
            context_length=c.n_positions,
            emb_dim=c.n_embd,
            n_heads=c.n_head,
            n_layers=c.n_layer,
            qkv_bias=True,
        )
    )
    names = {
        "tok_emb": "wte",
        "pos_emb": "wpe",
        "final_norm": "ln_f",
        "trf_blocks": "h",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "att.qkv": "attn.c_attn",
        "att.out_proj": "attn.c_proj",
        "ff.layers.0": "mlp.c_fc",
        "ff.layers.2": "mlp.c_proj",
    }
    weights = theirs.transformer.state_dict()
    state = {}
    for name in ours.state_dict():
        other = name
        for our_part, their_part in names.items():
            other = other.replace(our_part, their_part)
        value = weights[other]
        state[name] = value.T if other.endswith("weight") and ".c_" in other else value
    ours.load_state_dict(state)
    return ours.eval()


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=101, n_positions=24, n_embd=48, n_layer=3, n_head=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_logits_equal_transformers(theirs: GPT2LMHeadModel) -> None:
    ours = from_transformers(theirs)
    token_ids = torch.randint(0, 101, (3, 24))
    with torch.no_grad():
        difference = (ours(token_ids) - theirs(token_ids).logits).abs().max()
    assert difference <= 1e-5


def test_gradients_equal_transformers(theirs: GPT2LMHeadModel) -> None:
    ours = from_transformers(theirs)
    token_ids = torch.randint(0, 101, (2, 24))
    ours(token_ids).square().mean().backward()
    theirs.zero_grad()
    theirs(token_ids).logits.square().mean().backward()
    assert torch.allclose(ours.tok_emb.weight.grad, theirs.transformer.wte.weight.grad, atol=1e-5)
    assert torch.allclose(ours.trf_blocks[0].att.qkv.weight.grad.T, theirs.transformer.h[0].attn.c_attn.weight.grad, atol=1e-5)


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_reading_in_pieces_with_a_cache_equals_one_forward_pass(tie_embeddings: bool, qkv_bias: bool) -> None:
    model = tiny_model(tie_embeddings=tie_embeddings, qkv_bias=qkv_bias)
    token_ids = torch.randint(0, 97, (2, 16))
    cache = KVCache(model.config, 2, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        pieces = [model.logits(model.hidden_states(piece, cache=cache)) for piece in token_ids.split([5, 1, 1, 6, 3], dim=1)]
        assert torch.allclose(torch.cat(pieces, dim=1), model(token_ids), atol=1e-5)


def test_no_position_sees_a_later_position() -> None:
    assert_causal(tiny_model())


def test_positions_beyond_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="position 17, but the model's context_length is 16"):
        tiny_model()(torch.zeros(1, 17, dtype=torch.long))


def test_dropout_acts_only_in_training_mode() -> None:
    model = tiny_model(drop_rate=0.5)
    token_ids = torch.randint(0, 97, (1, 16))
    with torch.no_grad():
        assert torch.equal(model(token_ids), model(token_ids))
        model.train()
        assert not torch.equal(model(token_ids), model(token_ids))


@pytest.mark.parametrize("vocab_size", [257, 50257])
def test_a_fresh_model_predicts_uniformly(vocab_size: int) -> None:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=vocab_size, context_length=64, emb_dim=128, n_heads=4, n_layers=4)
    model = GPTModel(config).eval()
    token_ids = torch.randint(0, vocab_size, (4, 64))
    targets = torch.randint(0, vocab_size, (4, 64))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(token_ids).flatten(0, 1), targets.flatten())
    assert abs(loss.item() - math.log(vocab_size)) < 0.3


def test_gpt2_initialization() -> None:
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(vocab_size=1000, context_length=64, emb_dim=256, n_heads=4, n_layers=6))
    block = model.trf_blocks[3]
    residual = 0.02 / math.sqrt(12)
    for weight, std in (
        (model.tok_emb.weight, 0.02),
        (block.att.qkv.weight, 0.02),
        (block.ff.layers[0].weight, 0.02),
        (block.att.out_proj.weight, residual),
        (block.ff.layers[2].weight, residual),
    ):
        assert abs(weight.std().item() / std - 1) < 0.05
    assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_gpt2_small_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPTModel(GPTConfig(vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12, qkv_bias=True))
    assert model.num_parameters() == 124_439_808  # Hugging Face's gpt2


@pytest.mark.parametrize("drop_rate", [0.0, 0.3])
def test_activation_checkpointing_does_not_change_the_gradients(drop_rate: float) -> None:
    gradients = []
    for recompute in (False, True):
        model = tiny_model(drop_rate=drop_rate).train()
        model.activation_checkpointing = recompute
        torch.manual_seed(5)
        model(torch.arange(24).view(2, 12)).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)
