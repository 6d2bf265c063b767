"""The modern model equals transformers' NanoChatForCausalLM, its own invariants hold, and the formulas know its costs."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, NanoChatConfig, NanoChatForCausalLM

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.model import costs
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kernels.loss import linear_cross_entropy
from gpt_pretrain.model.kv_cache import KVCache
from gpt_pretrain.model.language_model import LanguageModel
from tests.helpers.model_checks import assert_causal, kept_bytes

FIELDS = {
    "kind": "modern",
    "init": "modern",
    "tie_embeddings": False,
    "vocab_size": 97,
    "context_length": 16,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 3,
}


def config(**changes: object) -> GPTConfig:
    return GPTConfig(**(FIELDS | changes))  # type: ignore[arg-type]


def modern_model(**changes: object) -> LanguageModel:
    """Build a small model with random weights that are large enough for distinct predictions."""
    torch.manual_seed(3)
    model = new_model(config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def their_model(n_kv_heads: int, **changes: object) -> NanoChatForCausalLM:
    torch.manual_seed(4)
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    settings = sizes | special | {"vocab_size": 97, "max_position_embeddings": 16, "num_key_value_heads": n_kv_heads}
    model = NanoChatForCausalLM(NanoChatConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_a_folder_of_transformers_gives_the_same_logits(tmp_path: Path, n_kv_heads: int) -> None:
    theirs = their_model(n_kv_heads)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    assert ours.config == config(n_kv_heads=None if n_kv_heads == 4 else n_kv_heads)
    token_ids = torch.randint(0, 97, (3, 16))
    with torch.no_grad():
        logits, expected = ours(token_ids), theirs(token_ids).logits
    assert expected.std() > 1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_kv_heads", [None, 2])
def test_an_export_gives_the_same_logits_in_transformers_and_comes_back_exactly(tmp_path: Path, n_kv_heads: int | None) -> None:
    model = modern_model(vocab_size=257, n_kv_heads=n_kv_heads, drop_rate=0.25)
    state = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    content = {"state_dict": state, "architecture": model.config.to_dict(), "tokenizer": "byte"}
    write_checkpoint(content, tmp_path / "x.ckpt")
    assert export(open_weights(tmp_path / "x.ckpt"), tmp_path / "out") <= 1e-4
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert isinstance(theirs, NanoChatForCausalLM)
    token_ids = torch.randint(0, 257, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids), theirs(token_ids).logits, atol=1e-4, rtol=0)
    back = open_weights(tmp_path / "out")
    assert (back.config, back.tokenizer) == (model.config, "byte")
    for name, value in back.build().state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert "nanochat" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"final_logit_softcapping": 20.0},
            "final_logit_softcapping=20.0 is not supported; this program's modern model always has 15.0",
        ),
        (
            {"intermediate_size": 64},
            r"intermediate_size=64 is not supported; in this program.s modern model it is always 4 \* hidden_size",
        ),
        ({"head_dim": 16}, r"head_dim=16 is not supported; in this program.s modern model it is always hidden_size / num_att"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, "the base 100000.0 are not supported"),
    ],
)
def test_another_nanochat_is_refused(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    their_model(4, **changes).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=problem):
        load_pretrained(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"qkv_bias": True}, "qkv_bias=True: the modern model has no such option"),
        ({"tie_embeddings": True}, "tie_embeddings=True: the modern model has no such option"),
        ({"n_kv_heads": 3}, "n_kv_heads=3: must divide n_heads=4"),
        ({"n_heads": 32}, "heads of width 1, but rotary positions turn pairs"),
        ({"init": "gpt2"}, "init='gpt2': must be one of modern with kind=modern"),
        ({"kind": "llama"}, "kind='llama': must be one of gpt2, modern"),
        ({"kind": "gpt2", "init": "gpt2", "n_kv_heads": 2}, "n_kv_heads=2: GPT-2 has n_heads of them"),
    ],
)
def test_impossible_architectures_are_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        config(**changes)


@pytest.mark.parametrize("n_kv_heads", [None, 2])
def test_reading_in_pieces_with_a_cache_equals_one_forward_pass(n_kv_heads: int | None) -> None:
    model = modern_model(n_kv_heads=n_kv_heads)
    token_ids = torch.randint(0, 97, (2, 16))
    cache = KVCache(model.config, 2, device=torch.device("cpu"), dtype=torch.float32)
    decoding = DecodingModel(model, batch_size=2)
    own_cache = decoding.new_cache(2, capacity=16)
    with torch.no_grad():
        whole, pieces = model(token_ids), token_ids.split([5, 1, 1, 6, 3], dim=1)
        logits = [model.logits(model.hidden_states(piece, cache=cache)) for piece in pieces]
        last = [decoding.next_logits(piece, cache=own_cache) for piece in pieces]
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(last, dim=1), whole[:, [4, 5, 6, 12, 15]], atol=1e-4, rtol=1e-4)


def test_documents_in_a_row_are_read_like_rows_of_their_own() -> None:
    model = modern_model()
    token_ids = torch.randint(0, 97, (1, 16))
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    with torch.no_grad():
        together = model.hidden_states(token_ids, positions=positions)
        apart = [model.hidden_states(part) for part in token_ids.split([7, 9], dim=1)]
    torch.testing.assert_close(together, torch.cat(apart, dim=1), atol=1e-5, rtol=1e-5)


def test_no_position_sees_a_later_position_and_the_context_ends() -> None:
    model = modern_model()
    assert_causal(model)
    with pytest.raises(ValueError, match="position 17, but the model's context_length is 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_a_fresh_model_predicts_uniformly_and_every_matrix_learns() -> None:
    torch.manual_seed(0)
    model = new_model(config(emb_dim=64))
    token_ids = torch.randint(0, 97, (4, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = []
    for _ in range(4):
        loss = next_token_loss(model, token_ids, token_ids)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(math.log(97), abs=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert abs(before["tok_emb.weight"].std().item() - 1) < 0.05
    assert abs(before["trf_blocks.0.att.qkv.weight"].std().item() * math.sqrt(3 * 64) - 1) < 0.05
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("drop_rate", [0.0, 0.3])
def test_activation_checkpointing_does_not_change_the_gradients(drop_rate: float) -> None:
    gradients = []
    for recompute in (False, True):
        model = modern_model(drop_rate=drop_rate, n_kv_heads=2).train()
        model.activation_checkpointing = recompute
        torch.manual_seed(5)
        model(torch.arange(24).view(2, 12)).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None and torch.equal(plain, recomputed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_capped_logits_and_its_gradients_equal_pytorchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.model.kernels.chunks.LOGITS_BYTES", {"cpu": 4 * 101 * 7, "cuda": 1 << 30})  # seven rows
    torch.manual_seed(0)
    hidden = torch.randn(24, 16).to(dtype).requires_grad_()
    weight = (5 * torch.randn(101, 16)).to(dtype).requires_grad_()
    target_ids = torch.randint(0, 101, (24,))
    target_ids[3] = -100
    results = []
    for compute in (
        lambda: linear_cross_entropy(hidden, weight, target_ids, cap=15.0),
        lambda: F.cross_entropy(15.0 * torch.tanh((hidden @ weight.T).float() / 15.0), target_ids),
    ):
        loss = compute()
        results.append((loss.float(), *(grad.float() for grad in torch.autograd.grad(loss, (hidden, weight)))))
    for ours, theirs in zip(*results, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 0.02 * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("n_kv_heads", [None, 2])
def test_parameters_and_operations_equal_the_formulas(n_kv_heads: int | None) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = modern_model(n_kv_heads=n_kv_heads)
    assert costs.num_parameters(model.config) == model.num_parameters()
    shapes = model.config.n_layers * costs.block_tensor_shapes(model.config) + costs.root_tensor_shapes(model.config)
    assert sorted(shapes) == sorted(tuple(parameter.shape) for parameter in model.parameters())
    token_ids = torch.randint(97, (2, 16))
    with FlopCounterMode(display=False) as forward, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(token_ids)
    assert forward.get_total_flops() == 32 * costs.forward_flops_per_token(model.config)
    with FlopCounterMode(display=False) as both, sdpa_kernel(SDPBackend.MATH):
        next_token_loss(model, token_ids, token_ids).backward()
    assert both.get_total_flops() == 32 * costs.training_flops_per_token(model.config)


@pytest.mark.parametrize("n_kv_heads", [None, 2])
@pytest.mark.parametrize("drop_rate", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activation_bytes_equal_what_autograd_saves(drop_rate: float, precision: str, n_kv_heads: int | None) -> None:
    model = modern_model(emb_dim=64, context_length=200, drop_rate=drop_rate, n_kv_heads=n_kv_heads).train()
    measured = kept_bytes(model, torch.randint(97, (3, 200)), precision=precision)
    formula = costs.activation_bytes(model.config, batch_size=3, precision=precision, device="cpu")
    assert formula == pytest.approx(measured, rel=0.01)


def test_training_memory_equals_what_pytorch_allocates() -> None:
    model = modern_model(vocab_size=2000, emb_dim=64, context_length=128, n_layers=4).train()
    token_ids = torch.randint(2000, (8, 128))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        next_token_loss(model, token_ids, token_ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # The first step creates the optimizer's moments.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    memory = costs.training_memory(model.config, batch_size=8, precision="32-true", device="cpu")
    assert memory.peak - memory.weights - memory.moments == pytest.approx(peak, rel=0.1)
