"""The commands `autoselect ablate` and `autoselect evidence`."""

import argparse
from pathlib import Path
from typing import Any

from autoselect.ablation.variants import CHANGEABLE, AblationPlan
from autoselect.config.setting import help_of

OF_CONFIG = "that of --config"


def add_ablate_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "ablate", help="train and evaluate variants over several seeds, and compare them"
    )
    plan = Path("configs/ablation/reference.yaml")
    parser.add_argument("--config", type=Path, default=plan, help="YAML of the ablation")
    folder = "folder for all cells and the tables"
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help=folder)
    parser.add_argument("--only", metavar="NAMES", help="variants, comma-separated; by default all")
    seeds = f"{help_of(AblationPlan, 'seeds')}; comma-separated (default {OF_CONFIG})"
    parser.add_argument("--seeds", help=seeds)
    for name in CHANGEABLE:
        text = f"{help_of(AblationPlan, name)} (default {OF_CONFIG})"
        parser.add_argument(f"--{name}", type=int, help=text)
    parser.add_argument("--jobs", type=int, default=1, help="cells at the same time")
    parser.add_argument("--collect", action="store_true", help="only collect what is finished")
    parser.add_argument("--no-tracking", action="store_true", help="do not log to MLflow")
    parser.set_defaults(run=run_ablation)


def add_evidence_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("evidence", help="write an ablation's tables into a page")
    found, page = Path("runs/ablation/ablation.json"), Path("docs/evidence.md")
    parser.add_argument(
        "--ablation", type=Path, default=found, help="output of `autoselect ablate`"
    )
    parser.add_argument("--page", type=Path, default=page, help="page whose blocks are replaced")
    parser.set_defaults(run=run_evidence)


def run_ablation(arguments: argparse.Namespace) -> int:
    from autoselect.ablation.run import ablate

    return ablate(arguments)


def run_evidence(arguments: argparse.Namespace) -> int:
    from autoselect.ablation.run import write_evidence

    return write_evidence(arguments)
