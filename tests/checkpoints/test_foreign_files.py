"""Damaged and hostile files are rejected with a specific message, and nothing in them is run."""

import json
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_pretrain.checkpoints.formats import layouts
from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.modern import ModernModel
from tests.conftest import tiny_model
from tests.helpers.other_models import Hostile


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "nested", "nanogpt", "folder"])
def test_a_pickle_that_would_run_code_is_rejected(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "x.pth"
    state: dict[str, Any] = dict(tiny_model().state_dict())
    if form == "pickle":
        path.write_bytes(pickle.dumps(Hostile(marker)))
    elif form == "nested":
        torch.save({"model_state_dict": state, "epoch": [1, {"deep": Hostile(marker)}]}, path)
    elif form == "nanogpt":
        torch.save({"model": state, "model_args": {"n_head": Hostile(marker)}}, path)
    elif form == "folder":
        folder = saved(tmp_path / "folder")
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
        torch.save(state | {"x": Hostile(marker)}, path)
    else:
        torch.save(state | {"x": Hostile(marker)}, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(
        UserError,
        match=r"holds more than tensors and plain data( \(it needs (posix|os)\.system\)|, or is not a PyTorch file)\. It was not loaded, and nothing",
    ):
        load_pretrained(path.parent if form == "folder" else path, n_heads=4)
    assert not marker.exists()
    if form != "pickle":
        torch.load(path, weights_only=False)
        assert marker.exists(), "the file was not hostile"


def saved(folder: Path) -> Path:
    """Save a small GPT-2 of transformers to a folder."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=101, n_positions=24, n_embd=48, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def safetensors_bytes(fields: object, *, length: int | None = None, data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HUGE = {"wte.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
OVERLAP = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("wte.weight", "wpe.weight")}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_bytes({}, length=2**63),
        safetensors_bytes({}, length=90_000_000),
        safetensors_bytes(HUGE),
        safetensors_bytes(HUGE, data=bytes(64)),
        safetensors_bytes(OVERLAP, data=bytes(8)),
        safetensors_bytes({"wte.weight": 3}),
        b"\x02\0\0\0\0\0\0\0{",
    ],
    ids=["absurd length", "long header", "absurd shape", "short data", "overlap", "no tensor", "cut header"],
)
def test_a_safetensors_file_with_a_false_header_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=r"x is (incomplete: by its header|damaged or is not a (safetensors|PyTorch) file)"):
        load_pretrained(tmp_path / "x")


def test_a_truncated_safetensors_file_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors is incomplete: by its header"):
        load_pretrained(tmp_path)


def repack(path: Path, *, compression: int) -> None:
    """Write the parts of a PyTorch file to a new archive."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "zeroed", "compressed", "list", "number", "no gpt"])
def test_files_without_weights_are_rejected(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.pth"
    torch.save(tiny_model().state_dict(), path)
    whole = path.read_bytes()
    if damage == "compressed":
        repack(path, compression=zipfile.ZIP_DEFLATED)
    elif damage in ("list", "number", "no gpt"):
        torch.save({"list": [1], "number": 7, "no gpt": {"layer.weight": torch.zeros(2, 2)}}[damage], path)
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[:-100], "zeroed": bytes(len(whole))}[damage])
    with pytest.raises(UserError, match=r"x\.pth"):
        load_pretrained(path, n_heads=4)


def test_tensors_that_claim_to_be_larger_than_their_file_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    state = tiny_model().state_dict()
    torch.save(state | {"tok_emb.weight": torch.zeros(1).expand(10**9, 32)}, path)
    with pytest.raises(UserError, match=r"tok_emb\.weight claims the shape \(1000000000, 32\), more than its file holds"):
        load_pretrained(path, n_heads=4)
    large = torch.zeros(20_000)
    torch.save({f"{number}.weight": large.view(100, 200) for number in range(5)}, path)
    with pytest.raises(UserError, match="claim 400,000 bytes in total, more than the file holds"):
        load_pretrained(path, n_heads=4)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_with_nan_or_infinity_are_rejected(tmp_path: Path, number: float) -> None:
    folder = saved(tmp_path)
    state = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    state["transformer.h.1.mlp.c_fc.weight"][3, 5] = number
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        UserError,
        match=r"holds NaN or infinity in torch\.float32, in 1 of 40 tensors: trf_blocks\.1\.ff\.layers\.0\.weight",
    ):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 2}, r"its config has n_layers=2, but its tensors have n_layers=3"),
        ({"n_embd": 64}, r"its config has emb_dim=64, but its tensors have emb_dim=48"),
        (
            {"vocab_size": 102, "n_positions": 48},
            "config has context_length=48, vocab_size=102, but its tensors have context_length=24, vocab_size=101",
        ),
        ({"n_head": 5}, r"n_heads=5 does not divide emb_dim=48"),
        ({"n_head": "four"}, r"n_heads='four': must be a whole number"),
        ({"n_layer": 10**12}, r"its config has n_layers=1000000000000"),
        ({"model_type": "llama"}, r"model_type='llama' is not supported; only 'gpt2' and 'nanochat' are"),
        ({"activation_function": ["relu"]}, r"activation_function=\['relu'\] is not supported"),
        ({"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon=1e-06 is not supported; this program's GPT-2 always has 1e-05"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ({"n_inner": 100}, r"n_inner=100 is not supported; in this program's GPT-2 it is always 4 \* n_embd"),
        ({"tie_word_embeddings": False}, r"1 tensor is missing \(lm_head\.weight\)"),
        ({"gpt_pretrain": {"qkv_bias": False, "tokenizer": 3}}, "tokenizer=3 is not the name of a tokenizer"),
        ({"gpt_pretrain": {"init": "_target_"}}, "init='_target_': must be one of"),
    ],
)
def test_a_config_that_disagrees_with_the_tensors_is_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = saved(tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | change))
    with pytest.raises(UserError, match=message):
        load_pretrained(folder)


def test_a_tied_head_that_differs_from_the_embedding_is_rejected(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"lm_head.weight": state["transformer.wte.weight"].clone()}, folder / "model.safetensors")
    assert load_pretrained(folder).config.tie_embeddings
    save_file(state | {"lm_head.weight": state["transformer.wte.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"its config ties the output head to the token embedding, but lm_head\.weight differs from it"
    ):
        load_pretrained(folder)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, '{"n_embd": 1', "\udcff"])
def test_a_config_that_is_not_json_is_rejected(tmp_path: Path, content: str) -> None:
    folder = saved(tmp_path)
    (folder / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        load_pretrained(folder)


def test_a_config_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with open(folder / "config.json", "r+b") as stream:
        stream.truncate(30_000_000)
    with pytest.raises(UserError, match="more than 20,000,000 bytes"):
        load_pretrained(folder)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    GPT2LMHeadModel.from_pretrained(saved(tmp_path / "one")).save_pretrained(tmp_path / "many", max_shard_size="100KB")
    return tmp_path / "many"


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / layouts.SHARD_INDEX).read_text())
    change(index["weight_map"])
    (folder / layouts.SHARD_INDEX).write_text(json.dumps(index))


def test_all_missing_and_disagreeing_shards_are_reported_together(shards: Path) -> None:
    first, second, third, *_ = sorted(path.name for path in shards.glob("model-*.safetensors"))
    (shards / first).unlink()
    (shards / second).write_bytes((shards / second).read_bytes()[:-5])
    change_index(shards, lambda names: names.update({"transformer.h.7.ln_1.bias": third}))
    with pytest.raises(UserError) as caught:
        load_pretrained(shards)
    message = "\n".join(caught.value.problems)
    assert f"lists tensors in files that are missing: {first}." in message
    assert f"{second} is incomplete" in message
    assert f"{third} lacks tensors that model.safetensors.index.json lists in it: transformer.h.7.ln_1.bias." in message


def test_an_index_that_points_outside_its_folder_is_rejected(shards: Path) -> None:
    change_index(shards, lambda names: names.update({"transformer.ln_f.bias": "../one/model.safetensors"}))
    with pytest.raises(
        UserError, match=r"names '\.\./one/model\.safetensors', which is not a file of tensors in the same folder"
    ):
        load_pretrained(shards)
    change_index(shards, lambda names: names.update({"transformer.ln_f.bias": "\x1b[2Jmodel.safetensors"}))  # a bar would show it
    with pytest.raises(UserError, match=r"names '\\x1b\[2Jmodel\.safetensors', which is not a file of tensors"):
        load_pretrained(shards)
    (shards / layouts.SHARD_INDEX).write_text("{}")
    with pytest.raises(UserError, match="it has no weight_map"):
        load_pretrained(shards)


def test_a_tensor_with_two_values_is_rejected(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    torch.save(state | {"module.pos_emb.weight": state["pos_emb.weight"].half().float()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"module\.pos_emb\.weight and pos_emb\.weight are the same tensor with different values"):
        load_pretrained(tmp_path / "x.pth", n_heads=4)


@pytest.mark.parametrize("form", ["own", "config", "blocks"])
def test_absurd_sizes_cost_nothing(tmp_path: Path, form: str) -> None:
    if form == "own":
        model = tiny_model()
        absurd = model.config.to_dict() | {"emb_dim": 10**12 + 1, "n_heads": 7}
        torch.save({"state_dict": {"odd": torch.zeros(1)}, "architecture": absurd, "tokenizer": "gpt2"}, tmp_path / "x")
    else:
        saved(tmp_path)
        names = ["h.0.ln_1.weight"] if form == "config" else [f"h.{layer}.ln_1.weight" for layer in range(20_000)]
        save_file({name: torch.ones(0) for name in names}, tmp_path / "model.safetensors")
        if form == "config":
            fields = json.loads((tmp_path / "config.json").read_text()) | {"n_embd": 10**12 + 1, "n_head": 7}
            (tmp_path / "config.json").write_text(json.dumps(fields))
    start = time.perf_counter()
    with pytest.raises(UserError):
        load_pretrained(tmp_path / "x" if form == "own" else tmp_path)
    assert time.perf_counter() - start < 5


def test_weights_too_large_for_the_requested_dtype_are_rejected(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    state = {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}
    state["transformer.wpe.weight"][0, 0] = 1e6
    save_file(state, folder / "model.safetensors")
    load_pretrained(folder)
    with pytest.raises(UserError, match=r"holds NaN or infinity in torch\.float16"):
        load_pretrained(folder, dtype=torch.float16)
    state["transformer.wpe.weight"][0, 0] = 1e300
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"holds NaN or infinity in torch\.float32"):
        load_pretrained(folder)


def test_nested_tensors_and_overlong_names_are_rejected(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    torch.save({"tok_emb.weight": nested}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth"):
        load_pretrained(tmp_path / "x.pth")
    with pytest.raises(UserError, match="this path cannot be read"):
        load_pretrained("a" * 5000)


def test_absurd_numbers_of_layers_cost_nothing(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    torch.save(state | {"trf_blocks.999999.norm1.weight": torch.ones(32)}, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"fit a GPT-2: 1 tensor does not belong to the model \(trf_blocks\.999999\.norm1\.weight\)"
    ):
        load_pretrained(tmp_path / "x.pth", n_heads=4)


def test_bare_tensors_of_a_modern_model_are_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    config = GPTConfig(97, 16, emb_dim=32, n_heads=4, n_layers=2, tie_embeddings=False, kind="modern", init="modern")
    torch.save(ModernModel(config).state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match="a modern model of this program, give its run's folder or checkpoint instead"):
        load_pretrained(tmp_path / "a.pt")
