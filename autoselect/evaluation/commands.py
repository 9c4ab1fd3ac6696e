"""The commands `autoselect eval`, `autoselect analyse` and `autoselect bench prefill`."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from autoselect.evaluation.analyse import ANALYSES, Subject, analyse
from autoselect.evaluation.bench import bench_prefill
from autoselect.evaluation.budgets import parse_budgets
from autoselect.evaluation.loading import load_pair
from autoselect.evaluation.run import EvalSettings, evaluate
from autoselect.evaluation.samples import EvaluationSet
from autoselect.reference.resources import resolve_model, resolve_shards

HELP = {
    "model": "folder or hub name of the vision-language model, or reference",
    "selector": "folder of the trained selector",
    "shards": "glob of the evaluation shards, or reference",
    "budgets": "visual tokens kept: counts, ratios (0.11) or percentages (11%%), comma-separated",
    "out": "folder for report.json, report.md, the figures and the predictions",
    "methods": "baselines, comma-separated, or all",
    "max_images": "evaluate only the first images",
    "random_seeds": "seeds of the random baseline",
    "images_per_part": "images encoded together; the unit of restart",
    "rows_per_batch": "questions answered together",
    "max_new_tokens": "longest answer in tokens",
    "likelihood": "answer yes/no and multiple-choice questions with the likeliest candidate",
    "latency_batch": "batch size of the latency measurement",
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
    for field in dataclasses.fields(EvalSettings):
        required = field.default is dataclasses.MISSING
        if isinstance(field.default, bool):
            parser.add_argument(
                f"--{field.name}",
                action=argparse.BooleanOptionalAction,
                default=field.default,
                help=HELP[field.name],
            )
            continue
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            required=required,
            default=None if required else field.default,
            type=int if "int" in str(field.type) else str,
            help=HELP[field.name],
        )


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
        print((Path(arguments.out) / "report.md").read_text())
        print(f"report: {Path(arguments.out) / 'report.json'}")
    return 0


def add_analyse_command(subparsers: Any) -> None:
    """Add `analyse` to the `autoselect` command."""
    parser = subparsers.add_parser("analyse", help="one analysis of a selector, with its figure")
    parser.add_argument("kind", choices=sorted(ANALYSES), help="what to analyse")
    for name in ("model", "selector", "shards", "budgets", "out"):
        parser.add_argument(f"--{name}", required=True, help=HELP[name])
    parser.add_argument("--max-images", type=int, default=256, help=HELP["max_images"])
    parser.add_argument("--device", default=None, help=HELP["device"])
    parser.set_defaults(run=run_analyse)


def run_analyse(arguments: argparse.Namespace) -> int:
    """Analyse, and print the numbers and where the figure is."""
    shards = resolve_shards(arguments.shards, "test")
    samples = EvaluationSet.open(shards, arguments.max_images)
    vlm, selector = load_pair(resolve_model(arguments.model), arguments.selector, arguments.device)
    num_tokens = vlm.encode_images([samples[0].image]).tokens.shape[1]
    budgets = parse_budgets(arguments.budgets, num_tokens)
    subject = Subject(vlm, selector, list(samples), budgets)
    numbers = analyse(arguments.kind, subject, Path(arguments.out))
    if arguments.kind != "frequency":
        print(json.dumps(numbers, indent=1))
    print(f"figure: {Path(arguments.out) / arguments.kind}.png")
    return 0


def add_bench_command(subparsers: Any) -> None:
    """Add `bench prefill` to the `autoselect` command."""
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
    parser.add_argument("--json", required=True, help="file for the result")
    parser.set_defaults(run=run_bench)


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
    )
    path = Path(arguments.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    print(f"{'batch':>5} {'tokens':>6} {'prefill ms':>11} {'selector ms':>11} {'speedup':>8}")
    for run in result["runs"]:
        batch, full = run["batch_size"], run["full_prefill_ms"]
        print(f"{batch:>5} {result['num_tokens']:>6} {full:>11.2f} {'-':>11} {1:>8.2f}")
        for row in run["pruned"]:
            print(
                f"{batch:>5} {row['budget']:>6} {row['prefill_ms']:>11.2f} "
                f"{row['selector_ms']:>11.2f} {row['speedup']:>8.2f}"
            )
    return 0
