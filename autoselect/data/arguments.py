"""Arguments that every converter to shards has."""

import argparse
from pathlib import Path

from autoselect.data.quarantine import DEFAULT_BUDGET


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the shards go, how large they are, and how many rows may be unusable."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N")
    parser.add_argument(
        "--max-rejected",
        type=float,
        default=DEFAULT_BUDGET,
        metavar="FRACTION",
        help="exit with 1 when more rows than this are unusable",
    )
