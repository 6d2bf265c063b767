import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.data import token_cache as module
from gpt_pretrain.data.token_cache import sample_split, tokenize_text
from gpt_pretrain.data.token_stream import Shard, TokenSplit, TokenStream
from gpt_pretrain.errors import UserError
from gpt_pretrain.system import signing
from gpt_pretrain.texts import text as text_module
from gpt_pretrain.texts.text import Text
from gpt_pretrain.tokenizers.base import decode
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.helpers.training_runs import Printed, Train

GPT2, BYTE = build_tokenizer("gpt2"), build_tokenizer("byte")


def text_of(folder: Path, *contents: str) -> Text:
    files = []
    for number, content in enumerate(contents):
        files.append(folder / f"{number}.txt")
        files[-1].write_text(content, encoding="utf-8", newline="")
    return Text(tuple(files))


@pytest.mark.parametrize("tokenizer", [GPT2, BYTE], ids=lambda t: t.name)
@pytest.mark.parametrize("train_ratio", [0.9, 0.5])
def test_the_split_matches_its_definition(tmp_path: Path, story: str, tokenizer: module.Tokenizer, train_ratio: float) -> None:
    split = tokenize_text(text_of(tmp_path, story), tokenizer, train_ratio=train_ratio, cache_dir=tmp_path)
    cut = int(train_ratio * len(story))
    assert split.train.read().tolist() == tokenizer.encode(story[:cut])
    assert split.val.read().tolist() == tokenizer.encode(story[cut:])
    assert split.characters == len(story)


def test_the_tokens_do_not_depend_on_the_size_of_the_pieces(tmp_path: Path, story: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(tmp_path, story)
    whole = tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path / "a")
    monkeypatch.setattr(text_module, "PIECE_CHARS", 7)
    pieces = tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path / "b")
    assert whole.train.sha256 == pieces.train.sha256
    assert whole.val.sha256 == pieces.val.sha256


def test_the_split_does_not_cut_the_end_of_text_between_files(tmp_path: Path) -> None:
    split = tokenize_text(text_of(tmp_path, "a" * 10, "b" * 10), BYTE, train_ratio=0.5, cache_dir=tmp_path)
    assert split.train.read().tolist() == [97] * 10  # the middle of 33 characters is inside the separator
    assert split.val.read().tolist() == [256] + [98] * 10


def test_the_markers_between_documents_are_not_counted_as_characters(tmp_path: Path) -> None:
    texts = [f"Document {number}. " * (1 + number % 3) for number in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for _ in ("tokenized", "from the cache"):
        split = tokenize_text(Text((tmp_path / "a.jsonl",)), GPT2, train_ratio=0.5, cache_dir=tmp_path)
        assert split.characters == sum(map(len, texts))
    train, val = (decode(GPT2, part.read().tolist()) for part in (split.train, split.val))
    assert train + val == "<|endoftext|>".join(texts)
    assert abs(len(train) - len(val)) <= len("<|endoftext|>"), "the split goes by positions in the marked text, as before"


def test_tokens_stay_on_disk_and_take_two_bytes_if_the_vocabulary_allows(tmp_path: Path, story: str) -> None:
    split = tokenize_text(text_of(tmp_path, story), GPT2, train_ratio=0.9, cache_dir=tmp_path)
    assert split.train.read(0, 3).dtype == np.uint16
    assert split.train.read(7, 3).tolist() == GPT2.encode(story)[7:10]
    assert path_of(split.train).stat().st_size == 2 * split.train.count
    assert len(pickle.dumps(split.train)) < 1000, "the tokens must not be sent to worker processes"
    assert pickle.loads(pickle.dumps(split.train)).read(5, 1) == split.train.read(5, 1)


def test_a_file_that_is_truncated_during_training_is_reported(tmp_path: Path, story: str) -> None:
    split = tokenize_text(text_of(tmp_path, story), GPT2, train_ratio=0.9, cache_dir=tmp_path)
    with open(path_of(split.train), "r+b") as stream:
        stream.truncate(100)
    with pytest.raises(UserError, match="has been truncated"):
        split.train.read(48, 3)


class WideTokenizer:
    """A byte tokenizer with ids beyond 16 bits."""

    name, vocab_size, eos_id, unknown_id = "wide", 70_000, 69_999, None

    def encode_ordinary(self, text: str) -> np.ndarray:
        return np.array([65_600 + byte for byte in text.encode()], np.uint32)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id - 65_600])


def test_large_vocabularies_take_four_bytes_per_token(tmp_path: Path) -> None:
    split = tokenize_text(text_of(tmp_path, "hello world, hello"), WideTokenizer(), train_ratio=0.5, cache_dir=tmp_path)
    assert split.train.read().dtype == np.uint32
    assert split.train.read().tolist() == WideTokenizer().encode_ordinary("hello wor").tolist()


def test_a_second_start_does_not_tokenize_again(tmp_path: Path, story: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(tmp_path, story)
    first = tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path)
    monkeypatch.setattr(GPT2, "encode_ordinary", lambda text: pytest.fail("tokenized again"))
    assert tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path) == first


def test_another_text_tokenizer_or_ratio_gets_another_cache(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = text_of(tmp_path / "a", "hello world"), text_of(tmp_path / "b", "hello worlds")
    splits: list[TokenSplit] = [
        tokenize_text(text, tokenizer, train_ratio=ratio, cache_dir=tmp_path)
        for text, tokenizer, ratio in [(a, BYTE, 0.5), (b, BYTE, 0.5), (a, GPT2, 0.5), (a, BYTE, 0.6)]
    ]
    assert len({path_of(split.train) for split in splits}) == 4


def damage_truncate(folder: Path) -> None:
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-2])


def damage_flip(folder: Path) -> None:
    data = bytearray((folder / "val.bin").read_bytes())
    data[3] ^= 1
    (folder / "val.bin").write_bytes(data)


def damage_remove(folder: Path) -> None:
    (folder / "train.bin").unlink()


def entries(cache_dir: Path) -> list[Path]:
    """Return what is in the token cache besides its mark."""
    return [path for path in (cache_dir / "tokens").iterdir() if path.name != "CACHEDIR.TAG"]


def path_of(file: TokenStream) -> Path:
    """Return the path of a token file."""
    assert isinstance(file, Shard)
    return Path(file.files.location) / file.name


def damage_json(folder: Path) -> None:
    (folder / "split.json").write_text('{"train": 3}')


def damage_path(folder: Path) -> None:
    fields = json.loads((folder / "split.json").read_text())
    fields["train"]["path"] = "/etc/passwd"
    (folder / "split.json").write_text(json.dumps(fields))


def damage_count(folder: Path) -> None:
    fields = json.loads((folder / "split.json").read_text())
    fields["train"]["count"] = None
    (folder / "split.json").write_text(json.dumps(fields))


def test_a_cache_of_another_home_folder_is_not_called_damaged(
    tmp_path: Path, story: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of(tmp_path, story)
    tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path)
    monkeypatch.setattr(signing, "_key", lambda: b"k" * 32)
    tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path)
    assert "was changed, or made with another home folder or by another user, and will be rebuilt." in caplog.text
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_remove, damage_json, damage_path, damage_count])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, story: str, damage: object, caplog: pytest.LogCaptureFixture) -> None:
    text = text_of(tmp_path, story)
    first = tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path)
    damage(path_of(first.train).parent)  # type: ignore[operator]
    again = tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path)
    what = "was changed, or made" if damage in (damage_path, damage_count) else "is damaged or outdated and"
    assert caplog.text.count(what) == caplog.text.count("will be rebuilt") == 1
    assert again == first
    assert np.array_equal(again.train.read(), np.fromfile(path_of(first.train), "<u2"))
    assert [path.name for path in entries(tmp_path)] == [path_of(first.train).parent.name]


def build(folder: Path) -> str:
    return tokenize_text(Text((folder / "0.txt",)), BYTE, train_ratio=0.9, cache_dir=folder).train.sha256


def test_several_processes_may_build_the_same_cache_together(tmp_path: Path, story: str) -> None:
    text_of(tmp_path, story * 20)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        hashes = pool.map(build, [tmp_path] * 8)
    assert len(set(hashes)) == 1
    assert len(entries(tmp_path)) == 1


def test_a_cache_that_another_process_has_just_built_is_kept(tmp_path: Path, story: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, real, built = text_of(tmp_path, story), module._write_tokens, list[int]()

    def write_late(*args: object) -> dict[str, object]:
        monkeypatch.setattr(module, "_write_tokens", real)
        built.append(path_of(tokenize_text(text, BYTE, train_ratio=0.9, cache_dir=tmp_path).train).stat().st_ino)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_write_tokens", write_late)
    split = tokenize_text(text, BYTE, train_ratio=0.9, cache_dir=tmp_path)
    assert built == [path_of(split.train).stat().st_ino]
    assert len(entries(tmp_path)) == 1


def test_an_interrupted_build_leaves_no_files(tmp_path: Path, story: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_write_tokens", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tokenize_text(text_of(tmp_path, story), BYTE, train_ratio=0.9, cache_dir=tmp_path)
    assert entries(tmp_path) == []


def test_empty_text_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The text is empty: .*0\.txt"):
        tokenize_text(text_of(tmp_path, ""), BYTE, train_ratio=0.9, cache_dir=tmp_path)


def test_a_cache_folder_that_cannot_be_written_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written.*data\.cache_dir="):
        tokenize_text(text_of(tmp_path, "some text"), BYTE, train_ratio=0.9, cache_dir=tmp_path / "file")


def test_a_run_without_a_home_that_can_be_written_keeps_its_tokens_in_a_temporary_folder(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    home = tmp_path / "home"
    home.write_text("a file, below which even root can make no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    train("trainer.max_steps=1", "data.cache_dir=null", run_dir=tmp_path / "run")
    [line] = [line for line in printed() if f"{home}/gpt-pretrain/tokens cannot be written" in line]
    assert "data.cache_dir=FOLDER" in line and "are kept in" in line
    with pytest.raises(UserError, match=r"cannot be written.*data\.cache_dir="):
        train("trainer.max_steps=1", f"data.cache_dir='{home}'", run_dir=tmp_path / "other")


def test_samples_come_from_all_parts_of_the_training_and_the_validation_set(tmp_path: Path) -> None:
    content = "".join(chr(ord("ä") + number // 1000) for number in range(20_000))
    file = tmp_path / "text.txt"
    file.write_text(content, encoding="utf-8")
    train, held_out, n_bytes = sample_split(Text((file,)), train_ratio=0.8, train=1600, held_out=400, parts=16)
    assert set(train) == set(content[:16_000]) and len(train) == 1600
    assert set(held_out) == set(content[16_000:]) and len(held_out) == 400
    assert n_bytes == len(content[:16_000].encode())
    whole = sample_split(Text((file,)), train_ratio=0.8, train=10**6, held_out=10**6, parts=16)
    assert whole[:2] == (content[:16_000], content[16_000:])
