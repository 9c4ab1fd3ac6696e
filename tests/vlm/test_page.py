"""The committed docs/backbones.md is what its checks find, cell by cell."""

import inspect
from contextlib import nullcontext
from pathlib import Path

import pytest
import transformers as hf

from tests.vlm.backbones_names import NAMES
from tests.vlm.backbones_page import COLUMNS, PAGE, has_cell, page, shown
from tests.vlm.tiny import ALL

CELLS = [(name, column) for name in sorted(ALL) for column in COLUMNS if has_cell(name, column)]


def test_the_page_of_backbones_is_up_to_date():
    """Write it again with: python -m tests.vlm.backbones_page"""
    assert PAGE.read_text() == page(shown)


@pytest.mark.parametrize("name, column", CELLS)
def test_a_cell_of_the_page_says_what_its_checks_find(name, column):
    expected = nullcontext() if shown(name, column) else pytest.raises(AssertionError)
    with expected:
        COLUMNS[column](name)


def test_every_supported_type_has_a_name_that_people_search_for():
    assert set(NAMES) == set(ALL)
    titles = [title for title, _ in NAMES.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("kind", [kind for kind, (_, hub) in NAMES.items() if hub])
def test_a_hub_name_stands_in_the_sources_of_its_type(kind):
    sources = Path(inspect.getfile(hf.CONFIG_MAPPING[kind])).parent.glob("*.py")
    assert any(NAMES[kind][1] in source.read_text() for source in sources)
