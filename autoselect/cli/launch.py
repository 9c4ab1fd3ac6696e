"""`autoselect train`: start training on this machine under the `deepspeed` launcher.

It replaces itself with `deepspeed --num_gpus=RANKS autoselect/train.py ...`, so signals and exit
codes are those of the launcher. For several nodes see docs/cluster.md.
"""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.extras import require_extra
from autoselect.config.flags import check_counts, check_port, settings_help
from autoselect.config.programs import (
    DEFAULT_DEEPSPEED,
    DEFAULT_PORT,
    launch_environment,
    launcher,
    patient,
    visible_gpus,
)

TRAIN_PROGRAM = Path(__file__).resolve().parents[1] / "train.py"


def add_train_command(subparsers: Any) -> None:
    train = subparsers.add_parser(
        "train",
        usage="autoselect train [--ranks N] [--deepspeed JSON] [--config YAML] [--SETTING VALUE]",
        help="train a selector on this machine",
        description="Train a selector on this machine, one process per GPU.",
        epilog=settings_help(TrainConfig),
        allow_abbrev=False,
    )
    train.add_argument("--ranks", type=int, help="processes; by default one per GPU, or one")
    train.add_argument("--port", type=int, default=DEFAULT_PORT, help="port where the ranks meet")
    batches = "batch sizes, ZeRO stage and clipping"
    train.add_argument("--deepspeed", metavar="JSON", default=DEFAULT_DEEPSPEED, help=batches)
    train.add_argument("--config", metavar="YAML", help="settings that the flags below override")
    train.set_defaults(run=run_train, takes_settings=True)


def run_train(arguments: argparse.Namespace) -> int:
    ranks = visible_gpus() or 1 if arguments.ranks is None else arguments.ranks
    check_counts(ranks=ranks)
    check_port(arguments.port)
    for name in ("deepspeed", "config"):
        path = getattr(arguments, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"{name}={path} is not a file; name one with --{name}")
    require_extra("training", "deepspeed")
    command = [*launcher(ranks, arguments.port), str(TRAIN_PROGRAM)]
    command += ["--deepspeed", arguments.deepspeed]
    command += ["--config", arguments.config] if arguments.config else []
    command += arguments.settings
    print(f"$ {shlex.join(command)}", flush=True)
    command = patient(command)
    os.execvpe(command[0], command, launch_environment())
