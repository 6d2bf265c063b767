"""Files and folders of the hub and of other libraries: the weights in them are read, or they are named for what they are."""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.errors import UserError
from tests.helpers.foreign_weights import (
    POINTER,
    refusal,
    same,
    save_as_pickle,
)
from tests.helpers.hub_server import Hub
from tests.helpers.other_models import CONTEXT, hugging_face, to_nanogpt


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of this test, and an empty cache."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def upload(hub: Hub, model: str, folder: Path) -> None:
    hub.files |= {f"{model}/{file.name}": file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("parts", [1, 3])
def test_a_model_of_the_hub_without_safetensors_is_read(tmp_path: Path, hub: Hub, theirs: GPT2LMHeadModel, parts: int) -> None:
    upload(hub, "some/model", save_as_pickle(theirs, tmp_path / "saved", parts=parts))
    assert same(load_pretrained("some/model"), theirs)
    assert same(load_pretrained(tmp_path / "saved"), theirs), "and the same folder"


def test_a_model_of_the_hub_in_several_safetensors_files_is_read(tmp_path: Path, hub: Hub, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    upload(hub, "some/model", tmp_path / "saved")
    assert same(load_pretrained("some/model"), theirs)


def test_a_model_of_the_hub_without_weights_names_the_files_that_are_read(
    tmp_path: Path, hub: Hub, theirs: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, "some/model", save_as_pickle(theirs, tmp_path / "saved", parts=1))
    data = hub.files.pop("some/model/pytorch_model.bin")
    hub.files["some/model/tf_model.h5"] = data
    message = refusal(Path("some/model"))
    assert "has none of these files on the hub: model.safetensors, model.safetensors.index.json, pytorch_model.bin" in message
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    assert "model.safetensors is not in the cache" in refusal(Path("some/model"))


def test_a_folder_with_one_file_of_weights_stands_for_it(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    settings = {"n_layer": 3, "n_head": 4, "n_embd": 48, "block_size": CONTEXT, "bias": True, "vocab_size": 101}
    torch.save({"model": to_nanogpt(theirs.state_dict()), "model_args": settings}, tmp_path / "ckpt.pt")
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    assert load_pretrained(tmp_path).config.n_heads == 4
    torch.save({}, tmp_path / "ckpt-2.pt")
    assert "holds several files of weights: ckpt-2.pt, ckpt.pt. Name one of them." in refusal(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"adapter_config.json": '{"base_model_name_or_path": "gpt2"}', "adapter_model.safetensors": ""},
            "change the model 'gpt2'",
        ),
        (
            {".metadata": "", "__0_0.distcp": "", "meta.pt": ""},
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch",
        ),
        ({"zero_to_fp32.py": "", "latest": "global_step5"}, "is a checkpoint of DeepSpeed"),
        ({"checkpoint-500/config.json": "{}", "checkpoint-900/config.json": "{}"}, "checkpoint-500, checkpoint-900. Name one"),
        ({"config.json": "{}", "tf_model.h5": ""}, "tf_model.h5 holds weights for TensorFlow"),
        ({"model.onnx": ""}, "model.onnx holds weights for ONNX"),
        ({"config.json": "{}"}, "has a config.json, but none of these files of weights"),
        (
            {"checkpoint": "", "model-1000.index": "", "model-1000.data-00000-of-00001": "", "hparams.json": "{}"},
            "for TensorFlow",
        ),
        ({"notes.txt": "x"}, "holds no model"),
        ({"words.index": "x"}, "holds no model"),  # of a dictionary, not of TensorFlow
    ],
)
def test_a_folder_without_weights_is_named_for_what_it_is(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert message in refusal(tmp_path)


def test_a_folder_of_the_cache_a_part_and_an_address_lead_to_the_model(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path / "models--some--model" / "snapshots" / "abc", max_shard_size="100KB")
    assert same(load_pretrained(tmp_path / "models--some--model"), theirs)
    part = min((tmp_path / "models--some--model" / "snapshots" / "abc").glob("model-*"))
    assert same(load_pretrained(part), theirs)
    (part.parent / "config.json").unlink()
    assert same(load_pretrained(part, n_heads=4), theirs), "the number of heads is all that the config tells"
    assert same(load_pretrained(part.parent, n_heads=4), theirs)
    lone = tmp_path / part.name
    lone.write_bytes(part.read_bytes())
    assert "is part 1 of a model in" in refusal(lone)
    assert "are given by name, not by address. Type some/model" in refusal("https://huggingface.co/some/model/tree/main")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_folder_of_a_training_state_without_a_config_is_read(tmp_path: Path, theirs: GPT2LMHeadModel, name: str) -> None:
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    for other in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        torch.save({}, tmp_path / other)
    assert same(load_pretrained(tmp_path, n_heads=4), theirs)


def test_the_main_version_of_a_cached_model_is_read(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    folder = tmp_path / "models--some--model"
    theirs.save_pretrained(folder / "snapshots" / "abc")
    hugging_face(n_head=2).save_pretrained(folder / "snapshots" / "def")
    assert "holds several versions of a model" in refusal(folder)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc\n")
    assert same(load_pretrained(folder), theirs)
    (folder / "refs" / "main").write_text("../../elsewhere")
    assert "holds several versions of a model" in refusal(folder)
    assert "is the hub's cache, with these models: models--some--model" in refusal(tmp_path)


NO_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "pointer.safetensors": (POINTER, "is a Git LFS pointer, not weights. It stands for a file that was not downloaded"),
    "pointer.pt": (POINTER, "is a Git LFS pointer, not weights"),
    "page.safetensors": (b"<!DOCTYPE html><html>", "the hub's files are at /resolve/, not at /blob/"),
    "page.bin": (b"<!DOCTYPE html><html>", "is an HTML page, not weights"),
    "empty.pt": (b"", "is empty. Download or save it again."),
    "empty.safetensors": (b"", "is empty. Download or save it again."),
    "model.gguf": (b"GGUF\3\0\0\0" + bytes(100), "holds weights for llama.cpp. Only those for PyTorch can be read"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch" + bytes(100), "holds weights for ONNX"),
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "GPT2LMHeadModel.from_pretrained(FOLDER, from_tf=True)"),
    "flax_model.msgpack": (b"\x81\xabtransformer" + bytes(100), "GPT2LMHeadModel.from_pretrained(FOLDER, from_flax=True)"),
    "model.ckpt.index": (bytes(100), "OpenAI's GPT-2 is named gpt2, gpt2-medium"),
    "model.ckpt.data-00000-of-00001": (bytes(100), "holds weights for TensorFlow"),
    "model.pt.gz": (gzip.compress(b"x" * 100, mtime=0), "is compressed. Decompress it first: gzip -d"),
    "model.bin": (np.random.default_rng(0).bytes(300), "is damaged or is not a PyTorch file"),
    "x.safetensors": (np.random.default_rng(0).bytes(300), "is damaged: it does not begin as a safetensors file does"),
    "model.json": (b'{"a": 1}', "is a file of JSON lines, not weights"),
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_a_file_without_weights_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    content, message = NO_WEIGHTS[name]
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_without_weights_beside_a_config_is_named_for_what_it_is(
    tmp_path: Path, theirs: GPT2LMHeadModel, name: str
) -> None:
    theirs.config.save_pretrained(tmp_path)
    for other in ("pointer.pt", "page.bin", "empty.pt", "x.safetensors" if "safe" in name else "model.bin"):
        content, message = NO_WEIGHTS[other]
        (tmp_path / name).write_bytes(content)
        assert message in refusal(tmp_path, n_heads=None)
        assert message in refusal(tmp_path / name, n_heads=None)


def test_an_incomplete_download_is_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    said = f"is incomplete: by its header it has {len(data):,} bytes, but the file has {len(data) - 100:,}. Download or copy it"
    assert said in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(data[:300])
    assert "is incomplete: by its header" in refusal(tmp_path)
    for zipped in (True, False):
        torch.save(theirs.state_dict(), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-100])
        assert ("is incomplete" if zipped else "is damaged") in refusal(tmp_path / "x.pt")


def test_archives_of_other_content_are_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path / "saved")
    for form in ("zip", "tar"):
        archive = Path(shutil.make_archive(str(tmp_path / "model"), form, tmp_path / "saved"))
        assert f"is a {form} archive" in (message := refusal(archive))
        assert "Unpack it, and give the file or folder of weights in it." in message
    with tarfile.open(tmp_path / "old.pt", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name))
    assert "It was saved by PyTorch before 0.2" in refusal(tmp_path / "old.pt")


def test_an_index_without_its_files_is_one_message(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    parts = sorted(tmp_path.glob("model-*"))
    shutil.copy(parts[0], parts[1])
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path)
    assert [problem.partition(" that ")[0] for problem in caught.value.problems] == [
        f"{parts[1]} lacks tensors",
        f"{parts[1]} has tensors",
    ]
    for part in parts:
        part.unlink()
    said = refusal(tmp_path / "model.safetensors.index.json", n_heads=None)
    assert f"lists tensors in files that are missing: {parts[0].name}, " in said


def test_a_model_in_several_files_without_its_index_is_told_which_file_is_missing(
    tmp_path: Path, theirs: GPT2LMHeadModel
) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=r"of \d+ files of a model, but not model.safetensors.index.json, which lists their tensors"
    ):
        open_weights(tmp_path)


def test_a_missing_file_of_weights_is_explained(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path / "model")
    (tmp_path / "model.ckpt.index").write_bytes(b"\0" * 50)
    whole = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "link.pth").symlink_to("none.pth")
    for name, message in (
        ("link.pth", r"link\.pth is a link to a file that does not exist\. Restore the file"),
        ("lnk.pth", r"there is no such file or folder\. Check the path"),
        ("modle", rf"there is no such file or folder\. Did you mean {re.escape(str(tmp_path / 'model'))}\?"),
        ("model.ckpt", r"model\.ckpt\.index holds weights for TensorFlow\."),
    ):
        with pytest.raises(UserError, match=message):
            load_pretrained(tmp_path / name)
    (tmp_path / "model" / "model.safetensors").write_bytes(whole + b"\0" * 10)
    with pytest.raises(UserError, match=r"is damaged or is not a safetensors file \(.*\)\. Download or copy it again\."):
        load_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blobs" / "none")
    with pytest.raises(UserError, match=r"model\.safetensors is a link to a file that does not exist\. Copy the folder again"):
        load_pretrained(tmp_path / "model")


def test_adapters_that_name_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match=r"adapters \(LoRA\) that change a model that is stored elsewhere, not a model"):
        open_weights(tmp_path)


@pytest.mark.parametrize("size", ["1GB", "20KB"], ids=["one file", "several files"])
def test_a_variant_is_read(tmp_path: Path, theirs: GPT2LMHeadModel, size: str) -> None:
    theirs.save_pretrained(tmp_path, variant="fp16", max_shard_size=size)
    assert same(load_pretrained(tmp_path), theirs)
    assert same(load_pretrained(min(tmp_path.glob("model.fp16*.safetensors"))), theirs)


def test_the_index_of_a_variant_that_is_missing_is_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.fp16.json").unlink()
    assert "but not model.safetensors.index.fp16.json, which lists their tensors" in refusal(tmp_path)


def test_one_of_two_variants_is_not_guessed(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    for variant in ("bf16", "fp16"):
        theirs.save_pretrained(tmp_path, variant=variant, max_shard_size="20KB")
    assert "model.safetensors.index.bf16.json, model.safetensors.index.fp16.json. Name one of them." in refusal(tmp_path)
    assert same(load_pretrained(tmp_path / "model.safetensors.index.fp16.json"), theirs)


def test_adapters_beside_a_model_are_said(tmp_path: Path, theirs: GPT2LMHeadModel, caplog: pytest.LogCaptureFixture) -> None:
    theirs.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "gpt2"}')
    assert same(load_pretrained(tmp_path), theirs)
    assert "has adapters (LoRA) beside model.safetensors, which are not applied." in caplog.text


def test_a_piece_of_a_distributed_checkpoint_and_folders_of_them_are_named(tmp_path: Path) -> None:
    for step in ("step-100", "step-200"):
        (tmp_path / step).mkdir()
        (tmp_path / step / ".metadata").touch()
        (tmp_path / step / "__0_0.distcp").write_bytes(b"PK\x03\x04")
    piece = tmp_path / "step-100" / "__0_0.distcp"
    assert f"{piece} is a piece of a checkpoint of torch.distributed. Convert it to one file: " in refusal(piece)
    assert "holds folders of models: step-100, step-200. Name one of them." in refusal(tmp_path)


def test_other_files_of_weights_have_one_sentence_each(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"GGUF\3\0\0\0" + bytes(range(256)) * 4)
    assert refusal(tmp_path / "model.bin") == (
        f"{tmp_path}/model.bin is a GGUF file of weights. Such weights cannot be read here. Look for the model's model.safetensors."
    )
    with tarfile.open(tmp_path / "gpt2.tgz", "w:gz") as tar:
        tar.add(tmp_path / "model.bin", "gpt2/model.bin")
    assert f"is a compressed archive. Unpack it first: tar -xf {tmp_path}/gpt2.tgz" in refusal(tmp_path / "gpt2.tgz")
