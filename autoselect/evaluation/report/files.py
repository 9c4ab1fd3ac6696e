"""Write the files of a finished evaluation."""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.analyses.run import ANALYSES, Subject
from autoselect.evaluation.answers.answering import Plan
from autoselect.evaluation.asking.replies import Replies, texts_of
from autoselect.evaluation.figures.curves import retention_curves
from autoselect.evaluation.figures.overlays import patch_overlays
from autoselect.evaluation.figures.style import save
from autoselect.evaluation.report.examples import choose_places, lost_places, overlay_rows
from autoselect.evaluation.report.html import html_report
from autoselect.evaluation.report.markdown import markdown
from autoselect.evaluation.report.tables import LEFT_OUT, analysis_note
from autoselect.evaluation.samples import EvaluationSet
from autoselect.evaluation.scores.scoring import Answered
from autoselect.files.atomic import replacing, write_text

logger = logging.getLogger(__name__)
ANALYSED_IMAGES = 128
ANALYSED = ("similarity", "frequency", "gates")
FIGURES = tuple(f"{n}.png" for n in ("retention", "overlays", "audit", *ANALYSED))
FAILED = "failed-*.png"
TEXTS = ("report.md", "report.html", "predictions.jsonl")
"""Files that an evaluation writes beside `report.json`."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation computed, for figures and tracking.

    Attributes:
        replies: replies by column name, image and round.
        asked: questions and accepted answers without images.
        selectors: each `Selector` by the name of its row.
    """

    report: dict[str, Any]
    replies: dict[str, Replies]
    samples: EvaluationSet
    asked: Sequence[Answered]
    plan: Plan
    vlm: Any
    selectors: dict[str, Any]

    @property
    def answers(self) -> dict[str, list[list[str]]]:
        """Return the texts alone, by column name, image and round."""
        return {column: texts_of(own) for column, own in self.replies.items()}

    @property
    def selector(self) -> Any:
        return self.selectors[SELECTOR]

    @property
    def grid(self) -> tuple[int, int] | None:
        """Return rows and columns of the tokens of every image; None if images differ."""
        if self.vlm.num_tokens is None or not self.samples.one_image_each:
            return None
        return self.vlm.grid_of(self.samples[0].image)


def check_own(out: Path) -> None:
    """Check that a folder without a report holds no file that an evaluation would replace.

    An evaluation that was stopped left its answers in `parts`.

    Raises:
        ConfigError: it holds one.
    """
    if (out / "report.json").exists() or (out / "parts").exists():
        return
    names = (*TEXTS, *(f"figures/{name}" for name in FIGURES), f"failed/{FAILED}")
    found = sorted(path for name in names for path in out.glob(name))
    if found:
        raise ConfigError(
            f"out={out}: the evaluation would replace {found[0]}, which no evaluation wrote; "
            "choose another folder"
        )


def write_figures(folder: Path, result: Evaluation) -> dict[str, Path]:
    """Draw the figures that the model and the data allow, as PNG files by name.

    The numbers of the analyses go into the report, and why one is left out. Analyses need samples
    of one image each, whose tokens form one raster of a fixed size.
    """
    drawn = {"retention": retention_curves(result.report)}
    vlm, selector, samples = result.vlm, result.selector, result.samples
    if (grid := result.grid) is not None:
        asked, answers, plan = result.asked, result.answers, result.plan
        audit = lost_places(result.replies, plan, len(result.report.get("audit", [])))
        shown = {
            "overlays": choose_places(asked, answers, plan),
            "audit": [place for _, place in audit],
        }
        for name, places in shown.items():
            rows = overlay_rows(vlm, selector, samples, asked, answers, plan, places)
            if rows:
                drawn[name] = patch_overlays(rows, grid)
        subject = Subject(vlm, selector, samples[:ANALYSED_IMAGES], result.plan.budgets)
        for kind in ANALYSED:
            try:
                numbers, drawn[kind] = ANALYSES[kind](subject)
            except ConfigError as error:
                numbers = {LEFT_OUT: str(error)}
                logger.warning("%s", analysis_note(kind, str(error)))
            result.report.setdefault("analyses", {})[kind] = numbers
    paths = {name: folder / f"{name}.png" for name in drawn}
    for name, figure in drawn.items():
        save(figure, paths[name])
    remove_pictures(folder, FIGURES, keep=paths.values())
    return paths


def remove_pictures(folder: Path, names: Iterable[str], keep: Iterable[Path] = ()) -> None:
    """Remove the pictures with these names (patterns) from a folder, except those of `keep`."""
    for path in {path for name in names for path in folder.glob(name)} - set(keep):
        path.unlink()


def write_report(out: Path, report: dict[str, Any], figures: dict[str, Path]) -> None:
    """Write `report.md`, `report.html` and, last, `report.json`."""
    write_text(out / "report.md", markdown(report))
    write_text(out / "report.html", html_report(report, figures))
    write_text(out / "report.json", json.dumps(report, indent=1))


def write_predictions(
    path: Path, samples: Sequence[Answered], replies: dict[str, Replies], plan: Plan
) -> None:
    """Write one JSON line per question: what was asked, accepted and answered.

    `predictions`, `tokens`, `ended` and `loss` hold the fields of each column's `Reply`.
    """
    columns = [str(column) for column in plan.columns()]
    with replacing(path) as file:
        for i, sample in enumerate(samples):
            for r, question in enumerate(sample.questions):
                own = {column: replies[column][i][r] for column in columns}
                row = {
                    "key": sample.key,
                    "image_digest": sample.image_digest,
                    "round": r,
                    "task": sample.tasks[r],
                    "question": question,
                    "answers": sample.answers[r],
                    "predictions": {column: reply.text for column, reply in own.items()},
                    "tokens": {column: reply.tokens for column, reply in own.items()},
                    "ended": {column: reply.ended for column, reply in own.items()},
                    "loss": {column: _finite(reply.loss) for column, reply in own.items()},
                }
                file.write(f"{json.dumps(row)}\n".encode())


def _finite(value: float | None) -> float | None:
    """Return a number that JSON can hold; None for one that is not finite."""
    return value if value is not None and math.isfinite(value) else None
