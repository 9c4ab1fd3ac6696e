"""The `autoselect` command. Each sub-command is defined in the package that it runs."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from autoselect import __version__
from autoselect.cli.import_faults import explained_imports
from autoselect.cli.surroundings import settle_in
from autoselect.config import ConfigError
from autoselect.config.bounds import place
from autoselect.config.destinations import check_file, check_folder
from autoselect.config.flags import CommandParser, describe_commands
from autoselect.config.programs import EXIT_INTERRUPTED, EXIT_READER_LEFT
from autoselect.files.atomic import DISK_FULL
from autoselect.ranks.rank_info import RankInfo

GROUPS = {
    "first steps": {
        "demo": ("cli.demo.add_demo_command", "train and evaluate a selector on the reference VLM"),
        "show": ("cli.show.add_show_command", "ask about a photo with all and with fewer tokens"),
        "report": ("cli.demo.add_report_command", "compare the demo's selector with all baselines"),
        "info": ("cli.main.add_info_command", "print versions, and which path each operator takes"),
    },
    "data": {
        "shards": ("data.commands.add_shards_commands", "index, verify and convert shards"),
        "reference": (
            "reference.commands.add_reference_commands",
            "make the reference VLM and data",
        ),
    },
    "train": {
        "plan": ("preflight.plan.add_plan_command", "estimate memory and time of a training run"),
        "doctor": (
            "preflight.commands.add_doctor_command",
            "check a training run before it starts",
        ),
        "train": ("cli.launch.add_train_command", "train a selector on this machine"),
        "dashboard": ("cli.demo.add_dashboard_command", "serve the MLflow pages on loopback"),
    },
    "evaluate": {
        "tune": ("tuning.commands.add_tune_command", "find the diversity for each budget"),
        "eval": ("evaluation.commands.add_eval_command", "measure accuracy retention and speed"),
        "bench": ("cli.bench.add_bench_command", "measure latency, or run public benchmarks"),
        "analyse": (
            "evaluation.commands.add_analyse_command",
            "draw figures 3 to 5 of the paper, and more",
        ),
        "ablate": ("ablation.commands.add_ablate_command", "train and compare variants over seeds"),
        "evidence": (
            "ablation.commands.add_evidence_command",
            "write ablation tables into a page",
        ),
    },
    "serve": {
        "serve": ("serving.command.add_serve_command", "serve a model with a selector by vLLM"),
    },
}
"""Sub-commands by step: the function in `autoselect` that adds each one, and its summary."""
FOLDERS = ("out", "output", "work")
"""Flags that name the folder of a command's results."""
RESUMED = (
    *("demo", "report", "shards index", "shards convert", "reference shards", "reference train"),
    *("train", "tune", "eval", "bench public", "ablate"),
)
"""How the commands begin that keep what they finished before Ctrl-C."""
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def parser(wanted: str | None) -> argparse.ArgumentParser:
    """Build the command line; only the wanted sub-command is imported, as some take seconds."""
    root = CommandParser(
        prog="autoselect",
        usage="autoselect COMMAND [--help]",
        description="Learn which visual tokens matter to a frozen VLM.",
        epilog=commands_by_step(),
    )
    root.add_argument("--version", action="version", version=f"autoselect {__version__}")
    commands = root.add_subparsers(
        dest="command", metavar="COMMAND", prog="autoselect", help=argparse.SUPPRESS
    )
    for name, (home, summary) in COMMANDS.items():
        if name == wanted:
            module, _, add = home.rpartition(".")
            getattr(import_module(f"autoselect.{module}"), add)(commands)
        else:
            commands.add_parser(name, help=summary)
    describe_commands(root)
    return root


def commands_by_step() -> str:
    lines = []
    for step, commands in GROUPS.items():
        lines.append(f"\n{step}:")
        lines += [f"  {name:<10} {summary}" for name, (_, summary) in commands.items()]
    return "\n".join(lines).lstrip()


def add_info_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    info = subparsers.add_parser("info", help=COMMANDS["info"][1])
    info.set_defaults(run=show_info)


def show_info(arguments: argparse.Namespace) -> int:
    from autoselect.ops import build_info

    for name, value in build_info().items():
        if isinstance(value, dict):
            print(name)
            for part, detail in value.items():
                print(f"  {part:<32} {_in_line(detail)}")
        else:
            print(f"{name:<34} {_in_line(value)}")
    return 0


def _in_line(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def check_destinations(options: argparse.Namespace) -> None:
    for name, value in vars(options).items():
        if isinstance(value, str | Path) and name in (*FOLDERS, "json"):
            place(name, str(value))
            (check_file if name == "json" else check_folder)(name, value)


def check_alone(options: argparse.Namespace) -> None:
    """Refuse a command that writes or starts a run if several processes are to do it together.

    Raises:
        ConfigError: this is one of several tasks of `srun`, or of several processes of mpirun.
    """
    writes = any(hasattr(options, name) for name in FOLDERS)
    by_launcher = "RANK" in os.environ or "WORLD_SIZE" in os.environ
    if by_launcher or not (writes or options.command in ("demo", "report", "train")):
        return
    tasks = RankInfo.from_environment().world_size
    if tasks > 1:
        raise ConfigError(
            f"SLURM_STEP_NUM_TASKS={tasks}: each task would do all that autoselect "
            f"{options.command} does; give srun --ntasks=1, or start ranks as docs/cluster.md says"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; a user error is printed as one line and gives exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    for noisy in ("httpx", "alembic", "mlflow", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    settle_in()
    try:
        with explained_imports():
            root = parser(words[0] if words else None)
            options, flags = root.parse_known_args(words)
            if getattr(options, "takes_settings", False):
                options.settings = flags
            if options.command is None:
                root.exit(2, f"{root.format_help()}\nautoselect: name a COMMAND of those above\n")
            check_alone(options)
            check_destinations(options)
            code = options.run(options) or 0
            sys.stdout.flush()  # what cannot be written is said here, not while Python ends
            return code
    except BrokenPipeError:  # the reader of the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_READER_LEFT
    except ConfigError as error:
        print(f"autoselect: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, PermissionError) and error.filename is not None:
            print(
                f"autoselect: {error.filename} cannot be opened ({error.strerror}); mend its "
                "permissions and those of the folders above it, or name another path",
                file=sys.stderr,
            )
            return 2
        if error.errno not in DISK_FULL:
            raise
        print(f"autoselect: {error}; free some space and run it again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        more = "; run it again to resume" if " ".join(words).startswith(RESUMED) else ""
        print(f"autoselect {words[0]}: interrupted{more}", file=sys.stderr)
        return EXIT_INTERRUPTED
