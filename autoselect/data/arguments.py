"""Arguments that several `autoselect shards` commands share."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from autoselect.data.convert import REJECTED, ConvertReport
from autoselect.data.decode import Limits
from autoselect.data.quarantine import DEFAULT_BUDGET, sufficient_budget

SAMPLES_PER_SHARD = 1000


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    """Add a sub-command that works in several processes; `run` returns its exit code."""
    parser = commands.add_parser(name, help=summary)
    parser.set_defaults(run=run)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser


def add_output_arguments(
    parser: argparse.ArgumentParser,
    samples_per_shard: int | None = SAMPLES_PER_SHARD,
    about_samples: str = "",
) -> None:
    """Add what every converter takes: output folder, sizes, and how much may be unusable."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--samples-per-shard",
        type=int,
        default=samples_per_shard,
        metavar="N",
        help=f"samples of a full shard {about_samples}".strip(),
    )
    parser.add_argument(
        "--max-rejected",
        type=_fraction,
        default=DEFAULT_BUDGET,
        metavar="FRACTION",
        help="exit with 1 if a larger fraction of the rows is unusable",
    )
    add_limit_arguments(parser)


def _fraction(text: str) -> float:
    try:
        if 0 <= float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is not a fraction of 0..1; give 0.05 for 5 %")


def tell_rejected(report: ConvertReport, arguments: argparse.Namespace) -> int:
    """Print where the rejected rows are listed; return 1, and say so, if they are too many."""
    rejected, rows, most = report.rejected, report.rows, arguments.max_rejected
    listed = arguments.output / REJECTED
    if len(rejected) > most * rows:
        first, enough = rejected[0], sufficient_budget(len(rejected), rows)
        fix = f"correct the rows that {listed} lists, then convert into an empty folder"
        if report.samples:
            fix += f"; or go on without them: --max-rejected {enough:g}"
        sys.stdout.flush()
        print(
            f"autoselect: max_rejected={most:g} is exceeded: {len(rejected)} of {rows} rows "
            f"cannot be used, the first is row {first.row} ({first.detail}); {fix}",
            file=sys.stderr,
        )
        return 1
    if rejected:
        print(f"rejected rows are listed in {listed}")
    return 0


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the caps that indexes store for everyone who reads the shards."""
    limits = Limits()
    parser.add_argument(
        "--max-member-bytes", type=int, default=limits.member_bytes, help="cap on a stored file"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=limits.pixels, help="cap on width times height"
    )


def chosen_limits(arguments: argparse.Namespace) -> Limits:
    """Return the caps given by the flags of `add_limit_arguments`."""
    return Limits(arguments.max_member_bytes, arguments.max_pixels)
