"""`autoselect analyse KIND`: one analysis, its numbers as JSON and its figure as PNG."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from autoselect.config import ConfigError
from autoselect.evaluation.analyses.fidelity import gating_fidelity, token_noises
from autoselect.evaluation.analyses.frequency import selection_frequency
from autoselect.evaluation.analyses.gates import gate_samples
from autoselect.evaluation.analyses.similarity import token_similarity
from autoselect.evaluation.figures.lines import fidelity_figure
from autoselect.evaluation.figures.maps import frequency_figure, gate_figure, similarity_figure
from autoselect.evaluation.samples import EvaluationSample

Found = tuple[dict[str, Any], Figure]
SHOWN_IMAGES, GATE_IMAGES = 6, 64


@dataclass(frozen=True)
class Subject:
    """What is analysed; `samples` is a list, since every analysis goes through it once or more."""

    vlm: Any
    selector: Any
    samples: list[EvaluationSample]
    budgets: tuple[int, ...]

    def grid(self) -> tuple[int, int]:
        """Rows and columns of the visual tokens.

        Raises:
            ConfigError: they form no grid.
        """
        grid = self.vlm.encode_images([self.samples[0].image]).grid
        if grid is None:
            raise ConfigError(
                f"model={self.vlm.name} gives tokens that form no grid; this analysis draws one"
            )
        return grid


def similarity(subject: Subject) -> Found:
    """Figure 4 of the paper."""
    found = token_similarity(subject.vlm, subject.selector, subject.samples)
    numbers = {"top": found.top, "bottom": found.bottom, "across": found.across}
    images = [sample.image for sample in subject.samples[:SHOWN_IMAGES]]
    return numbers, similarity_figure(found, images, subject.grid())


def fidelity(subject: Subject) -> Found:
    """Figure 5 of the paper."""
    noises = token_noises(subject.vlm, subject.samples)
    found = gating_fidelity(subject.vlm, subject.samples, subject.budgets, noises)
    return found, fidelity_figure(found)


def frequency(subject: Subject) -> Found:
    """How often each position is kept."""
    shares = selection_frequency(subject.vlm, subject.selector, subject.samples, subject.budgets)
    numbers = {str(budget): share.tolist() for budget, share in shares.items()}
    return numbers, frequency_figure(shares, subject.grid())


def gates(subject: Subject) -> Found:
    """Gates at several temperatures, at the smallest budget."""
    images = subject.samples[:GATE_IMAGES]
    found = gate_samples(subject.vlm, subject.selector, images, subject.budgets[0])
    numbers = {f"temperature {g.temperature:g}": g.polarisation for g in found}
    return numbers, gate_figure(found)


ANALYSES: dict[str, Callable[[Subject], Found]] = {
    "similarity": similarity,
    "fidelity": fidelity,
    "frequency": frequency,
    "gates": gates,
}


def analyse(kind: str, subject: Subject, out: Path) -> dict[str, Any]:
    """Run one analysis and write `KIND.json` and `KIND.png` into `out`; returns its numbers."""
    numbers, figure = ANALYSES[kind](subject)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{kind}.png")
    (out / f"{kind}.json").write_text(json.dumps(numbers, indent=1))
    return numbers
