"""The command `autoselect doctor`."""

from __future__ import annotations

import argparse

from autoselect.config.programs import DEFAULT_DEEPSPEED, DEFAULT_PORT
from autoselect.preflight.plan import GPUS, SETTINGS


def add_doctor_command(subparsers: argparse._SubParsersAction) -> None:
    doctor = subparsers.add_parser(
        "doctor",
        help="check a training run, everything but compute, before it starts",
        epilog=SETTINGS,
        allow_abbrev=False,
    )
    doctor.add_argument("--config", metavar="YAML", help="settings of the training run")
    batches = "its batch sizes, ZeRO stage and clipping"
    doctor.add_argument("--deepspeed", default=DEFAULT_DEEPSPEED, metavar="JSON", help=batches)
    doctor.add_argument("--gpus", type=int, default=1, help="devices of all nodes together")
    doctor.add_argument("--gpu", choices=sorted(GPUS), help="kind of GPU, if none is visible here")
    doctor.add_argument("--gpu-memory", type=float, help="usable GiB per device")
    doctor.add_argument("--visual-tokens", type=int, help="per image, if the model varies them")
    doctor.add_argument(
        "--port",
        type=int,
        help=f"port where the ranks meet (default MASTER_PORT, or {DEFAULT_PORT})",
    )
    doctor.add_argument(
        "--removal-images",
        type=int,
        default=0,
        metavar="N",
        help="also run the model on N training samples with random visual tokens removed, at the "
        "training budgets: does it bear removal at all? (default 0: the model is not run)",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=run_doctor, takes_settings=True)


def run_doctor(arguments: argparse.Namespace) -> int:
    from autoselect.preflight.doctor import run_doctor as run

    return run(arguments)
