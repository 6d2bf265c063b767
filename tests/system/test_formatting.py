"""Numbers in the form in which they are shown."""

import math

import pytest

from gpt_pretrain.system import formatting


@pytest.mark.parametrize(
    ("value", "text"), [(1.26, "1.3"), (2, "2.0"), (None, "-"), ("3", "-"), (math.nan, "-"), (math.inf, "-")]
)
def test_values_that_are_no_finite_numbers_are_shown_as_a_dash(value: object, text: str) -> None:
    assert formatting.format_number(value, ".1f") == text


def test_the_middle_of_a_text_is_left_out_only_if_that_makes_it_shorter() -> None:
    assert formatting.shorten_middle("a" * 70, 60) == "a" * 70
    assert formatting.shorten_middle("a" * 99, 60) == f"{'a' * 40} ... (39 more characters) ... {'a' * 20}"


def test_perplexities_and_counts() -> None:
    assert (formatting.format_perplexity(0.0), formatting.format_perplexity(51.0)) == ("1.0", "beyond e^50")
    assert (formatting.format_count(1, "step"), formatting.format_count(1_000, "step")) == ("1 step", "1,000 steps")


def test_a_number_from_a_file_is_formatted_whatever_its_type() -> None:
    assert [formatting.format_number(value, ",d") for value in (1234, 1234.5, True, 10**400, float("nan"), "3", None)] == [
        *("1,234", "1,234", "-", "-", "-", "-", "-")
    ]
