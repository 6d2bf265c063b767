"""Checkpoints of nanochat in its own layout: model_*.pt with meta_*.json, and the vocabulary in tokenizer.pkl."""

import json
import pickle
import re
from pathlib import Path

import pytest
import tiktoken
import torch
from torch.nn import functional as F

from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.build import build_tokenizer

SIZES = {"sequence_len": 24, "vocab_size": 270, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
# nanochat's own pattern. Digits are grouped by two.
PATTERN = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
SPECIALS = ("<|bos|>", "<|user_start|>", "<|user_end|>")


def state(**changes: int) -> dict[str, torch.Tensor]:
    """Return random weights under nanochat's names."""
    sizes = SIZES | changes
    width, narrow = sizes["n_embd"], sizes["n_embd"] // sizes["n_head"] * sizes["n_kv_head"]
    torch.manual_seed(5)
    shapes = {"transformer.wte.weight": (sizes["vocab_size"], width), "lm_head.weight": (sizes["vocab_size"], width)}
    for layer in range(sizes["n_layer"]):
        block = f"transformer.h.{layer}"
        shapes |= {f"{block}.attn.c_{name}.weight": (narrow, width) for name in "kv"}
        shapes |= {f"{block}.attn.c_q.weight": (width, width), f"{block}.attn.c_proj.weight": (width, width)}
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_proj.weight": (width, 4 * width)}
    weights = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].bfloat16()
    return weights


def naive_logits(weights: dict[str, torch.Tensor], token_ids: torch.Tensor) -> torch.Tensor:
    """Compute what nanochat's first model computes, position by position."""
    heads, kv_heads, width = SIZES["n_head"], SIZES["n_kv_head"], SIZES["n_embd"]
    half = width // heads // 2
    angles = torch.arange(len(token_ids))[:, None] / 10_000 ** (torch.arange(half) / half)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt()

    def turned(x: torch.Tensor) -> torch.Tensor:
        left, right = x[..., :half], x[..., half:]
        turned = (left * angles.cos() + right * angles.sin(), right * angles.cos() - left * angles.sin())
        return norm(torch.cat(turned, dim=-1))

    x = norm(weights["transformer.wte.weight"].float()[token_ids])
    for layer in range(SIZES["n_layer"]):
        own = {key.split(f".{layer}.")[1]: value for key, value in weights.items() if f".h.{layer}." in key}
        inner, mixed = norm(x), []
        for head in range(heads):
            rows = slice(2 * half * head, 2 * half * (head + 1))
            shared = slice(2 * half * (head * kv_heads // heads), 2 * half * (head * kv_heads // heads + 1))
            query, key = turned(inner @ own["attn.c_q.weight"][rows].T), turned(inner @ own["attn.c_k.weight"][shared].T)
            scores = (query @ key.T / (2 * half) ** 0.5).masked_fill(torch.ones(len(x), len(x)).triu(1) > 0, -torch.inf)
            mixed.append(scores.softmax(-1) @ (inner @ own["attn.c_v.weight"][shared].T))
        x = x + torch.cat(mixed, dim=-1) @ own["attn.c_proj.weight"].T
        x = x + F.relu(norm(x) @ own["mlp.c_fc.weight"].T).square() @ own["mlp.c_proj.weight"].T
    return 15 * torch.tanh(norm(x) @ weights["lm_head.weight"].T / 15)


def save(folder: Path, weights: dict[str, torch.Tensor], **settings: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({f"_orig_mod.{name}": value for name, value in weights.items()}, folder / "model_000650.pt")
    meta = {"step": 650, "val_bpb": 0.7, "model_config": SIZES | settings}
    (folder / "meta_000650.json").write_text(json.dumps(meta))
    return folder / "model_000650.pt"


def encoding() -> tiktoken.Encoding:
    ranks = {bytes([byte]): byte for byte in range(256)}
    for pair in (b"th", b"he", b" t", b" th", b"the", b" the", b"12", b"in", b"er", b"an", b"re"):
        ranks[pair] = len(ranks)
    specials = {token: len(ranks) + number for number, token in enumerate(SPECIALS)}
    return tiktoken.Encoding("rustbpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)


def test_a_checkpoint_of_nanochat_gives_its_logits(tmp_path: Path) -> None:
    weights = state()
    model = load_pretrained(save(tmp_path, weights))
    assert (model.config.kind, model.config.context_length, model.config.n_kv_heads) == ("modern", 24, 2)
    token_ids = torch.randint(0, 270, (24,))
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids[None])[0], naive_logits(weights, token_ids), atol=1e-3, rtol=1e-4)


def test_its_folder_with_the_other_files_of_a_run_is_enough(tmp_path: Path) -> None:
    save(tmp_path, state())
    torch.save({"step": 3}, tmp_path / "optim_000650_rank0.pt")
    torch.save(torch.zeros(270, dtype=torch.int32), tmp_path / "token_bytes.pt")
    assert load_pretrained(tmp_path).config.vocab_size == 270


@pytest.mark.parametrize("place", ["base_checkpoints/d20", "tokenizer"])
def test_its_vocabulary_is_found_beside_it_and_in_its_own_folder(tmp_path: Path, place: str) -> None:
    path = save(tmp_path / "base_checkpoints" / "d20", state())
    (tmp_path / place).mkdir(exist_ok=True)
    theirs = encoding()
    (tmp_path / place / "tokenizer.pkl").write_bytes(pickle.dumps(theirs))
    ours = open_weights(path).build_tokenizer()
    text = "The other 1234 theatres\n\n  rain; naïve 東京 <|user_start|>there"
    assert ours.encode(text) == theirs.encode(text, allowed_special={"<|user_start|>"})
    assert ours.eos_id == theirs.encode_single_token("<|bos|>")
    for named in (tmp_path / place / "tokenizer.pkl", tmp_path / place):
        assert build_tokenizer(named).encode(text) == ours.encode(text)


def test_escaped_characters_and_classes_of_a_pattern_keep_their_meaning(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    for pair in (b"+b", b"*+", b"a$", b"$b", b"++", b"12", b"123"):
        ranks[pair] = len(ranks)
    pattern = r"[*+]|\$++|[^*+$\]\d]+|\]|\d{1,2}+|\++z$"
    theirs = tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|bos|>": len(ranks)})
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(theirs))
    ours, text = build_tokenizer(tmp_path), "a+b*+b$$ba$b]12345++ z"
    assert ours.encode(text) == theirs.encode(text)


def test_a_later_nanochat_is_refused_and_not_sent_to_a_conversion_that_loses_tensors(tmp_path: Path) -> None:
    later = state() | {"resid_lambdas": torch.ones(3), "x0_lambdas": torch.zeros(3)}
    with pytest.raises(
        UserError, match=re.escape("2 tensors that this program's modern model lacks (resid_lambdas, x0_lambdas)")
    ):
        load_pretrained(save(tmp_path, later))
    with pytest.raises(UserError, match=r"window_pattern='SSSL', but this program's modern model attends to all earlier tokens"):
        load_pretrained(save(tmp_path, state(), window_pattern="SSSL"))
    assert load_pretrained(save(tmp_path, state(), window_pattern="L")).config.n_layers == 3


def test_without_its_settings_it_is_refused_with_the_file_that_has_them(tmp_path: Path) -> None:
    path = save(tmp_path, state())
    (tmp_path / "meta_000650.json").unlink()
    with pytest.raises(UserError, match=r"a model of nanochat needs its meta_\*\.json beside it"):
        load_pretrained(path)


def test_settings_that_contradict_the_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its config has vocab_size=300, but its tensors have vocab_size=270"):
        load_pretrained(save(tmp_path, state(), vocab_size=300))
    with pytest.raises(UserError, match="lacks n_head"):
        load_pretrained(save(tmp_path, state(), n_head=None))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (pickle.dumps({"vocab_size": 3, "itos": {0: "a"}}), "vocab_size is 3, but it has 1 token"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.", "it needs os.system"),
        (b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81.", "it is no encoding of tiktoken with its ranks"),
        (pickle.dumps([encoding()]), "it is no encoding of tiktoken with its ranks"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(problem)):
        build_tokenizer(tmp_path / "tokenizer.pkl")
