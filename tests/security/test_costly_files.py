"""Vocabularies, tables, archives and stores that are made to cost much time, or to change other files."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch

from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.checkpoints.recognition.file_content import AmbiguousWeightsError, find_weights, read_weights
from gpt_pretrain.commands.command_line.hydra_grammar import to_hydra_override
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metrics_rows import read_rows as read_rows_of_metrics
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.pickle_rules import InertObject
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.yaml_files import parse_yaml_value
from gpt_pretrain.texts.containers.archives import _parse_extended, read_tar, read_zip
from gpt_pretrain.texts.containers.contents import open_contents
from gpt_pretrain.texts.containers.decompression import ContentLimit, DamagedArchiveError
from gpt_pretrain.texts.left_out import LeftOut
from gpt_pretrain.texts.records.json_values import MAX_GLUED, split_glued
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.formats.definition import canonical_fields
from gpt_pretrain.tokenizers.formats.ranks import _last_merge
from gpt_pretrain.tokenizers.formats.sentencepiece_model import Piece, _merges
from gpt_pretrain.tokenizers.tables import TableTokenizer
from tests.helpers import vocabularies
from tests.helpers.hostile_files import read_plain_pickle
from tests.helpers.resource_limits import allocating_at_most


def test_many_special_tokens_are_added_in_linear_time(tmp_path: Path) -> None:
    folder = vocabularies.byte_level(tmp_path / "vocabulary")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = [f"<special {number}>" for number in range(6000)]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    begin = time.process_time()
    tokenizer = build_tokenizer(str(folder))
    assert time.process_time() - begin < 5
    assert len({tokenizer.encode(token)[0] for token in config["additional_special_tokens"][:50]}) == 50


def test_a_table_with_long_tokens_takes_linear_time() -> None:
    with pytest.raises(DamagedFileError, match="more than 1,000 characters"):
        TableTokenizer("table", ["a ", "b", "x" * 20_000])
    tokenizer = TableTokenizer("table", ["a ", "a", "x" * 1000])
    begin = time.process_time()
    assert tokenizer.encode("a" * 50_000) == [1] * 50_000
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("size", ["\u00b2", "9" * 5000, "-1"])
def test_a_size_that_is_no_number_of_bytes_is_damage(size: str) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.txt")
        member.size, member.pax_headers = 3, {"size": size}
        archive.addfile(member, io.BytesIO(b"abc"))
    try:
        read = {name: b"".join(content) for name, content in read_tar([stream.getvalue()])}
    except DamagedArchiveError:
        return
    assert read == {"a.txt": b"abc"}


@pytest.mark.parametrize("header", ["(", "('u2',)", "{[]: 1}", "[]+1", "'\0'"])
def test_a_header_of_an_array_that_is_no_description_is_refused(tmp_path: Path, header: str) -> None:
    text = header.encode().ljust(117) + b"\n"
    (tmp_path / "train.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(100))
    with pytest.raises(UserError, match="is not an array of token ids"):
        open_corpus(LocalFiles(tmp_path), format_name="numpy")


def test_a_long_key_is_not_copied_for_each_part_below_it(tmp_path: Path) -> None:
    parts = {f"part {number}": [] for number in range(1000)} | {"wte.weight": torch.zeros(2, 2)}
    torch.save({"b": {"wte.weight": torch.zeros(2, 2)}, "a" * 100_000: parts}, tmp_path / "weights.pth")
    with allocating_at_most(megabytes=20), pytest.raises(UserError, match=r"holds 2 models \(b, a{200}\)"):
        read_weights(tmp_path / "weights.pth")


def test_names_within_a_module_are_short() -> None:
    inner = InertObject("inner", state={"_modules": {}, "_parameters": {f"p{n}": torch.zeros(1) for n in range(1000)}})
    inner.state["_parameters"]["wte.weight"] = torch.zeros(2, 2)
    module = InertObject("outer", state={"_modules": {"a" * 100_000: inner}, "_parameters": {}})
    with allocating_at_most(megabytes=20):
        weights = find_weights([module])
    assert weights is not None and len(weights.tensors) == 1001


def test_state_dicts_that_claim_much_are_not_compared() -> None:
    large = {f"p{number}": torch.zeros(1).expand(1000, 1000, 1000) for number in range(100)}
    state = {"wte.weight": torch.zeros(2, 2)} | large
    begin = time.process_time()
    with pytest.raises(AmbiguousWeightsError, match="holds 2 models"):
        find_weights({"a": state, "b": dict(state, **{"wte.weight": torch.zeros(2, 2)})})
    assert time.process_time() - begin < 5


def test_modules_that_share_their_parts_are_searched_a_few_times() -> None:
    shared = InertObject("shared", state={"_modules": {}, "_parameters": {f"p{n}": torch.zeros(1) for n in range(3000)}})
    modules = [InertObject("m", state={"_modules": {"part": shared}, "_parameters": {}}) for _ in range(5000)]
    begin = time.process_time()
    assert find_weights(modules) is None
    assert time.process_time() - begin < 2


def test_a_long_key_is_not_read_again_and_again_from_a_pickle() -> None:
    key = "a" * 10_000
    with pytest.raises(DamagedFileError, match="would copy far more"):
        read_plain_pickle(pickle.dumps([{key: number} for number in range(1000)]))
    assert len(read_plain_pickle(pickle.dumps([{key[:100]: number} for number in range(1000)]))) == 1000


def zip_with_members(count: int) -> bytes:
    """Return an archive with many empty members, whose list is stated to be small where old programs look for its size."""
    local = b"PK\3\4" + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entry = b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    start, size = len(local), count * len(entry)
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, start)
    record += b"PK\6\7" + struct.pack("<IQI", 0, start + size, 1)
    return local + count * entry + record + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 100, 0xFFFFFFFF, 0)


def test_a_zip_archive_in_a_small_file_has_few_members() -> None:
    assert len(list(read_zip(io.BytesIO(zip_with_members(3)), size=100, limit=ContentLimit(100)))) == 3
    assert len(list(read_zip(io.BytesIO(zip_with_members(100_000)), size=4_000_000, limit=ContentLimit(4_000_000)))) == 100_000
    archive = io.BytesIO(zip_with_members(100_000))
    with allocating_at_most(megabytes=5), pytest.raises(DamagedArchiveError, match="contains too many files"):
        list(read_zip(archive, size=20_000, limit=ContentLimit(20_000)))


def test_a_long_name_of_a_member_is_shown_in_part() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x" * 60_000 + ".jsonl"), io.BytesIO())
    (content,) = open_contents("a.tar", stream, size=len(stream.getvalue()), left_out=LeftOut())
    assert len(content.name) < 600 and content.name.endswith("xxx.jsonl")


def test_many_long_tokens_are_refused_before_their_merges_are_looked_for(tmp_path: Path) -> None:
    random = Random(0)
    tokens = [bytes([byte]) for byte in range(256)] + [random.randbytes(1000) for _ in range(300)]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (tmp_path / "own.tiktoken").write_bytes(b"\n".join(lines))
    begin = time.process_time()
    with pytest.raises(UserError, match="its tokens are far longer than those of a language"):
        build_tokenizer(str(tmp_path / "own.tiktoken"))
    assert time.process_time() - begin < 5


def test_the_last_merge_of_a_long_token_takes_quadratic_time_at_most() -> None:
    token = bytes(range(256)) * 8
    ranks = {bytes([byte]): byte for byte in range(256)} | {token[:1000]: 256, token[1000:]: 257, token: 258}
    begin = time.process_time()
    assert b"".join(_last_merge(token, ranks)) == token
    assert time.process_time() - begin < 5


TAGS = ["!!timestamp abc", "!!bool maybe", "!!int ''", "!!float '-'", "a: 1" + ":0" * 300 + ".0", "!!binary x", "!!omap [1]"]


@pytest.mark.parametrize("content", TAGS)
def test_yaml_with_a_tag_before_another_value_is_damaged(content: str) -> None:
    with pytest.raises(DamagedFileError, match="cannot be read as YAML"):
        parse_yaml_value(content)


def test_a_value_of_many_aliases_is_not_written_out() -> None:
    parts = ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
    override = f"a=[&a0 ['x'], {parts}]"
    assert to_hydra_override(override, sweep=False).startswith("a=[")
    assert len(to_hydra_override(override, sweep=False)) < 1000


def test_a_row_of_metrics_ends_with_its_line(tmp_path: Path) -> None:
    lines = ["step,loss\n", '1,"\n', *(['",' + "ab," * 10_000 + '"\n'] * 100), "2,0.5\n"]
    (tmp_path / "metrics.csv").write_text("".join(lines))
    with allocating_at_most(megabytes=10):
        rows_read = list(read_rows_of_metrics(tmp_path / "metrics.csv"))
    assert rows_read[-1] == {"step": "2", "loss": "0.5"}


def test_damaged_archives_that_should_be_weights_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("a.txt", "One.")
    data = (tmp_path / "a.bin").read_bytes()
    start = data.index(b"PK\1\2")
    for change in (b"PK\0\0", b"PK\1\2" + b"\xff" * 42):
        (tmp_path / "a.bin").write_bytes(data[:start] + change + data[start + len(change) :])
        with pytest.raises(UserError, match=r"a\.bin"):
            open_weights(tmp_path / "a.bin")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("one", "two"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    (tmp_path / "b.bin").write_bytes(stream.getvalue()[:512] + b"x" * 600)
    with pytest.raises(UserError, match=r"is a tar archive \(one\), not weights"):
        open_weights(tmp_path / "b.bin")


NAME = "q" * 100_000
SETTINGS = ", ".join(f"k{number}: 1" for number in range(20_000))
ALIASES = ", ".join(f"k{number}: *x " for number in range(20_000))


@pytest.mark.parametrize("content", [f"? {NAME}\n: {{{SETTINGS}}}", f"a: {{b: &x {NAME}, {ALIASES}}}"])
def test_settings_whose_names_or_texts_are_long_and_repeated_are_refused(content: str) -> None:
    with pytest.raises(DamagedFileError, match="repeated far too often"):
        parse_yaml_value(content)


def test_json_whose_names_are_long_and_repeated_is_refused() -> None:
    values = {f"k{number}": 1 for number in range(20_000)}
    assert parse_json(json.dumps({"short": {"names": values}}))
    with pytest.raises(DamagedFileError, match="repeated far too often"):
        parse_json(json.dumps({NAME: values}))


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer"])
@pytest.mark.parametrize(("kind", "count"), [("ByteLevel", 3), ("BertNormalizer", 4), ("Lowercase", 70)])
def test_steps_that_make_a_text_longer_and_longer_are_refused(part: str, kind: str, count: int) -> None:
    def fields(count: int) -> dict[str, object]:
        steps = {"type": "Sequence", part.removesuffix("r") + "rs": [{"type": kind}] * count}
        return {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, part: steps}

    canonical_fields(fields(1))
    with pytest.raises(DamagedFileError, match=f"its {part} (may make a text|has 70 steps)"):
        canonical_fields(fields(count))


def test_a_table_of_replacements_counts_as_often_as_it_is_applied() -> None:
    table = base64.b64encode(struct.pack("<I", 0) + b"x" * 20 + b"\0").decode()
    step = {"type": "Precompiled", "precompiled_charsmap": table}
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    canonical_fields({"model": model, "normalizer": step})
    with pytest.raises(DamagedFileError, match="400 times as long"):
        canonical_fields({"model": model, "normalizer": {"type": "Sequence", "normalizers": [step, step]}})


def test_long_pieces_are_refused_before_their_merges_are_looked_for() -> None:
    pieces = [Piece("a" * length) for length in range(1, 1001)]
    with pytest.raises(DamagedFileError, match="its tokens are far too long"):
        _merges(pieces, {piece.text: token_id for token_id, piece in enumerate(pieces)})


def test_a_member_of_an_archive_has_few_fields() -> None:
    assert _parse_extended(b"10 path=a\n" + b"14 comment=ab\n" * 900) == {"path": "a"}
    with pytest.raises(DamagedArchiveError, match="1,000 fields"):
        _parse_extended(b"3 \n" * 1001)


def test_few_objects_stand_on_one_line() -> None:
    assert len(split_glued(b'{"a":1}' * MAX_GLUED)) == MAX_GLUED
    line = b'{"a":1}' * (MAX_GLUED + 10)
    assert split_glued(line) == [line]
