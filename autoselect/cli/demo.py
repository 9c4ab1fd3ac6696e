"""`autoselect demo`, `report` and `dashboard`: the main job on the reference VLM.

The demo starts the same programs as a user: shards, then the `deepspeed` launcher, then `eval`.
Every step keeps its results, so an interrupted demo resumes.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.config.flags import check_counts, check_port
from autoselect.config.programs import DEFAULT_PORT, call, checkout, eval_command, train_command
from autoselect.reference.resources import REFERENCE_ANSWER_TOKENS, REFERENCE_ROWS

RUN = Path("runs/demo")
REPORT = Path("runs/report")
BUDGETS = "8,16,32"
DIVERSITIES = "0,own"
DEMO_METHODS = "random,grid,norm,cls_attention,visionzip,divprune,cdpruner,fastv,oracle"


def add_demo_command(subparsers: Any) -> None:
    demo = subparsers.add_parser("demo", help="train and evaluate a selector in runs/demo")
    demo.add_argument("--ranks", type=int, default=2, help="training processes on this machine")
    demo.add_argument("--images", type=int, default=300, help="test images that are evaluated")
    demo.add_argument("--port", type=int, default=DEFAULT_PORT, help="port where the ranks meet")
    demo.set_defaults(run=run_demo)


def add_report_command(subparsers: Any) -> None:
    report = subparsers.add_parser("report", help="evaluate the demo's selector with all methods")
    report.add_argument("--images", type=int, default=1000, help="number of test images")
    report.set_defaults(run=run_report)


def add_dashboard_command(subparsers: Any) -> None:
    dashboard = subparsers.add_parser("dashboard", help="serve the MLflow pages on loopback")
    dashboard.add_argument("--port", type=int, default=5000, help="TCP port of the pages")
    dashboard.set_defaults(run=run_dashboard)


def announce(number: int, total: int, what: str) -> None:
    print(f"\n[demo {number}/{total}] {what}", flush=True)


def step(command: list[str], again: str = "the demo again") -> None:
    call(command, again, checkout())


def run_demo(arguments: argparse.Namespace) -> int:
    check_counts(ranks=arguments.ranks, images=arguments.images)
    check_port(arguments.port)
    started = time.monotonic()
    announce(1, 3, "reference data as WebDataset shards")
    step(["autoselect", "reference", "shards"])
    announce(2, 3, f"training Scorer and Denoiser, {arguments.ranks} ranks, DeepSpeed ZeRO-2")
    step(train_command(RUN / "train", arguments.ranks, arguments.port))
    announce(3, 3, "evaluation: tokens are removed; baselines get the same budgets")
    step(demo_eval_command(RUN, DEMO_METHODS, arguments.images))
    minutes = (time.monotonic() - started) / 60
    print(f"\nfinished in {minutes:.1f} minutes")
    print(f"report      {RUN}/report.md, {RUN}/report.json")
    print(f"figures     {RUN}/figures/")
    print(f"selector    {RUN}/train/selector/")
    print("dashboard   make dashboard")
    return 0


def demo_eval_command(out: Path, methods: str, images: int) -> list[str]:
    """Return the command that evaluates the demo's selector on the reference test shards."""
    return eval_command(
        {
            "model": "autoselect/reference/model",
            "selector": RUN / "train" / "selector",
            "shards": "runs/reference/shards/test-*.tar",
            "budgets": BUDGETS,
            "methods": methods,
            "diversity": DIVERSITIES,
            "max_images": images,
            "max_new_tokens": REFERENCE_ANSWER_TOKENS,
            "rows_per_batch": REFERENCE_ROWS,
            "out": out,
        }
    )


def run_report(arguments: argparse.Namespace) -> int:
    check_counts(images=arguments.images)
    if not (checkout() / RUN / "train" / "selector").is_dir():
        raise ConfigError(f"{RUN}/train/selector does not exist; run `make demo` first")
    step(demo_eval_command(REPORT, "all", arguments.images), "the report again")
    return 0


def run_dashboard(arguments: argparse.Namespace) -> int:
    from autoselect.tracking.dashboard import serve

    check_port(arguments.port)
    return serve(arguments.port)
