"""A cell of a Markdown table holds any text."""

import pytest

from autoselect.files.markdown import table_row


@pytest.mark.parametrize(
    ("cells", "row"),
    [
        (["a", 1, 0.5], "| a | 1 | 0.5 |"),
        (["a|b", "`x=a|b`"], "| a\\|b | `x=a\\|b` |"),
        (["a\\|b"], "| a\\|b |"),
        (["two\nlines\r\nand  more ", ""], "| two lines and more |  |"),
    ],
)
def test_bars_and_line_breaks_stay_inside_their_cell(cells, row):
    assert table_row(cells) == row
