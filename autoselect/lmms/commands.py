"""The commands `autoselect bench public` and `autoselect bench local-task`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from autoselect.config.flags import add_setting_flags, flag_help, read_settings
from autoselect.evaluation.settings import EvalSettings
from autoselect.lmms.settings import PublicSettings
from autoselect.reference.resources import resolve_model, resolve_shards


def add_public_bench(kinds: Any) -> None:
    parser = kinds.add_parser(
        "public", help="run public benchmarks through lmms-eval, unpruned and pruned"
    )
    add_setting_flags(parser, PublicSettings)
    parser.set_defaults(run=run_public_bench)
    local = kinds.add_parser("local-task", help="turn evaluation shards into a task of lmms-eval")
    local.add_argument(
        "--shards", required=True, help="folder or glob of evaluation shards, or reference"
    )
    local.add_argument("--name", default="local_shards", help="name of the task")
    local.add_argument("--out", type=Path, required=True, help="folder to pass to --include")
    longest = EvalSettings.max_new_tokens  # so that the scores are those of `autoselect eval`
    help_text = flag_help(EvalSettings, "max_new_tokens", longest)
    local.add_argument("--max-new-tokens", type=int, default=longest, help=help_text)
    local.set_defaults(run=run_local_task)


def run_public_bench(arguments: argparse.Namespace) -> int:
    from autoselect.lmms.bench import bench_public

    settings = read_settings(PublicSettings, arguments)
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
