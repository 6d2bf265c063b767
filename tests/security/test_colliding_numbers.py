"""Numbers in files that are chosen so that they collide as keys of a dict, or as items of a set."""

from __future__ import annotations

import json
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml

from gpt_pretrain.checkpoints.recognition.file_content import read_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.system import number_keys
from gpt_pretrain.system.number_keys import KeyCounter
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.yaml_files import parse_yaml_value
from gpt_pretrain.texts.parquet.footer import _Reader
from gpt_pretrain.texts.parquet.pages import _read_struct as read_page_struct
from gpt_pretrain.tokenizers.formats import definition
from gpt_pretrain.tokenizers.formats.added_tokens import read_beside
from gpt_pretrain.tokenizers.formats.definition import canonical_fields
from gpt_pretrain.tokenizers.formats.nanogpt_meta import _inverse, read_meta
from gpt_pretrain.tokenizers.formats.sentencepiece_model import sentencepiece_fields
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer
from tests.helpers.hostile_files import read_plain_pickle
from tests.helpers.resource_limits import within

MODULUS = (1 << 61) - 1  # Python's hash of a whole number is its remainder.
BITS = 17  # of the size of the table in which numbers collide
HIGHEST = 800_000  # number


@cache
def colliding() -> list[int]:
    """Return small numbers of which the last 18,000 search 30,000 places each: Python's path from place i goes on to 5 i + 1."""
    size, place, first = 1 << BITS, 0, list[int]()
    for _ in range(size // 2):
        first.append(place)
        place = (5 * place + 1) % size
    taken, rng, last = set(first), Random(1), set[int]()
    while len(last) < size // 7:
        number = rng.randrange(size, HIGHEST)
        rest, place = number, number % size
        while place in taken and rest:
            rest >>= 5
            place = (5 * place + rest + 1) % size
        if place in taken:
            last.add(number)
    return first + sorted(last)


def test_numbers_without_order_are_few_among_the_keys_of_a_pickle() -> None:
    data = pickle.dumps(dict.fromkeys(colliding()))
    with within(1, 100), pytest.raises(DamagedFileError, match="more than 10,000 keys of its dicts are numbers in no order"):
        read_plain_pickle(data)


@pytest.mark.parametrize(
    "name",
    ["{}", "-{}", "{}.5", "0x{:x}", "!!int '{}'", "!!float '{}'", "2026-01-01 00:00:00.{:06}", "? {}\n", "&a{0} {0}"],
)
def test_few_names_in_yaml_are_numbers_or_dates(name: str) -> None:
    names = [name.format(number) for number in range(1001)]
    for content in ("\n".join(f"{one}: 1" for one in names), f"a: [{{b: !!set {{{', '.join(names)}}}}}]"):
        if "?" in name and "!!set" in content:
            continue
        with pytest.raises(DamagedFileError, match="names in its mappings are no texts"):
            parse_yaml_value(content)
    assert len(parse_yaml_value("\n".join(f"{one}: 1" for one in names[:1000]))) == 1000


def test_any_number_of_names_in_yaml_are_texts_and_values_are_numbers() -> None:
    table = {f"k{number}": {"a": number, str(number): [number]} for number in range(1001)}
    assert parse_yaml_value(yaml.safe_dump(table)) == table
    assert parse_yaml_value(yaml.safe_dump(list(range(2000)))) == list(range(2000))


@pytest.mark.parametrize("first", [0, 1])
def test_any_number_of_keys_may_follow_one_another(first: int) -> None:
    table = dict.fromkeys(range(first, 30_000 + first))
    assert read_plain_pickle(pickle.dumps(table)) == table


def test_a_key_that_is_set_again_and_again_is_counted() -> None:
    again = b"\x80\x02}(" + b"".join(b"M" + struct.pack("<H", number) + b"N" for number in range(1000)) + b"u"
    assert len(read_plain_pickle(again + b"M\xe7\x03Ns" * 10_000 + b".")) == 1000
    with pytest.raises(DamagedFileError, match="in no order"):
        read_plain_pickle(again + b"M\xe7\x03Ns" * 10_001 + b".")


@pytest.mark.parametrize(
    "table", [lambda numbers: {"a": set(numbers)}, lambda numbers: OrderedDict.fromkeys(numbers)], ids=["set", "OrderedDict"]
)
def test_numbers_without_order_are_few_in_what_a_checkpoint_holds(tmp_path: Path, table: Callable[[Iterable[int]], Any]) -> None:
    torch.save(table(colliding()), tmp_path / "a.pth")
    with within(2, 200), pytest.raises(UserError, match="numbers in no order"):
        read_weights(tmp_path / "a.pth")


def test_fractions_with_one_hash_are_few_in_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_keys, "MAX_ODD_KEYS", 10)
    torch.save({"a": {number + 0.5 for number in range(11)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="more than 10 keys of its dicts are tuples, large numbers or fractions"):
        read_weights(tmp_path / "a.pth")


def test_few_keys_may_be_any_small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_keys, "MAX_UNORDERED_KEYS", 0)
    counter = KeyCounter()
    for n_before in range(256):
        counter.add(7 * n_before, n_before)
    counter.add("text", 256)
    with pytest.raises(DamagedFileError, match="in no order"):
        counter.add(7 * 256, 256)


def test_the_numbers_of_shared_values_in_a_pickle_follow_one_another() -> None:
    def numbered(numbers: Iterable[int]) -> bytes:
        return b"\x80\x02}" + b"".join(b"p%d\n" % number for number in numbers) + b"."

    assert read_plain_pickle(numbered([1, 2, 3, 0, 104, 5])) == {}
    for number in (101, 2**32, 2**61 - 1, -(2**61 - 1), -1):
        with pytest.raises(DamagedFileError, match="impossible number"):
            read_plain_pickle(numbered([number]))


def test_heads_that_a_file_states_cannot_have_one_hash(tmp_path: Path) -> None:
    settings = [{"n_head": 3 + number * MODULUS} for number in range(20_000)]
    torch.save({"model": {"wte.weight": torch.zeros(4, 4)}, "settings": settings}, tmp_path / "a.pth")
    with within(1.5, 200):
        assert read_weights(tmp_path / "a.pth").likely_heads is None


def test_problems_of_many_settings_are_found_in_linear_time(tmp_path: Path) -> None:
    settings = [{"activation": f"relu{number}"} for number in range(20_000)]
    torch.save({"model": {"wte.weight": torch.zeros(4, 4)}, "settings": settings}, tmp_path / "a.pth")
    with within(1.5, 200):
        assert len(read_weights(tmp_path / "a.pth").problems) == 20_000


def test_the_ids_of_added_tokens_are_no_keys() -> None:
    table = {str(number): 0 for number in colliding()}
    content = json.dumps({"added_tokens_decoder": table}).encode()
    with within(1, 200):
        assert not read_beside(content, None, None).tokens


def test_the_ids_of_a_vocabulary_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definition, "MAX_SPREAD", 10)  # Filling the gaps between the numbers would take most of the time.
    vocab = {f"t{number}": token_id for number, token_id in enumerate(colliding())}
    fields = {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}}
    with within(2, 300):
        tokenizer = VocabularyTokenizer("words", fields, None)
    assert [tokenizer.token_bytes(token_id) for token_id in (-1, 0, 1, tokenizer.vocab_size)] == [b"", b" t0", b" t1", b""]
    with pytest.raises(DamagedFileError, match="two of its tokens have the same id"):
        canonical_fields({"model": {"type": "WordLevel", "vocab": {"a": 1, "b": 0, "c": 1}}})


def test_the_ids_of_a_table_are_no_keys() -> None:
    numbers = [*colliding(), *sorted(set(range(HIGHEST)) - set(colliding()))]
    ids = {f"t{number}": number for number in numbers}
    with within(1, 100):
        assert _inverse(ids)[:2] == ["t0", "t1"]
    with pytest.raises(DamagedFileError, match="two tokens of its stoi have the same id"):
        read_meta(pickle.dumps({"stoi": {"a": 0, "b": 0}}), end_of_text=False)


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def test_the_fields_of_a_sentencepiece_model_that_are_not_used_are_no_keys() -> None:
    settings = b"".join(varint(number << 3) + b"\0" for number in colliding() if number)
    with within(2, 100), pytest.raises(DamagedFileError, match="it has 0 tokens"):
        sentencepiece_fields(b"\x12" + varint(len(settings)) + settings)


@pytest.mark.parametrize(("number", "taken"), [(1001, 1001), (-1, -1), (1 << 15, -(1 << 15)), (2 + (1 << 62), 2)])
def test_numbers_of_fields_of_parquet_have_16_bits_as_in_arrow(number: int, taken: int) -> None:
    data = b"\x05" + varint(abs(number) * 2 - (number < 0)) + b"\x02\0"
    assert read_page_struct(data, 0, depth=0)[0] == {taken: 1}


def test_fields_of_parquet_do_not_collide() -> None:
    data = b"".join(b"\x05" + varint(number << 1) + b"\x02" for number in colliding() if number) + b"\0"
    with within(2, 100):
        _Reader(data).read_struct(0, depth=0)
