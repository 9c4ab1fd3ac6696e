"""`autoselect analyse`: read its flags, load what the analysis looks at, and log what it found."""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError, GateSite
from autoselect.config.flags import check_counts
from autoselect.data.shards import Sample, ShardSet
from autoselect.evaluation.analyses.gates import trained_gate
from autoselect.evaluation.analyses.kinds import (
    CLASSIFIER,
    FIDELITY,
    GATES,
    LEAK,
    PATCHES,
    SCORED,
    SIMILARITY,
)
from autoselect.evaluation.analyses.leak import load_gate
from autoselect.evaluation.analyses.run import (
    ANALYSES,
    Found,
    Subject,
    analyse_classifier,
    analyse_patches,
    write_analysis,
)
from autoselect.evaluation.analyses.tracked_analysis import log_analysis, start_analysis
from autoselect.evaluation.earlier import check_earlier
from autoselect.evaluation.loading import checked_device, load_pair, selector_digest
from autoselect.evaluation.samples import EvaluationSet, LazySequence, check_images, stored
from autoselect.pruning.budget import parse_budgets
from autoselect.reference.resources import resolve_model, resolve_shards
from autoselect.tracking import Tracker
from autoselect.tracking.ending import ended_truthfully
from autoselect.vlm import FrozenVLM
from autoselect.vlm.sites import SITES

NONE = "none"
ANALYSED = [
    *("model", "selector", "shards", "budgets", "out", "train_run", "classifier"),
    *("max_images", "site", "max_new_tokens", "device", "experiment"),
]
"""Flags whose values are written beside the numbers, as the settings of the analysis."""


def analyse(arguments: argparse.Namespace) -> int:
    """Run the analysis that the flags of `autoselect analyse` name; return the exit code."""
    _check_flags(arguments)
    kind, out, on_patches = arguments.kind, Path(arguments.out), arguments.site == PATCHES
    settings = {name: value for name, value in vars(arguments).items() if name in ANALYSED}
    settings["selector"] = arguments.selector or NONE
    if on_patches:
        settings["selector"] = settings["model"] = NONE
    check_earlier(out / f"{kind}.json", settings)
    training = None
    if on_patches:
        tags, work = _patches(arguments)
    else:
        vlm, selector, work = (_classifier if kind == CLASSIFIER else _analysis)(arguments)
        tags = {"model": vlm.name, "model_digest": vlm.digest}
        if selector is not None:
            tags["selector_digest"] = selector_digest(selector)
            training = selector.metadata.get("tracking_run_id")
    tracker = Tracker.disabled()
    if arguments.tracking:
        tracker = start_analysis(kind, settings, tags, training)
        tracker.watch_machine()
    with ended_truthfully(tracker):
        numbers, figure = work()
        check_earlier(out / f"{kind}.json", settings)  # another process may have written it
        write_analysis(kind, (numbers, figure), settings, out)
        if arguments.tracking:
            log_analysis(tracker, kind, numbers, out, training)
    if kind != "frequency":
        print(json.dumps(numbers, indent=1))
    print(f"figure: {out / kind}.png")
    return 0


Work = Callable[[], Found]


def _check_flags(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for a flag that the analysis needs and lacks, or that is another's."""
    check_counts(max_images=arguments.max_images, max_new_tokens=arguments.max_new_tokens)
    kind, run, budgets = arguments.kind, arguments.train_run, arguments.budgets
    if kind == SIMILARITY and budgets is not None:
        raise ConfigError(
            f"budgets={budgets} has no part in {kind}, which compares equally many of the best and "
            "the worst tokens; leave it out"
        )
    for flag, value, owner in (("site", arguments.site, FIDELITY), ("run", run, LEAK)):
        if value and kind != owner:
            raise ConfigError(
                f"{flag}={value} belongs to `analyse {owner}`, not to {kind}; leave it out"
            )
    unused = ("model", "selector") if arguments.site == PATCHES else ()
    for flag in unused:
        if (value := getattr(arguments, flag)) is not None:
            raise ConfigError(
                f"{flag}={value} has no part in an analysis of a classifier's patches; leave it out"
            )
    needed = {} if unused else {"model": arguments.model}
    if kind != SIMILARITY:
        needed["budgets"] = budgets
    if kind != FIDELITY:
        needed["selector"] = arguments.selector
    if kind == LEAK:
        needed["run"] = run
    for name, value in needed.items():
        if value is None:
            raise ConfigError(f"{name}= is missing; give --{name}, as {kind} needs it")


def _analysis(arguments: argparse.Namespace) -> tuple[Any, Any, Work]:
    """Return VLM, selector and the function that computes the numbers, after all checks."""
    kind, shards = arguments.kind, resolve_shards(arguments.shards, "test")
    opened = EvaluationSet.open(shards, arguments.max_images, kind in SCORED)
    if not opened.one_image_each:
        raise ConfigError(
            f"shards={shards} hold samples of several images; this analysis looks at single ones, "
            "choose other shards"
        )
    samples = list(opened)
    vlm, selector, budgets = _subject(arguments, samples[0].image)
    if vlm.num_tokens is None:
        raise ConfigError(
            f"model={vlm.name}: {kind} needs a model whose images all have the same number of "
            f"tokens; only {CLASSIFIER} goes with others"
        )
    if kind == GATES:
        trained_gate(selector)
    subject = Subject(
        vlm,
        selector,
        samples,
        budgets,
        load_gate(arguments.train_run, vlm, selector.metadata) if kind == LEAK else None,
        arguments.max_new_tokens,
        _treated_site(vlm, selector, arguments.site),
    )
    return vlm, selector, partial(ANALYSES[kind], subject)


def _treated_site(vlm: FrozenVLM, selector: Any, site: GateSite | None) -> GateSite:
    """Return the site of an analysis: the given one, or that of its selector.

    Raises:
        ConfigError: they differ, or the model does not have the site.
    """
    own: GateSite | None = None if selector is None else selector.site
    if None not in (site, own) and site != own:
        raise ConfigError(
            f"site={site} differs from the site of the selector, {own}; leave --site out, or give "
            f"a selector of site={site}, or none for random scores alone"
        )
    found = site or own or "after_projector"
    SITES[found].check(vlm.adapter)
    return found


def _patches(arguments: argparse.Namespace) -> tuple[dict[str, str], Work]:
    """Return tags, and the function that compares treatments of a classifier's patches."""
    device = checked_device(arguments.device)
    classifier, samples = arguments.classifier, _shown_samples(arguments)
    work = partial(analyse_patches, classifier, samples, arguments.budgets, device)
    return {"model": classifier, "site": PATCHES}, work


def _shown_samples(arguments: argparse.Namespace) -> Sequence[Sample]:
    """Return the first samples of the shards, whose images can be decoded.

    Raises:
        ConfigError: a sample is damaged, an image cannot be decoded, or no sample has one.
    """
    shards = resolve_shards(arguments.shards, "test")
    opened = ShardSet.open(shards)
    samples = LazySequence(partial(stored, opened), min(arguments.max_images, len(opened)))
    check_images(samples.__getitem__, len(samples))
    if not any(sample.images for sample in samples):
        raise ConfigError(f"shards={shards} hold no image; this analysis classifies images")
    return samples


def _classifier(arguments: argparse.Namespace) -> tuple[Any, Any, Work]:
    """Return VLM, selector and the function that computes the numbers of the classifier analysis.

    It reads images only, without their questions.
    """
    samples = _shown_samples(arguments)
    first = next(sample.pictures[0] for sample in samples if sample.images)
    vlm, selector, budgets = _subject(arguments, first)
    work = partial(analyse_classifier, vlm, selector, arguments.classifier, samples, budgets)
    return vlm, selector, work


def _subject(arguments: argparse.Namespace, image: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """Return VLM, selector (None if none is given) and the budgets in tokens of such an image.

    There are no budgets if none are given.
    """
    model, selector = resolve_model(arguments.model), None
    if arguments.selector is None:
        vlm = FrozenVLM.from_pretrained(model, device=checked_device(arguments.device))
    else:
        vlm, selector = load_pair(model, arguments.selector, arguments.device)
    num_tokens = vlm.encode_images([image]).tokens.shape[1]
    budgets = arguments.budgets
    return vlm, selector, () if budgets is None else parse_budgets(budgets, num_tokens)
