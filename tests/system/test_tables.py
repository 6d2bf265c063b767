"""Tables of text."""

from gpt_pretrain.system.tables import format_table


def test_columns_are_aligned_and_numbers_are_on_the_right() -> None:
    rows = [["rank", "lr", "folder"], ["1", "1e-3", "a b"], ["-", "0.01", "c"], ["10", "1,000", "d"]]
    assert format_table(rows).splitlines() == [
        "rank     lr  folder",
        "   1   1e-3  a b",
        "   -   0.01  c",
        "  10  1,000  d",
    ]


def test_cells_are_neither_cut_nor_wrapped_nor_read_as_markup() -> None:
    long = "x" * 500
    heading, first, second = format_table([["a", "text"], ["[bold]1[/bold]", long], [":smile:", "y"]]).splitlines()
    assert heading.split() == ["a", "text"]
    assert first.split() == ["[bold]1[/bold]", long]
    assert second.split() == [":smile:", "y"]


def test_wide_characters_keep_columns_aligned() -> None:
    _, first, second = format_table([["name", "next"], ["東京", "a"], ["abcd", "b"]]).splitlines()
    assert (first, second) == ("東京  a", "abcd  b")
