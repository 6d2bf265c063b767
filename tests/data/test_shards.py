"""Token shards: their formats and checks."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.data import files as files_module
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.corpus import split_corpus
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.data.shards.llmc import HEADER
from gpt_pretrain.data.token_stream import ConcatenatedTokens, Shard, TokenSplit, loss_by_frequencies
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation import memorization
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import ROOT
from tests.helpers.data_settings import data_settings
from tests.helpers.made_shards import BYTE, random_documents, stream, write_llmc, write_nanogpt, write_shards

GPT2 = build_tokenizer("gpt2")
TRAIN, VAL = random_documents(200, seed=1), random_documents(30, seed=2)


def split_at(folder: Path, tokenizer: object = BYTE, *, format_name: str = "auto", verify: bool = False) -> TokenSplit:
    return split_corpus(open_corpus(LocalFiles(folder), format_name=format_name), tokenizer, train_ratio=0.9, verify=verify)  # type: ignore[arg-type]


def problems_of(folder: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        split_at(folder, **options)  # type: ignore[arg-type]
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_shards_form_one_stream_of_tokens(tmp_path: Path, itemsize: int) -> None:
    split = split_at(write_shards(tmp_path, train=TRAIN, val=VAL, itemsize=itemsize))
    assert split.train.read().tolist() == stream(TRAIN)
    assert split.val.read().tolist() == stream(VAL)
    assert (split.train.count, split.documents) == (len(stream(TRAIN)), 230)
    assert split.text_size == f"230 documents, {len(stream(TRAIN)) + len(stream(VAL)):,} bytes of text"


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), data=st.data())
def test_a_read_may_cross_shards(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("shards")
    ids = np.arange(sum(lengths), dtype="<u2")
    for name, part in enumerate(np.split(ids, np.cumsum(lengths)[:-1])):
        part.tofile(folder / str(name))
    files = LocalFiles(folder)
    joined = ConcatenatedTokens([Shard(files, str(name), count, 2) for name, count in enumerate(lengths)])
    start = data.draw(st.integers(0, len(ids)))
    count = data.draw(st.integers(0, len(ids) - start))
    assert joined.read(start, count).tolist() == ids[start : start + count].tolist()
    assert joined.read().tolist() == ids.tolist()


def test_a_nanogpt_folder_can_be_read(tmp_path: Path) -> None:
    train, val = stream(random_documents(50, vocab_size=50256), GPT2.eos_id), stream(random_documents(9), GPT2.eos_id)
    folder = write_nanogpt(tmp_path / "nano", train=train, val=val)
    split = split_at(folder, GPT2)
    assert (split.train.read().tolist(), split.val.read().tolist()) == (train, val)
    assert open_corpus(LocalFiles(folder)).tokenizer == "gpt2"
    assert split.text_size == "", "only the tokens are known"


def test_llm_c_shards_can_be_read(tmp_path: Path) -> None:
    parts = [stream(random_documents(20, seed=seed), GPT2.eos_id, eos_first=True) for seed in range(3)]
    split = split_at(write_llmc(tmp_path, train=parts[:2], val=parts[2]), GPT2)
    assert split.train.read().tolist() == parts[0] + parts[1]
    assert split.val.read().tolist() == parts[2]
    assert open_corpus(LocalFiles(tmp_path)).eos_first


def test_windows_match_the_stream(tmp_path: Path) -> None:
    write_shards(tmp_path / "c", train=TRAIN, val=VAL, shard_tokens=77)
    data = TextDataModule(data_settings(tmp_path, name="shards", path=str(tmp_path / "c")), BYTE, context_length=32, seed=1)
    data.prepare_data()
    ids = stream(TRAIN)
    windows = data.train[np.arange(len(data.train))]
    starts = range(0, len(ids) - 32, 32)
    assert windows[0].tolist() == [ids[s : s + 32] for s in starts]
    assert windows[1].tolist() == [ids[s + 1 : s + 33] for s in starts]
    assert len(list(data.train_dataloader())) == len(starts) // 4


def test_worker_processes_open_the_shards_themselves(tmp_path: Path) -> None:
    split = split_at(write_shards(tmp_path, train=TRAIN, val=VAL, shard_tokens=100))
    split.train.read()
    again = pickle.loads(pickle.dumps(split.train))
    assert again.read(95, 10).tolist() == stream(TRAIN)[95:105]


def test_the_number_of_open_files_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_OPEN_FILES", 4)
    split = split_at(write_shards(tmp_path, train=TRAIN, val=VAL, shard_tokens=50))
    before = len(os.listdir("/dev/fd"))
    assert split.train.read().tolist() == stream(TRAIN)
    assert len(split.train.parts) > 50  # type: ignore[attr-defined]
    assert len(os.listdir("/dev/fd")) <= before + 4


def test_a_corpus_of_ten_billion_tokens_opens_quickly(tmp_path: Path) -> None:
    """The shards are sparse files: 20 GB, or 10^10 tokens, in a hundred shards."""
    names = [f"tale_train_{number:06d}.bin" for number in range(100)]
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, 10**8
    for name in [*names, "tale_val_000000.bin"]:
        (tmp_path / name).write_bytes(header.tobytes())
        os.truncate(tmp_path / name, HEADER + 2 * 10**8)
    tracemalloc.start()
    try:
        start = time.perf_counter()
        data = TextDataModule(data_settings(tmp_path, name="shards", path=str(tmp_path)), GPT2, context_length=1024, seed=1)
        data.prepare_data()
        batches = iter(data.train_dataloader())
        first = next(batches)
        seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data.split.train.count == 10**10
    assert len(data.train) == (10**10 - 1) // 1024
    assert first[0].shape == (4, 1024)
    assert peak < 20_000_000
    assert seconds < 5


def test_missing_truncated_and_damaged_shards_are_reported(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, train=TRAIN, val=VAL)
    whole = (folder / "train-00001.bin").read_bytes()
    (folder / "train-00001.bin").write_bytes(whole[:-2])
    (folder / "train-00002.bin").unlink()
    problems = problems_of(folder)
    assert "train-00001.bin has 1,998 bytes instead of 2,000" in problems
    assert "train-00002.bin is missing" in problems
    write_shards(tmp_path, train=TRAIN, val=VAL)
    (folder / "train-00001.bin").write_bytes(whole[:50] + b"\0\0" + whole[52:])
    split_at(folder)
    assert "train-00001.bin is damaged: its checksum differs" in problems_of(folder, verify=True)


def test_a_shard_that_is_truncated_during_training_is_reported(tmp_path: Path) -> None:
    split = split_at(write_shards(tmp_path, train=TRAIN, val=VAL))
    os.truncate(tmp_path / "train-00001.bin", 100)
    with pytest.raises(UserError, match=r"train-00001\.bin has been truncated since training began"):
        split.train.read(1000, 100)


def test_an_unfinished_corpus_differs_from_a_missing_one(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "c", train=TRAIN, val=VAL)
    (folder / "manifest.json").unlink()
    assert "The folder has shards but no manifest.json, which is needed to read them. Copy it too." in problems_of(folder)
    for command in re.findall(r"mkdir ids && .*? > ids/val.bin", problems_of(folder)):
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    again = split_at(tmp_path / "ids", BYTE)
    assert (again.train.read().tolist(), again.val.read().tolist()) == (stream(TRAIN), stream(VAL))
    (folder / ".work").mkdir()
    (folder / ".work" / "plan.json").write_text("{}")
    assert "The corpus is unfinished: its manifest is written last." in problems_of(folder)
    assert "The corpus is unfinished" in problems_of(folder, format_name="gpt_pretrain")
    (tmp_path / "d").mkdir()
    problems = problems_of(tmp_path / "d")
    assert "there are no token shards" in problems
    assert "is unfinished" not in problems
    (tmp_path / "d" / ".work").mkdir()
    (tmp_path / "d" / ".work" / "plan.json").write_text("{}")
    assert "The corpus is unfinished" in problems_of(tmp_path / "d")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": "gpt-pretrain shards", "version": 1, "itemsize": 3}'])
def test_a_damaged_manifest_is_reported(tmp_path: Path, content: str) -> None:
    write_shards(tmp_path, train=TRAIN, val=VAL)
    (tmp_path / "manifest.json").write_text(content)
    assert "manifest.json is damaged" in problems_of(tmp_path)


def test_a_manifest_cannot_refer_to_other_folders(tmp_path: Path) -> None:
    write_shards(tmp_path, train=TRAIN, val=VAL)
    content = json.loads((tmp_path / "manifest.json").read_text())
    content["parts"]["train"]["shards"][0]["file"] = "../secret.bin"
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert "manifest.json is damaged" in problems_of(tmp_path)


def test_a_newer_manifest_is_reported(tmp_path: Path) -> None:
    write_shards(tmp_path, train=TRAIN, val=VAL)
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"version": 2}))
    assert "version 2, but this program reads" in problems_of(tmp_path)


def test_a_nanogpt_pickle_file_cannot_run_code(tmp_path: Path) -> None:
    folder = write_nanogpt(tmp_path, train=[1, 2, 3], val=[1, 2])

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    (folder / "meta.pkl").write_bytes(pickle.dumps(Trap()))
    assert "Train on the text itself" in problems_of(folder)
    assert not (tmp_path / "trapped").exists()


def test_llm_c_shards_with_other_names_are_told_by_their_headers(tmp_path: Path) -> None:
    parts = [[1, 2, 3], [4, 5], [6, 7]]
    write_llmc(tmp_path, train=parts[:2], val=parts[2])
    for old, new in (("train_000001", "data00"), ("train_000002", "data01"), ("val_000000", "data_val")):
        (tmp_path / f"tale_{old}.bin").rename(tmp_path / f"{new}.bin")
    split = split_at(tmp_path, GPT2)
    assert (split.train.read().tolist(), split.val.read().tolist()) == ([1, 2, 3, 4, 5], [6, 7])


@pytest.mark.parametrize("name", ["tale_text_document.bin", "part-0.npy", "0_shard.ds"])
def test_token_ids_without_a_header_are_refused_with_the_command_that_helps(tmp_path: Path, name: str) -> None:
    ids = np.arange(500) % 256 + 3
    (tmp_path / "some ids").mkdir()
    ids.astype("<u2").tofile(tmp_path / "some ids" / name)
    problem = problems_of(tmp_path / "some ids")
    (command,) = re.findall(r"mkdir ids && cat .* > ids/train\.bin", problem)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert split_at(tmp_path / "ids", GPT2).train.read().tolist() == ids[:450].tolist()


def test_chunks_of_litdata_are_no_bare_token_ids(tmp_path: Path) -> None:
    data = np.array([2, 16, 216, 416], "<u4").tobytes() + np.arange(200, dtype="<u2").tobytes()
    (tmp_path / "chunk-0-0.bin").write_bytes(data)
    assert "1 chunk of LitData" in problems_of(tmp_path) and "mkdir" not in problems_of(tmp_path)


def test_an_invalid_llm_c_header_is_reported(tmp_path: Path) -> None:
    write_llmc(tmp_path, train=[[1] * 50], val=[1] * 50)
    (tmp_path / "tale_train_000009.bin").write_bytes(b"\0" * 2000)
    assert "tale_train_000009.bin does not begin with llm.c's header" in problems_of(tmp_path)


def test_a_truncated_llm_c_shard_is_reported(tmp_path: Path) -> None:
    write_llmc(tmp_path, train=[[1] * 50], val=[1] * 50)
    os.truncate(tmp_path / "tale_train_000001.bin", HEADER + 60)
    assert "tale_train_000001.bin has 1,084 bytes instead of 1,124" in problems_of(tmp_path)


def test_token_ids_beyond_the_vocabulary_are_reported(tmp_path: Path) -> None:
    write_nanogpt(tmp_path, train=[1, 2, 300, 4] * 20, val=[1, 2] * 20)
    assert "has token id 300, but tokenizer=byte has only 257 ids" in problems_of(tmp_path)
    split_at(tmp_path, GPT2)


def test_another_tokenizer_than_the_manifest_s_is_rejected(tmp_path: Path) -> None:
    write_shards(tmp_path, train=TRAIN, val=VAL)
    assert "was made with byte. Use that tokenizer." in problems_of(tmp_path, tokenizer=GPT2)


def test_without_a_validation_set_the_end_of_the_training_set_is_used(tmp_path: Path, printed: Callable[[], list[str]]) -> None:
    split = split_at(write_shards(tmp_path, train=TRAIN))
    ids, cut = stream(TRAIN), int(0.9 * len(stream(TRAIN)))
    assert split.train.read().tolist() == ids[:cut]
    assert split.val.read().tolist() == ids[cut:]
    assert split.val.read(3, 5).tolist() == ids[cut + 3 : cut + 8]
    assert any("has no validation set" in line for line in printed())


def test_the_hash_depends_on_the_content(tmp_path: Path) -> None:
    def sha256(name: str, ids: list[int]) -> str:
        return split_at(write_nanogpt(tmp_path / name, train=ids, val=[1] * 9)).text_sha256

    ids = list(range(200)) * 20
    changed = [*ids[:2000], 7, *ids[2001:]]
    assert sha256("a", ids) == sha256("b", ids)
    assert len({sha256("c", ids), sha256("d", ids[:-1]), sha256("e", changed)}) == 3
    one = split_at(write_shards(tmp_path / "f", train=TRAIN, val=VAL)).text_sha256
    two = split_at(write_shards(tmp_path / "g", train=[*TRAIN[:-1], [9]], val=VAL)).text_sha256
    assert one != two


def test_the_loss_by_frequencies_covers_the_whole_stream(tmp_path: Path) -> None:
    split = split_at(write_shards(tmp_path, train=[[1] * 299] * 3, val=VAL))
    share = np.array([897, 3]) / 900
    assert loss_by_frequencies(split.train) == pytest.approx(float(-(share * np.log(share)).sum()))


def test_val_tokens_spreads_its_windows_over_the_validation_set(tmp_path: Path) -> None:
    write_shards(tmp_path / "c", train=TRAIN, val=TRAIN, shard_tokens=77)
    ids = stream(TRAIN)
    every = range(0, len(ids) - 32, 32)

    def val_of(val_tokens: int | None) -> list[list[int]]:
        chosen = data_settings(tmp_path, name="shards", path=str(tmp_path / "c"), val_tokens=val_tokens)
        data = TextDataModule(chosen, BYTE, context_length=32, seed=1)
        data.prepare_data()
        assert len(data.val) == len(torch.cat([batch[0] for batch in data.val_dataloader()]))
        return [row for batch in data.val_dataloader() for row in batch[0].tolist()]

    assert val_of(None) == val_of(10**9) == [ids[s : s + 32] for s in every]
    kept = [every[i * len(every) // 10] for i in range(10)]
    assert val_of(9 * 32 + 1) == [ids[s : s + 32] for s in kept]
    assert kept[-1] > 0.85 * len(ids)


def test_a_large_corpus_is_searched_for_memorized_text_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorization, "BLOCK", 100)
    monkeypatch.setattr(memorization, "MAX_SEARCHED", 300)
    ids = list(range(256)) * 10
    folder = write_nanogpt(tmp_path, train=[*ids[:1000], 255, 1, 255, 2], val=ids)
    split = split_at(folder)
    read = []
    monkeypatch.setattr(
        ConcatenatedTokens, "read", lambda self, start, count: read.append((start, count)) or np.array(ids[start : start + count])
    )
    assert memorization.longest_memorized_span([460 % 256, 461 % 256, 7, 7], split.train) == 2, "in the middle"
    assert [start for start, _ in read] == [0, 452, 904]
    assert memorization.longest_memorized_span([115, 116, 117], split.train) < 3, "between the blocks"


def test_files_that_are_open_at_the_end_of_a_program_are_closed_silently(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"tokens")
    program = (
        "import numpy\nfrom pathlib import Path\nfrom gpt_pretrain.data import files as module\n"
        "files = module.LocalFiles(Path())\nprint(files.read_file('train.bin', 0, 6))\n"
        "numpy.kept = [files, module]\n"  # numpy outlives this module's own names
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("b'tokens'\n", "")
