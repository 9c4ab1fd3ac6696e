"""The command `autoselect bench`: prefill latency, and public benchmarks through lmms-eval."""

from typing import Any

from autoselect.evaluation.commands import add_prefill_bench
from autoselect.lmms.commands import add_public_bench


def add_bench_command(subparsers: Any) -> None:
    bench = subparsers.add_parser("bench", help="measure latency, or run public benchmarks")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="COMMAND")
    add_prefill_bench(kinds)
    add_public_bench(kinds)
