"""The `autoselect` command. Every sub-command lives beside what it runs."""

import argparse
import logging
import sys

from autoselect import __version__
from autoselect.config import ConfigError
from autoselect.data.commands import add_shards_commands
from autoselect.demo import add_demo_commands
from autoselect.evaluation.commands import add_bench_command, add_eval_command
from autoselect.plan import add_plan_command
from autoselect.reference.commands import add_reference_commands


def parser() -> argparse.ArgumentParser:
    """All sub-commands; each sets `run`, a function of the parsed arguments."""
    root = argparse.ArgumentParser(
        prog="autoselect", description="Learn which visual tokens matter to a frozen VLM."
    )
    root.add_argument("--version", action="version", version=f"autoselect {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_demo_commands(commands)
    add_shards_commands(commands)
    add_eval_command(commands)
    add_bench_command(commands)
    add_plan_command(commands)
    add_reference_commands(commands)
    info = commands.add_parser("info", help="versions, and which path each operator takes")
    info.set_defaults(run=show_info)
    return root


def show_info(arguments: argparse.Namespace) -> int:
    """Print build information of the package and its extension."""
    from autoselect.ops import build_info

    for name, value in build_info().items():
        print(f"{name:<22} {value}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; user errors are one line and exit code 2."""
    options = parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    for noisy in ("httpx", "alembic", "mlflow", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return options.run(options) or 0
    except ConfigError as error:
        print(f"autoselect: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"autoselect {options.command}: interrupted; run it again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
