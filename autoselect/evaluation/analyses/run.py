"""`autoselect analyse KIND`: run one analysis and write its numbers (JSON) and figure (PNG)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError, GateSite
from autoselect.config.extras import extra
from autoselect.data.shards import Sample, ShardSet
from autoselect.evaluation.analyses.classifier import (
    LabelledImages,
    classifier_accuracy,
    labelled_images,
)
from autoselect.evaluation.analyses.fidelity import (
    gating_fidelity,
    learned_positions,
    random_positions,
    token_noises,
    warn_of_gap,
)
from autoselect.evaluation.analyses.frequency import selection_frequency
from autoselect.evaluation.analyses.gates import gate_samples, polarisation_course
from autoselect.evaluation.analyses.kinds import FIDELITY, GATES, LEAK, SIMILARITY
from autoselect.evaluation.analyses.leak import TrainedGate, leak
from autoselect.evaluation.analyses.line_figures import (
    classifier_figure,
    fidelity_figure,
    leak_figure,
)
from autoselect.evaluation.analyses.map_figures import (
    frequency_figure,
    gate_figure,
    similarity_figure,
)
from autoselect.evaluation.analyses.patch_fidelity import patch_fidelity
from autoselect.evaluation.analyses.similarity import token_similarity
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.earlier import SETTINGS
from autoselect.evaluation.figures.style import save
from autoselect.evaluation.samples import EvaluationSample
from autoselect.files.atomic import write_text
from autoselect.pruning.budget import parse_budgets
from autoselect.reference.classifier import largest_object_colour, train_classifier
from autoselect.reference.resources import REFERENCE, resolve_shards
from autoselect.vlm.image_classifier import Preprocess, grid, load_classifier

with extra("evaluation"):
    from matplotlib.figure import Figure

Found = tuple[dict[str, Any], Figure]
SHOWN_IMAGES, GATE_IMAGES = 6, 64


@dataclass(frozen=True)
class Subject:
    """What is analysed.

    Attributes:
        selector: may be None for `fidelity`.
        samples: images and questions; a list, because analyses read it several times.
        gate: the gate of the training run, for `leak`.
        site: where `fidelity` treats tokens; the selector's, if there is one.
    """

    vlm: Any
    selector: Any
    samples: list[EvaluationSample]
    budgets: tuple[int, ...]
    gate: TrainedGate | None = None
    max_new_tokens: int = 16
    site: GateSite = "after_projector"

    def grid(self) -> tuple[int, int]:
        """Return rows and columns of the visual tokens.

        Raises:
            ConfigError: they form no grid.
        """
        grid = self.vlm.grid_of(self.samples[0].image)
        if grid is None:
            raise ConfigError(
                f"model={self.vlm.name} gives tokens that form no grid, which this analysis draws; "
                "choose a model with a grid"
            )
        return grid


def similarity(subject: Subject) -> Found:
    """Draw figure 4 of the paper."""
    found = token_similarity(subject.vlm, subject.selector, subject.samples)
    numbers = {"top": found.top, "bottom": found.bottom, "across": found.across}
    images = [subject.vlm.seen(sample.image) for sample in subject.samples[:SHOWN_IMAGES]]
    return numbers, similarity_figure(found, images, subject.grid())


def fidelity(subject: Subject) -> Found:
    """Draw figure 5 of the paper, and the same under the learned scores if there is a selector."""
    noises = token_noises(subject.vlm, subject.samples, subject.site)
    asked, longest = AskedVLM(subject.vlm), subject.max_new_tokens
    measured = partial(gating_fidelity, asked, subject.samples, subject.budgets, noises, longest)
    found = {"site": subject.site, **measured(random_positions)}
    if subject.selector is None:
        return found, fidelity_figure(found)
    learned = measured(learned_positions(subject.selector))
    warn_of_gap(learned)
    return {**found, "learned": learned}, fidelity_figure(found, learned)


def frequency(subject: Subject) -> Found:
    shares = selection_frequency(subject.vlm, subject.selector, subject.samples, subject.budgets)
    numbers = {str(budget): share.tolist() for budget, share in shares.items()}
    return numbers, frequency_figure(shares, subject.grid())


def gates(subject: Subject) -> Found:
    """Draw gates of the training (smallest budget), and the polarisation over its steps."""
    images = subject.samples[:GATE_IMAGES]
    found = gate_samples(subject.vlm, subject.selector, images, subject.budgets[0])
    numbers: dict[str, Any] = {f"temperature {g.temperature:g}": g.polarisation for g in found}
    course = polarisation_course(subject.selector.metadata.get("tracking_run_id"))
    numbers["course"] = course
    return numbers, gate_figure(found, course)


def uniform_gates(subject: Subject) -> Found:
    """Measure the leak at the smallest budget."""
    assert subject.gate is not None, "leak needs the gate of a training run"
    longest = subject.max_new_tokens
    asked = AskedVLM(subject.vlm)
    found = leak(asked, subject.gate, subject.samples, subject.budgets[0], longest)
    return found, leak_figure(found)


ANALYSES: dict[str, Callable[[Subject], Found]] = {
    SIMILARITY: similarity,
    FIDELITY: fidelity,
    "frequency": frequency,
    GATES: gates,
    LEAK: uniform_gates,
}


def analyse_classifier(
    vlm: Any,
    selector: Any,
    classifier: str,
    samples: Sequence[Sample],
    budgets: Sequence[int],
) -> Found:
    """Draw figure 3 of the paper.

    Args:
        classifier: folder or hub name; `reference` trains a small one first.
        samples: samples of the shards.
        budgets: tokens kept of the VLM's grid.
    """
    model, preprocess, data = ready_classifier(classifier, samples, vlm.device, whole=True)
    found = classifier_accuracy(vlm, selector, model, preprocess, data, budgets)
    return found, classifier_figure(found)


def analyse_patches(classifier: str, samples: Sequence[Sample], budgets: str, device: str) -> Found:
    """Draw figure 5 as the paper runs it, on the patches of a classifier.

    Args:
        classifier: folder or hub name; `reference` trains a small one first.
        samples: samples of the shards.
        budgets: patches that stay: numbers, ratios or percentages, comma-separated.
        device: device name.
    """
    model, preprocess, data = ready_classifier(classifier, samples, device)
    rows, columns = grid(model, preprocess([data.images[0]]))
    found = patch_fidelity(model, preprocess, data, parse_budgets(budgets, rows * columns))
    return found, fidelity_figure(found)


def ready_classifier(
    classifier: str, samples: Sequence[Sample], device: Any, whole: bool = False
) -> tuple[Any, Preprocess, LabelledImages]:
    """Load a classifier, or train the reference one; return it with its pixels and the images."""
    label_of = None
    if classifier == REFERENCE:
        training = ShardSet.open(resolve_shards(REFERENCE, "train"))
        classifier, label_of = str(train_classifier(training)), largest_object_colour
    model, preprocess = load_classifier(classifier, device, whole)
    return model, preprocess, labelled_images(samples, model.config.label2id, label_of)


def write_analysis(kind: str, found: Found, settings: Mapping[str, Any], out: Path) -> None:
    """Write `KIND.png`, and `KIND.json` with the numbers and the settings, into `out`."""
    numbers, figure = found
    save(figure, out / f"{kind}.png")
    write_text(out / f"{kind}.json", json.dumps({**numbers, SETTINGS: settings}, indent=1))
