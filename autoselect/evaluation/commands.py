"""The commands `autoselect eval`, `autoselect analyse` and `autoselect bench prefill`."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.data.shards import ShardSet
from autoselect.evaluation.analyse import ANALYSES, Subject, analyse, analyse_classifier
from autoselect.evaluation.bench import bench_lines, bench_prefill
from autoselect.evaluation.budgets import parse_budgets
from autoselect.evaluation.loading import load_pair
from autoselect.evaluation.report_tables import terminal_table
from autoselect.evaluation.run import EvalSettings, evaluate
from autoselect.evaluation.samples import EvaluationSet
from autoselect.flags import add_setting_flags
from autoselect.public.commands import add_public_bench
from autoselect.reference.resources import resolve_model, resolve_shards

CLASSIFIER = "classifier"
HELP = {
    "model": "folder or hub name of the vision-language model, or reference",
    "selector": "folder or hub name of the trained selector; eval takes several, comma-separated, "
    "each optionally as NAME=FOLDER",
    "shards": "glob of the evaluation shards, or reference",
    "budgets": "visual tokens kept: counts, ratios (0.11) or percentages (11%%), comma-separated",
    "out": "folder for report.json, report.md, the figures and the predictions",
    "methods": "baselines, comma-separated, or all",
    "max_images": "evaluate only the first images",
    "random_seeds": "seeds of the random baseline",
    "images_per_part": "images encoded together; the unit of restart",
    "rows_per_batch": "questions answered together",
    "max_new_tokens": "longest answer in tokens",
    "scoring": "generation; likelihood or text_likelihood where the possible answers are known",
    "diversity": "0..1: how much kept tokens must differ from each other; 0 is the paper's top-K",
    "latency_batch": "batch size of the latency measurement",
    "latency_compiled": "time the LLM and the selector compiled, too (CUDA graphs on a GPU)",
    "experiment": "MLflow experiment",
    "tracking": "log to MLflow",
    "device": "cpu or cuda; a GPU where there is one by default",
}


def add_eval_command(subparsers: Any) -> None:
    """Add `eval` to the `autoselect` command; `arguments.run(arguments)` executes it."""
    parser = subparsers.add_parser(
        "eval", help="accuracy retention and prefill speed of a selector beside baselines"
    )
    add_eval_arguments(parser)
    parser.set_defaults(run=run_eval)


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag per field of `EvalSettings`; fields without a default are required."""
    add_setting_flags(parser, EvalSettings, HELP)


def settings_of(arguments: argparse.Namespace) -> EvalSettings:
    """The settings that the flags of `add_eval_arguments` name."""
    names = [field.name for field in dataclasses.fields(EvalSettings)]
    settings = EvalSettings(**{name: getattr(arguments, name) for name in names})
    return dataclasses.replace(
        settings,
        model=resolve_model(settings.model),
        shards=resolve_shards(settings.shards, "test"),
    )


def run_eval(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table and say where the report is."""
    result = evaluate(settings_of(arguments))
    if result is not None:
        out = Path(arguments.out)
        print(f"\n{terminal_table(result.report)}")
        print(f"report: {out / 'report.html'}, {out / 'report.md'}, {out / 'report.json'}")
    return 0


def add_analyse_command(subparsers: Any) -> None:
    """Add `analyse` to the `autoselect` command."""
    parser = subparsers.add_parser("analyse", help="one analysis of a selector, with its figure")
    parser.add_argument("kind", choices=sorted([*ANALYSES, CLASSIFIER]), help="what to analyse")
    for name in ("model", "selector", "shards", "budgets", "out"):
        parser.add_argument(f"--{name}", required=True, help=HELP[name])
    parser.add_argument("--run", help="output folder of the training run (leak)", dest="train_run")
    parser.add_argument(
        "--classifier",
        default="reference",
        help="folder or hub name of a transformers image classifier, or reference (classifier)",
    )
    parser.add_argument("--max-images", type=int, default=256, help=HELP["max_images"])
    parser.add_argument("--device", default=None, help=HELP["device"])
    parser.set_defaults(run=run_analyse)


def run_analyse(arguments: argparse.Namespace) -> int:
    """Analyse, and print the numbers and where the figure is."""
    kind, out = arguments.kind, Path(arguments.out)
    shards = resolve_shards(arguments.shards, "test")
    if kind == CLASSIFIER:
        numbers = _classifier(arguments, shards, out)
    else:
        opened = EvaluationSet.open(shards, arguments.max_images)
        if not opened.one_image_each:
            raise ConfigError(
                f"shards={shards} hold samples of several images; this analysis looks at single "
                "ones, choose other shards"
            )
        samples = list(opened)
        vlm, selector, budgets = _subject(arguments, samples[0].image)
        if not vlm.is_spliced:
            raise ConfigError(
                f"model={vlm.name}: {kind} needs a model whose images all have the same number of "
                f"tokens; only {CLASSIFIER} goes with others"
            )
        numbers = analyse(kind, Subject(vlm, selector, samples, budgets, arguments.train_run), out)
    if kind != "frequency":
        print(json.dumps(numbers, indent=1))
    print(f"figure: {out / kind}.png")
    return 0


def _classifier(arguments: argparse.Namespace, shards: str, out: Path) -> dict[str, Any]:
    every = ShardSet.open(shards)
    samples = [every[i] for i in range(min(arguments.max_images, len(every)))]
    pictures = [sample.pictures[0] for sample in samples if sample.pictures]
    if not pictures:
        raise ConfigError(f"shards={shards} hold no image; this analysis classifies images")
    vlm, selector, budgets = _subject(arguments, pictures[0])
    return analyse_classifier(vlm, selector, arguments.classifier, samples, budgets, out)


def _subject(arguments: argparse.Namespace, image: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """VLM, selector and the budgets in tokens of such an image."""
    vlm, selector = load_pair(resolve_model(arguments.model), arguments.selector, arguments.device)
    num_tokens = vlm.encode_images([image]).tokens.shape[1]
    return vlm, selector, parse_budgets(arguments.budgets, num_tokens)


def add_bench_command(subparsers: Any) -> None:
    """Add `bench` to the `autoselect` command: `prefill`, and those of public benchmarks."""
    bench = subparsers.add_parser("bench", help="measure speed")
    kinds = bench.add_subparsers(dest="kind", required=True)
    parser = kinds.add_parser("prefill", help="prefill latency, full against pruned")
    parser.add_argument("--model", required=True, help=HELP["model"])
    parser.add_argument("--selector", required=True, help=HELP["selector"])
    parser.add_argument("--budgets", default="5.5%,11%,22%,33%", help=HELP["budgets"])
    parser.add_argument("--batches", default="1,8,32", help="batch sizes, comma-separated")
    parser.add_argument("--repeats", type=int, default=None, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=None, help="rounds before, not measured")
    parser.add_argument("--device", default=None, help=HELP["device"])
    parser.add_argument("--compile", action="store_true", help=HELP["latency_compiled"])
    parser.add_argument("--json", required=True, help="file for the result")
    parser.set_defaults(run=run_bench)
    add_public_bench(kinds)


def run_bench(arguments: argparse.Namespace) -> int:
    """Measure, write the JSON and print one line per batch size and budget."""
    result = bench_prefill(
        resolve_model(arguments.model),
        arguments.selector,
        arguments.budgets,
        [int(size) for size in arguments.batches.split(",")],
        repeats=arguments.repeats,
        warmup=arguments.warmup,
        device=arguments.device,
        compiled=arguments.compile,
    )
    path = Path(arguments.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    print("\n".join(bench_lines(result)))
    return 0
