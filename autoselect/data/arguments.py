"""Arguments that several `autoselect shards` commands share."""

import argparse
from pathlib import Path

from autoselect.data.decode import Limits
from autoselect.data.quarantine import DEFAULT_BUDGET

SAMPLES_PER_SHARD = 1000


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every converter takes: output folder, sizes, and how much may be unusable."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--samples-per-shard",
        type=int,
        default=SAMPLES_PER_SHARD,
        metavar="N",
        help="samples of a full shard",
    )
    parser.add_argument(
        "--max-rejected",
        type=float,
        default=DEFAULT_BUDGET,
        metavar="FRACTION",
        help="exit with 1 if a larger fraction of the rows is unusable",
    )
    add_limit_arguments(parser)


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
