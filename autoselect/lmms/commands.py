"""The commands `autoselect bench public` and `autoselect bench local-task`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from autoselect.config.flags import add_setting_flags
from autoselect.lmms.tasks import TEN
from autoselect.reference.resources import resolve_model, resolve_shards

HELP = {
    "model": "folder or hub name of the vision-language model",
    "selector": "folder or hub name of the trained selector",
    "budgets": "visual tokens kept: counts, ratios (0.11) or percentages (11%%), comma-separated",
    "tasks": "tasks of lmms-eval, comma-separated",
    "out": "folder for report.json, report.md and the finished cells",
    "methods": "autoselect, random, grid, norm, divprune, comma-separated",
    "batch_size": "questions answered together",
    "include": "folder with further tasks of lmms-eval",
    "limit": "only the first questions of every task",
    "launcher": "stands before -m lmms_eval: 'accelerate launch --num_processes 8'",
    "device": "cpu or cuda; a GPU where there is one by default",
    "latency": "measure prefill too",
    "experiment": "MLflow experiment",
    "tracking": "log to MLflow",
}


def add_public_bench(kinds: Any) -> None:
    from autoselect.lmms.bench import PublicSettings

    parser = kinds.add_parser(
        "public", help="run public benchmarks through lmms-eval, unpruned and pruned"
    )
    add_setting_flags(parser, PublicSettings, HELP, {"tasks": ",".join(TEN)})
    parser.set_defaults(run=run_public_bench)
    local = kinds.add_parser("local-task", help="turn evaluation shards into a task of lmms-eval")
    local.add_argument("--shards", required=True, help="glob of evaluation shards, or reference")
    local.add_argument("--name", default="local_shards", help="name of the task")
    local.add_argument("--out", type=Path, required=True, help="folder to pass to --include")
    local.add_argument("--max-new-tokens", type=int, default=4, help="longest answer, tokens")
    local.set_defaults(run=run_local_task)


def run_public_bench(arguments: argparse.Namespace) -> int:
    from autoselect.lmms.bench import PublicSettings, bench_public

    names = [field.name for field in dataclasses.fields(PublicSettings)]
    settings = PublicSettings(**{name: getattr(arguments, name) for name in names})
    bench_public(dataclasses.replace(settings, model=resolve_model(settings.model)))
    print((Path(settings.out) / "report.md").read_text())
    print(f"report: {Path(settings.out) / 'report.json'}")
    return 0


def run_local_task(arguments: argparse.Namespace) -> int:
    from autoselect.lmms.local_task import write_local_task

    shards = resolve_shards(arguments.shards, "test")
    write_local_task(arguments.name, shards, arguments.out, arguments.max_new_tokens)
    print(f"run it with --include {arguments.out} --tasks {arguments.name}")
    return 0
