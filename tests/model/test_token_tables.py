"""Tables of tokens and of pairs of tokens: what they add, what a cache keeps of them, and what their fields allow."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_pretrain.checkpoints.checkpoint_file import write_checkpoint
from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.model import costs
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kv_cache import RowCaches
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.model.roles import parameter_roles
from tests.helpers.model_checks import assert_causal

FIELDS = {
    **{"kind": "modern", "init": "modern", "tie_embeddings": False, "vocab_size": 97, "context_length": 16},
    **{"emb_dim": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 3, "value_embeddings": True, "bigram_rows": 41},
}


def config(**changes: object) -> GPTConfig:
    return GPTConfig(**(FIELDS | changes))  # type: ignore[arg-type]


def model_with_tables(**changes: object) -> LanguageModel:
    torch.manual_seed(3)
    model = new_model(config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def logits_of_one_text(state: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Compute the logits token by token and head by head, without the model's code."""
    D, K, H, G = 32, 8, 4, 2

    def norm(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(x: Tensor, position: int) -> Tensor:
        angles = torch.tensor([position * 10_000 ** (-2 * i / K) for i in range(K // 2)])
        a, b = x[: K // 2], x[K // 2 :]
        return norm(torch.cat((a * angles.cos() + b * angles.sin(), b * angles.cos() - a * angles.sin())))

    stream = []
    for position, one in enumerate(ids):
        pair = (ids[position - 1] if position else -1) * 97 + one
        row = (pair * 2_654_435_761 >> 15) % 41  # Python's shift and remainder also round down
        stream.append(norm(state["tok_emb.weight"][one] + state["bigram_emb.weight"][row]))
    for layer in range(3):
        prefix = f"trf_blocks.{layer}"
        normed = [norm(x) for x in stream]
        qkv = [state[f"{prefix}.att.qkv.weight"] @ x for x in normed]
        keys = [[turned(x[D + g * K : D + (g + 1) * K], t) for g in range(G)] for t, x in enumerate(qkv)]
        values = [x[D + G * K :] for x in qkv]
        if layer in (0, 2):
            values = [x + state[f"{prefix}.att.value_emb.weight"][one] for x, one in zip(values, ids, strict=True)]
        for t in range(len(ids)):
            heads: list[Tensor] = []
            for h in range(H):
                g, query = h // 2, turned(qkv[t][h * K : (h + 1) * K], t)
                shares = torch.stack([query @ keys[s][g] / K**0.5 for s in range(t + 1)]).softmax(0)
                heads.append(shares @ torch.stack([values[s][g * K : (g + 1) * K] for s in range(t + 1)]))
            stream[t] = stream[t] + state[f"{prefix}.att.out_proj.weight"] @ torch.cat(heads)
            hidden = F.relu(state[f"{prefix}.ff.layers.0.weight"] @ norm(stream[t])) ** 2
            stream[t] = stream[t] + state[f"{prefix}.ff.layers.2.weight"] @ hidden
    return torch.stack([15 * torch.tanh(state["out_head.weight"] @ norm(x) / 15) for x in stream])


def test_the_logits_equal_a_naive_computation() -> None:
    model, ids = model_with_tables(), torch.randint(0, 97, (2, 9))
    with torch.no_grad():
        logits = model(ids)
        for row in range(2):
            expected = logits_of_one_text(model.state_dict(), ids[row].tolist())
            torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=0)


def test_a_token_sees_no_later_ones() -> None:
    assert_causal(model_with_tables())


@torch.no_grad()
def test_the_parts_of_a_window_give_the_logits_of_the_whole() -> None:
    model, ids = model_with_tables(), torch.randint(0, 97, (2, 12))
    whole = model(ids)
    decoder = DecodingModel(model, batch_size=2)
    cache = decoder.new_cache(2, capacity=16)
    for begin, end in ((0, 1), (1, 5), (5, 6), (6, 7)):
        torch.testing.assert_close(decoder.next_logits(ids[:, begin:end], cache=cache), whole[:, end - 1], atol=1e-4, rtol=0)
    copied = cache.copy()
    decoder.next_logits(torch.randint(0, 97, (2, 3)), cache=cache)
    torch.testing.assert_close(decoder.next_logits(ids[:, 7:12], cache=copied), whole[:, 11], atol=1e-4, rtol=0)
    cache.length = 0  # as when generation passes the context: the window starts anew
    torch.testing.assert_close(decoder.next_logits(ids[:, :4], cache=cache), whole[:, 3], atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_at_different_positions_remember_their_own_token() -> None:
    model, ids = model_with_tables(), torch.randint(0, 97, (2, 12))
    whole, decoder, caches = model(ids), DecodingModel(model, batch_size=2), []
    for row, length in enumerate((4, 7)):
        caches.append(decoder.new_cache(1, capacity=16))
        decoder.next_logits(ids[row : row + 1, :length], cache=caches[row])
    for step in range(3):
        ends = (4 + step, 7 + step)
        found = decoder.next_logits(
            torch.stack([ids[row, end] for row, end in enumerate(ends)])[:, None], cache=RowCaches(caches)
        )
        torch.testing.assert_close(found, torch.stack([whole[0, ends[0]], whole[1, ends[1]]]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_documents_in_one_window_are_kept_apart() -> None:
    model, ids = model_with_tables(), torch.randint(0, 97, (1, 10))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    found = model.logits(model.hidden_states(ids, positions=positions))
    torch.testing.assert_close(found, torch.cat((model(ids[:, :4]), model(ids[:, 4:])), dim=1), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="A mask does not tell which token precedes each one"):
        model.hidden_states(ids, positions=positions, mask=torch.ones(1, 1, 10, 10, dtype=torch.bool))


@pytest.mark.parametrize(
    "changes", [{}, {"value_embeddings": False}, {"bigram_rows": 0}, {"n_layers": 4, "n_kv_heads": None}], ids=str
)
def test_the_formulas_know_the_tables(changes: dict[str, Any]) -> None:
    model = model_with_tables(**changes)
    assert costs.num_parameters(model.config) == model.num_parameters()
    stored = costs.block_numel(model.config, 1) + costs.padded_numel(costs.root_tensor_shapes(model.config), 1)
    assert stored == model.num_parameters()
    plain = config(**changes | {"value_embeddings": False, "bigram_rows": 0})
    assert costs.training_flops_per_token(model.config) == costs.training_flops_per_token(plain)  # A look-up is no product.


def test_tables_are_trained_as_embeddings_and_start_without_effect_on_logits() -> None:
    model = new_model(config())
    roles = {name: role.name for name, role in parameter_roles(model).items()}
    tables = {"bigram_emb.weight", "trf_blocks.0.att.value_emb.weight", "trf_blocks.2.att.value_emb.weight"}
    assert {name for name, role in roles.items() if role == "embedding"} == tables | {"tok_emb.weight"}
    with torch.no_grad():
        assert not model(torch.randint(0, 97, (1, 5))).any()  # as without tables: the output head is zero
    assert not model.state_dict()["bigram_emb.weight"].any()


def test_a_checkpoint_keeps_the_tables_and_an_export_refuses_them(tmp_path: Path) -> None:
    model = model_with_tables(vocab_size=257)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    write_checkpoint({"state_dict": state, "architecture": model.config.to_dict(), "tokenizer": "byte"}, tmp_path / "own.ckpt")
    loaded = load_pretrained(tmp_path / "own.ckpt")
    assert loaded.config == model.config
    ids = torch.randint(0, 257, (1, 7))
    with torch.no_grad():
        assert torch.equal(loaded(ids), model(ids))
    with pytest.raises(UserError, match="A model with value_embeddings=True and bigram_rows=41 cannot be exported"):
        export(open_weights(tmp_path / "own.ckpt"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bigram_rows": -1}, "bigram_rows=-1: must be a whole number of at least 0; 0 adds no table."),
        ({"bigram_rows": True}, "bigram_rows=True: must be a whole number of at least 0; 0 adds no table."),
        (
            {"kind": "gpt2", "init": "gpt2", "n_kv_heads": None, "bigram_rows": -1, "value_embeddings": False},
            "bigram_rows=-1: must be a whole number of at least 0; 0 adds no table.",
        ),
        ({"value_embeddings": 1}, "value_embeddings=1: must be true or false."),
        (
            {"kind": "gpt2", "init": "gpt2", "n_kv_heads": None, "bigram_rows": 0},
            "value_embeddings=True: GPT-2 has no such table. Leave it out, or choose a modern model.",
        ),
    ],
)
def test_values_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        config(**changes)
    assert str(raised.value) == message
