"""The sub-commands `autoselect shards convert-<benchmark>`, one per line of the table."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from autoselect.data.arguments import (
    add_command,
    add_output_arguments,
    chosen_limits,
    tell_rejected,
)
from autoselect.data.benchmarks.driver import convert_public
from autoselect.data.benchmarks.table import BENCHMARKS, Benchmark


def add_public_converters(commands: Any) -> None:
    """Add a converter for every benchmark to the sub-parsers `commands`."""
    for benchmark in BENCHMARKS.values():
        name, run = f"convert-{benchmark.name}", partial(run_public, benchmark)
        parser = add_command(commands, name, run, benchmark.summary)
        for name, what in benchmark.files.items():
            needed = name not in benchmark.optional
            parser.add_argument(f"--{name}", type=Path, required=needed, metavar="PATH", help=what)
        add_output_arguments(parser)


def run_public(benchmark: Benchmark, arguments: argparse.Namespace) -> int:
    """Convert a benchmark; return 1 if too many rows are rejected."""
    paths = {name: getattr(arguments, name) for name in benchmark.files}
    report = convert_public(
        benchmark,
        {name: path for name, path in paths.items() if path is not None},
        arguments.output,
        samples_per_shard=arguments.samples_per_shard,
        workers=arguments.workers,
        limits=chosen_limits(arguments),
    )
    done = report.conversion
    print(
        f"{benchmark.name}: {report.questions} questions in {done.rows} rows; {done.samples} "
        f"samples in {done.shards} shards; {len(done.rejected)} rows with "
        f"{report.lost_questions} questions rejected"
    )
    print(done.remarks())
    if benchmark.note:
        print(benchmark.note)
    return tell_rejected(done, arguments)
