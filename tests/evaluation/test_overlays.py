"""Overlays show the picture that was evaluated."""

import io

import numpy as np
import pytest
from PIL import Image

from autoselect import read_image
from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.answers.answering import FULL, Column, Plan
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.figures import style
from autoselect.evaluation.figures.overlays import Overlay, OverlayRow, faded, patch_overlays
from autoselect.evaluation.figures.style import new_figure, title
from autoselect.evaluation.loading import load_pair
from autoselect.evaluation.report.examples import overlay_rows
from autoselect.evaluation.samples import EvaluationSample
from tests.data.shard_samples import sideways


def test_a_picture_is_drawn_upright_and_on_white():
    stored = Image.open(io.BytesIO(sideways()))
    seen = read_image(stored)
    assert seen.size == (40, 64) and seen.getpixel((1, 63)) == (255, 255, 255)
    whole = faded(stored, (2, 2), range(4))
    assert np.array_equal(whole, np.asarray(seen, dtype=np.float32) / 255)
    panels = (Overlay("full", None, "a", True), Overlay("2", [0, 3], "b", False))
    figure = patch_overlays([OverlayRow(stored, "which?", "a", panels)], (2, 2))
    full, pruned = (axes.get_images()[0].get_array() for axes in figure.axes)
    assert np.array_equal(full, np.asarray(seen))
    assert np.array_equal(pruned, faded(seen, (2, 2), [0, 3]))


@pytest.mark.parametrize("text", [r"$\foo$", "a $x^$ b", "$5 and $6", r"\$ $", "100 % of $"])
def test_dollars_in_questions_answers_and_tasks_are_drawn_as_they_are(text):
    panels = (Overlay("full", None, text, False), Overlay("2", [0], text, True))
    row = OverlayRow(Image.new("RGB", (8, 8)), text, text, panels)
    patch_overlays([row], (2, 2)).savefig(io.BytesIO())
    figure = new_figure(2, 2)
    axes = figure.subplots()
    title(axes, text)
    figure.savefig(io.BytesIO())
    drawn = axes.get_title("left")
    assert drawn.replace(r"\$", "$") == text


@pytest.mark.parametrize(
    ("words", "most"), [("a long caption that goes on ", 31), ("很长的说明", 15)]
)
def test_long_questions_and_answers_stay_below_their_panel(words, most):
    long = words * 40
    panels = (Overlay("all", None, long, False), Overlay("2", [0], long, True))
    figure = patch_overlays([OverlayRow(Image.new("RGB", (8, 8)), long, long, panels)], (2, 2))
    full, pruned = (axes.get_xlabel() for axes in figure.axes)
    *lines, truth = full.split("\n")
    assert len(lines) == len(pruned.split("\n")) == 3 and truth.startswith("truth: ")
    assert max(map(len, [*lines, truth])) <= most + len(" ✗") and lines[-1].endswith("… ✗")
    (question,) = figure.axes[0].texts
    assert len(question.get_text()) <= 2 * 31 and "\n" not in question.get_text()
    short = (Overlay("all", None, "red", False), Overlay("2", [0], "", True))
    figure = patch_overlays([OverlayRow(Image.new("RGB", (8, 8)), "q", "blue", short)], (2, 2))
    shown = [axes.get_xlabel() for axes in figure.axes]
    assert shown == ["red ✗   truth: blue", "(nothing) ✓"]


def test_boxes_and_overlays_are_those_of_the_part_that_the_encoder_sees(
    model_folder, selector_folder
):
    vlm, selector = load_pair(model_folder, selector_folder, "cpu")
    picture = Image.new("RGB", (192, 96))  # the processor cuts out the middle half
    box = (72.0, 24.0, 120.0, 72.0)
    sample = EvaluationSample(
        "a", (picture,), ("is there a star ?",), (("no",),), ("t",), ((box,),)
    )
    ((image,),) = AskedVLM(vlm).encode([sample]).images
    assert np.abs(np.subtract(image.boxes, [(0.25, 0.25, 0.75, 0.75)])).max() < 0.02
    plan = Plan((), (4,), 144)
    answers = {str(column): [["no"]] for column in (Column(FULL, 0), Column(SELECTOR, 4))}
    (row,) = overlay_rows(vlm, selector, [sample], [sample], answers, plan, [(0, 0)])
    assert row.image.size == (96, 96)


def test_letters_that_the_usual_font_lacks_come_from_an_installed_one(
    tmp_path, monkeypatch, caplog
):
    """Here that is STIX, which matplotlib brings, for a letter that DejaVu Sans lacks."""
    pictures = {}
    for names in ((), ("Not Installed", "STIXGeneral")):
        monkeypatch.setattr(style, "FONTS_OF_OTHER_SCRIPTS", names)
        style.fonts_of_other_scripts.cache_clear()
        figure = new_figure(2, 1)
        title(figure.subplots(), "a \u20dd")
        caplog.clear()
        style.save(figure, tmp_path / "figure.png")
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == (0 if names else 1), said
        assert names or "figure.png shows boxes for letters" in said[0]
        pictures[names] = (tmp_path / "figure.png").read_bytes()
    style.fonts_of_other_scripts.cache_clear()
    assert len(set(pictures.values())) == 2
