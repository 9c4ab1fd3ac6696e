"""The commands `autoselect eval`, `autoselect analyse` and `autoselect bench prefill`."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError, GateSite
from autoselect.config.flags import add_setting_flags, check_counts, flag_help, read_settings
from autoselect.config.setting import help_of
from autoselect.data.shards import Sample, ShardSet
from autoselect.evaluation.analyses.run import (
    ANALYSES,
    Found,
    Subject,
    analyse_classifier,
    analyse_patches,
    write_analysis,
)
from autoselect.evaluation.analyses.tracked_analysis import log_analysis, start_analysis
from autoselect.evaluation.budgets import parse_budgets
from autoselect.evaluation.earlier import check_earlier
from autoselect.evaluation.latency.bench import bench_lines, bench_prefill
from autoselect.evaluation.latency.protocol import Rounds
from autoselect.evaluation.loading import checked_device, load_pair, selector_digest
from autoselect.evaluation.report.tables import terminal_table
from autoselect.evaluation.run import evaluate
from autoselect.evaluation.samples import EvaluationSet, decoded, stored
from autoselect.evaluation.settings import ONE_SELECTOR, EvalSettings
from autoselect.files.atomic import write_text
from autoselect.reference.resources import resolve_model, resolve_shards
from autoselect.tracking import Tracker
from autoselect.tracking.ending import ended_truthfully
from autoselect.vlm import FrozenVLM
from autoselect.vlm.sites import SITES

CLASSIFIER, NONE = "classifier", "none"
FIDELITY, PATCHES = "fidelity", "patch_embedding"
MOST_ANALYSED = 256
BENCH_BUDGETS, BATCHES = "5.5%,11%,22%,33%", "1,8,32"
ANALYSED = [
    *(
        "model",
        "selector",
        "shards",
        "budgets",
        "out",
        "train_run",
        "classifier",
        "max_images",
        "site",
    ),
    *("max_new_tokens", "device", "experiment"),
]


def add_eval_command(subparsers: Any) -> None:
    """Add `eval` to the `autoselect` command; `arguments.run(arguments)` executes it."""
    parser = subparsers.add_parser(
        "eval", help="accuracy retention and prefill speed of a selector beside baselines"
    )
    add_eval_arguments(parser)
    parser.set_defaults(run=run_eval)


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser, EvalSettings)


def settings_of(arguments: argparse.Namespace) -> EvalSettings:
    """Return the settings that the flags of `add_eval_arguments` name."""
    settings = read_settings(EvalSettings, arguments)
    return dataclasses.replace(
        settings,
        model=resolve_model(settings.model),
        shards=resolve_shards(settings.shards, "test"),
    )


def run_eval(arguments: argparse.Namespace) -> int:
    result = evaluate(settings_of(arguments))
    if result is not None:
        out = Path(arguments.out)
        print(f"\n{terminal_table(result.report)}")
        print(f"report: {out / 'report.html'}, {out / 'report.md'}, {out / 'report.json'}")
    return 0


def add_analyse_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("analyse", help="one analysis of a selector, with its figure")
    parser.add_argument("kind", choices=sorted([*ANALYSES, CLASSIFIER]), help="what to analyse")
    own = {
        "selector": ONE_SELECTOR,
        "shards": "glob of the shards that hold the images, or reference",
        "out": "folder for KIND.json and KIND.png",
    }
    for name in ("model", "selector", "shards", "budgets", "out"):
        text = own.get(name) or flag_help(EvalSettings, name)
        parser.add_argument(f"--{name}", required=name not in ("model", "selector"), help=text)
    parser.add_argument(
        "--site",
        choices=(*SITES, PATCHES),
        help="where tokens are removed or made noise (fidelity): a site of the gate, by default "
        "that of --selector, which may be left out; or the patch embeddings of an image "
        "classifier, without --model and --selector",
    )
    parser.add_argument("--run", help="output folder of the training run (leak)", dest="train_run")
    parser.add_argument(
        "--classifier",
        default="reference",
        help="folder or hub name of a transformers image classifier, or reference, the default "
        "(classifier)",
    )
    most = "analyse only the first images (default %(default)s)"
    parser.add_argument("--max-images", type=int, default=MOST_ANALYSED, help=most)
    longest = EvalSettings.max_new_tokens
    help_text = f"{flag_help(EvalSettings, 'max_new_tokens', longest)} (leak, fidelity)"
    parser.add_argument("--max-new-tokens", type=int, default=longest, help=help_text)
    add_setting_flags(parser, EvalSettings, ("device", "experiment", "tracking"))
    parser.set_defaults(run=run_analyse)


def run_analyse(arguments: argparse.Namespace) -> int:
    check_counts(max_images=arguments.max_images, max_new_tokens=arguments.max_new_tokens)
    kind, out = arguments.kind, Path(arguments.out)
    settings = {name: value for name, value in vars(arguments).items() if name in ANALYSED}
    settings["selector"] = arguments.selector or NONE
    training = None
    if arguments.site and kind != FIDELITY:
        raise ConfigError(
            f"site={arguments.site} belongs to `analyse fidelity`, not to {kind}; leave it out"
        )
    if arguments.site == PATCHES:
        settings["selector"] = settings["model"] = NONE
    check_earlier(out / f"{kind}.json", settings)
    if arguments.site == PATCHES:
        tags, work = _patches(arguments)
    else:
        for name in ("model",) if kind == FIDELITY else ("model", "selector"):
            if getattr(arguments, name) is None:
                raise ConfigError(f"{name}= is missing; give --{name}, as {kind} needs it")
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
        write_analysis(kind, (numbers, figure), settings, out)
        if arguments.tracking:
            log_analysis(tracker, kind, numbers, out, training)
    if kind != "frequency":
        print(json.dumps(numbers, indent=1))
    print(f"figure: {out / kind}.png")
    return 0


Work = Callable[[], Found]


def _analysis(arguments: argparse.Namespace) -> tuple[Any, Any, Work]:
    """Return VLM, selector and the function that computes the numbers, after all checks."""
    kind, shards = arguments.kind, resolve_shards(arguments.shards, "test")
    opened = EvaluationSet.open(shards, arguments.max_images)
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
    subject = Subject(
        vlm,
        selector,
        samples,
        budgets,
        arguments.train_run,
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


def _shown_samples(arguments: argparse.Namespace) -> list[Sample]:
    """Return the first samples of the shards, decoded.

    Raises:
        ConfigError: a sample is damaged, an image cannot be decoded, or no sample has one.
    """
    shards = resolve_shards(arguments.shards, "test")
    every = ShardSet.open(shards)
    samples = [stored(every, i) for i in range(min(arguments.max_images, len(every)))]
    pictures = [decoded(sample) for sample in samples]
    if not any(pictures):
        raise ConfigError(f"shards={shards} hold no image; this analysis classifies images")
    return samples


def _classifier(arguments: argparse.Namespace) -> tuple[Any, Any, Work]:
    """Return VLM, selector and the function that computes the numbers of the classifier analysis.

    It reads images only, without their questions.
    """
    samples = _shown_samples(arguments)
    pictures = [sample.pictures[0] for sample in samples if sample.pictures]
    vlm, selector, budgets = _subject(arguments, pictures[0])
    work = partial(analyse_classifier, vlm, selector, arguments.classifier, samples, budgets)
    return vlm, selector, work


def _subject(arguments: argparse.Namespace, image: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """Return VLM, selector (None if none is given) and the budgets in tokens of such an image."""
    model, selector = resolve_model(arguments.model), None
    if arguments.selector is None:
        vlm = FrozenVLM.from_pretrained(model, device=checked_device(arguments.device))
    else:
        vlm, selector = load_pair(model, arguments.selector, arguments.device)
    num_tokens = vlm.encode_images([image]).tokens.shape[1]
    return vlm, selector, parse_budgets(arguments.budgets, num_tokens)


def add_prefill_bench(kinds: Any) -> None:
    parser = kinds.add_parser("prefill", help="prefill latency, full against pruned")
    parser.add_argument("--model", required=True, help=help_of(EvalSettings, "model"))
    parser.add_argument("--selector", required=True, help=ONE_SELECTOR)
    parser.add_argument(
        "--budgets",
        default=BENCH_BUDGETS,
        help=flag_help(EvalSettings, "budgets", BENCH_BUDGETS),
    )
    parser.add_argument(
        "--batches", default=BATCHES, help=f"batch sizes, comma-separated (default {BATCHES})"
    )
    parser.add_argument(
        "--repeats", type=int, help="measured rounds (default 100 on a GPU, 20 on a CPU)"
    )
    parser.add_argument(
        "--warmup", type=int, help="rounds before, not measured (default 20 on a GPU, 3 on a CPU)"
    )
    add_setting_flags(parser, EvalSettings, ("device",))
    compiled = help_of(EvalSettings, "latency_compiled")
    parser.add_argument("--compile", action="store_true", help=compiled)
    parser.add_argument("--json", required=True, help="file for the result")
    parser.set_defaults(run=run_bench)


def parse_batches(text: str) -> list[int]:
    """Read batch sizes such as `1,8,32`.

    Raises:
        ConfigError: they are not whole numbers of at least 1.
    """
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"batches={text!r} must be whole numbers, comma-separated, for example {BATCHES}"
        ) from None
    if min(sizes) < 1:
        raise ConfigError(f"batches={text!r} must be sizes of at least 1, for example {BATCHES}")
    return sizes


def run_bench(arguments: argparse.Namespace) -> int:
    """Measure, write the JSON and print one line per batch size and budget."""
    result = bench_prefill(
        resolve_model(arguments.model),
        arguments.selector,
        arguments.budgets,
        parse_batches(arguments.batches),
        Rounds(arguments.repeats, arguments.warmup, arguments.compile),
        arguments.device,
    )
    write_text(arguments.json, json.dumps(result, indent=1))
    print("\n".join(bench_lines(result)))
    return 0
