"""Durations and amounts in the spellings that people use."""

import math

import pytest

from gpt_pretrain.system.amounts import is_quantity, parse_amount, parse_duration

DURATIONS = {
    "90s": 90,
    "90 sec": 90,
    "20m": 1200,
    "20 MIN": 1200,
    "2hours": 7200,
    "1h30m": 5400,
    "1 h 30 min": 5400,
    "1hr 30 mins 5 seconds": 5405,
    "8h:57m:28s": 32_248,
    "1.5h": 5400,
    "2 days": 172_800,
    "1w": 604_800,
    "500ms": 0.5,
    "1:30:00": 5400,
    "00:01:30:00": 5400,
    "1-12:00:00": 129_600,
    " 90s ": 90,
    "0s": 0,
    "1_000s": 1000,
    "1e3s": 1000,
}


@pytest.mark.parametrize("text", DURATIONS)
def test_a_duration_is_read_as_people_type_it(text: str) -> None:
    assert parse_duration(text) == DURATIONS[text]


@pytest.mark.parametrize(
    "text",
    ["", "20", "m", "-5m", "1:30", "30m1h", "20m5m", "20 m 5", "1,5h", "5 fortnights", "\u0663m", "1h30", "s90", "9" * 200 + "s"],
)
def test_what_is_no_duration_is_not_read(text: str) -> None:
    assert parse_duration(text) is None


def test_a_duration_beyond_all_bounds_is_infinite() -> None:
    assert parse_duration("9e99 weeks") == 9e99 * 604_800 < math.inf


AMOUNTS = {
    ("1e9", "tokens"): 1_000_000_000,
    ("100M", "tokens"): 100_000_000,
    ("1.5 billion tokens", "tokens"): 1_500_000_000,
    ("10B", "tokens"): 10_000_000_000,
    ("10bn", "tokens"): 10_000_000_000,
    ("2 trillion tokens", "tokens"): 2_000_000_000_000,
    ("10k steps", "steps"): 10_000,
    ("50GB", "bytes"): 50_000_000_000,
    ("50 GiB", "bytes"): 50 * 1024**3,
    ("512 B", "bytes"): 512,
    ("1Mi", "bytes"): 1024**2,
    ("8Ki", "tokens"): 8192,
    ("1 PFLOP", "flops"): 10**15,
    ("3e18 FLOPs", "flops"): 3 * 10**18,
    ("1_000", "steps"): 1000,
}


@pytest.mark.parametrize(("text", "noun"), AMOUNTS)
def test_an_amount_is_read_as_people_type_it(text: str, noun: str) -> None:
    assert parse_amount(text, noun) == AMOUNTS[text, noun]


@pytest.mark.parametrize(
    ("text", "noun"), [("", "tokens"), ("many", "steps"), ("1x", "tokens"), ("1 GB", "steps"), ("1e", "tokens"), ("-1", "bytes")]
)
def test_what_is_no_amount_is_not_read(text: str, noun: str) -> None:
    assert parse_amount(text, noun) is None


def test_a_noun_may_be_needed() -> None:
    assert parse_amount("1e9", "tokens", needs_noun=True) is None
    assert parse_amount("1e9 tokens", "tokens", needs_noun=True) == 1_000_000_000


def test_a_quantity_is_a_duration_or_an_amount() -> None:
    assert [is_quantity(text) for text in ("1 h 30 m", "20 min", "1e9 tokens", "50 GB", "1m 5m", "20 foo")] == [True] * 4 + [
        False
    ] * 2
