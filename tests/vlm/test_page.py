"""The committed docs/backbones.md is what its tests give today."""

from tests.vlm.backbones_page import PAGE, page


def test_the_page_of_backbones_is_up_to_date():
    """Write it again with: python -m tests.vlm.backbones_page"""
    assert PAGE.read_text() == page()
