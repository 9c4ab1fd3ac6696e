"""The commands `autoselect eval`, `autoselect analyse` and `autoselect bench prefill`."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from autoselect.config import ConfigError, GateSite
from autoselect.config.flags import add_setting_flags, flag_help, read_settings
from autoselect.config.setting import help_of
from autoselect.evaluation.analyses.kinds import KINDS, PATCHES, SIMILARITY
from autoselect.evaluation.settings import ONE_SELECTOR, EvalSettings
from autoselect.files.atomic import write_text
from autoselect.reference.resources import resolve_model, resolve_shards

MOST_ANALYSED = 256
BENCH_BUDGETS, BATCHES = "5.5%,11%,22%,33%", "1,8,32"


def add_eval_command(subparsers: Any) -> None:
    """Add `eval` to the `autoselect` command; `arguments.run(arguments)` executes it."""
    parser = subparsers.add_parser(
        "eval", help="measure accuracy retention and prefill speed of a selector beside baselines"
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
    from autoselect.evaluation.report.tables import terminal_table
    from autoselect.evaluation.run import evaluate

    result = evaluate(settings_of(arguments))
    if result is not None:
        out = Path(arguments.out)
        print(f"\n{terminal_table(result.report)}")
        print(f"report: {out / 'report.html'}, {out / 'report.md'}, {out / 'report.json'}")
    return 0


def add_analyse_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "analyse", help="analyse a selector in one way and draw the figure"
    )
    parser.add_argument("kind", choices=KINDS, help="what to analyse")
    own = {
        "selector": ONE_SELECTOR,
        "shards": "folder or glob of the shards that hold the images, or reference",
        "budgets": f"{flag_help(EvalSettings, 'budgets')} (not for {SIMILARITY})",
        "out": "folder for KIND.json and KIND.png",
    }
    for name in ("model", "selector", "shards", "budgets", "out"):
        text = own.get(name) or flag_help(EvalSettings, name)
        parser.add_argument(f"--{name}", required=name in ("shards", "out"), help=text)
    parser.add_argument(
        "--site",
        choices=(*get_args(GateSite), PATCHES),
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
    from autoselect.evaluation.analyses.command import analyse

    return analyse(arguments)


def add_prefill_bench(kinds: Any) -> None:
    parser = kinds.add_parser("prefill", help="measure prefill latency, full against pruned")
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
    parser.add_argument("--repeats", type=int, help=help_of(EvalSettings, "latency_repeats"))
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
    from autoselect.evaluation.latency.bench import bench_lines, bench_prefill
    from autoselect.evaluation.latency.protocol import Rounds

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
