"""`autoselect demo`, `report` and `dashboard`: the main job on the reference VLM.

The demo starts the same programs as a user: shards, training under the `deepspeed` launcher, then
evaluation under `torchrun`. Every step keeps its results, so an interrupted demo resumes. It
evaluates the selector beside a few baselines; the report has all of them.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from autoselect.config import ConfigError, DataConfig, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig, resolved_settings
from autoselect.config.files import SETTINGS_FILE
from autoselect.config.flags import check_counts, check_port
from autoselect.config.programs import (
    DEFAULT_DEEPSPEED,
    DEFAULT_PORT,
    call,
    checkout,
    eval_command,
    train_command,
    visible_gpus,
)
from autoselect.data.shards import ShardSet
from autoselect.files.digest import same_weights
from autoselect.reference.resources import (
    REFERENCE,
    REFERENCE_ANSWER_TOKENS,
    REFERENCE_ROWS,
    SHARDS_FOLDER,
    resolve_model,
)

RUN = Path("runs/demo")
REPORT = Path("runs/report")
BUDGETS = "8,16,32"
DIVERSITIES = "own,0"
DEMO_METHODS = "random,cls_attention,scope,score"
DEMO_SEEDS, REPORT_SEEDS = 1, 3
NEXT = """report      {run}/report.html, {run}/report.md
selector    {run}/train/selector/

what next
  {show:<25}  ask about a test scene with all and with fewer tokens
  make dashboard             the MLflow pages of training and evaluation
  make report                all baselines on more images
  docs/tutorial.md           train a selector on your own data
"""


def add_demo_command(subparsers: Any) -> None:
    demo = subparsers.add_parser("demo", help="train and evaluate a selector in runs/demo")
    demo.add_argument("--images", type=int, default=300, help="test images that are evaluated")
    add_rank_flag(demo)
    port = "TCP port where the ranks of the training meet"
    demo.add_argument("--port", type=int, default=DEFAULT_PORT, help=port)
    demo.set_defaults(run=run_demo)


def add_rank_flag(command: argparse.ArgumentParser) -> None:
    most = "processes; by default one per GPU, at most two, and two without a GPU"
    command.add_argument("--ranks", type=int, help=most)


def add_report_command(subparsers: Any) -> None:
    report = subparsers.add_parser("report", help="evaluate the demo's selector with all methods")
    report.add_argument("--images", type=int, default=1000, help="number of test images")
    add_rank_flag(report)
    report.set_defaults(run=run_report)


def add_dashboard_command(subparsers: Any) -> None:
    dashboard = subparsers.add_parser("dashboard", help="serve the MLflow pages on loopback")
    dashboard.add_argument("--port", type=int, default=5000, help="TCP port of the pages")
    dashboard.set_defaults(run=run_dashboard)


def announce(number: int, what: str) -> None:
    print(f"\n[demo {number}/3] {what}", flush=True)


def step(command: list[str], again: str = "the demo again") -> None:
    call(command, again, checkout())


def run_demo(arguments: argparse.Namespace) -> int:
    ranks = min(2, visible_gpus() or 2) if arguments.ranks is None else arguments.ranks
    check_counts(ranks=ranks, images=arguments.images)
    check_port(arguments.port)
    started = time.monotonic()
    announce(1, "reference data as WebDataset shards")
    step(["autoselect", "reference", "shards"])
    announce(2, f"training Scorer and Denoiser, {ranks} ranks, DeepSpeed ZeRO-2")
    if is_trained(checkout()):
        print(f"finished before; remove {RUN}/train to train anew")
    else:
        step(train_command(RUN / "train", ranks, arguments.port))
    announce(3, "evaluation: tokens are removed; baselines get the same budgets")
    settings = demo_evaluation(RUN, DEMO_METHODS, arguments.images, DEMO_SEEDS)
    evaluate(settings, ranks)
    minutes = (time.monotonic() - started) / 60
    print(f"\nfinished in {minutes:.1f} minutes\n\n{own_table(RUN)}\n")
    print(f"picture     {RUN}/figures/overlays.png")
    print(NEXT.format(run=RUN, show=f"{program()} show"), end="")
    return 0


def is_trained(root: Path) -> bool:
    """Return True if the demo's training below `root` is finished, its search included.

    Its settings, shards and model must be the present ones. Anything else is for the training
    itself, which resumes or says what has changed.
    """
    settings, made = root / RUN / "train" / SETTINGS_FILE, root / RUN / "train" / "selector"
    try:
        before = yaml.safe_load(settings.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    data = DataConfig(train_shards=f"{SHARDS_FOLDER}/train-*.tar")
    output = str(RUN / "train")
    config = TrainConfig(model=resolve_model(REFERENCE), output=output, data=data)
    deepspeed = DeepSpeedConfig.load(root / DEFAULT_DEEPSPEED)
    if before != resolved_settings(config, deepspeed):
        return False
    from autoselect.pruning.folder import missing_of_training, read_config  # imports torch
    from autoselect.vlm.loading import weights_digest  # imports torch and transformers

    if missing_of_training(made, config.tune_images):
        return False
    training = read_config(made)["training"]
    tuned_on = training["tuning"].get("data_digest")
    if tuned_on != ShardSet.open(str(root / data.train_shards)).digest:
        return False
    return same_weights(training.get("model_digest"), weights_digest(config.model))


def program() -> str:
    """Return how to call `autoselect` here: by its path if its environment is not activated."""
    script = Path(sys.executable).with_name("autoselect")
    known = shutil.which("autoselect") is not None or not script.exists()
    return "autoselect" if known else os.path.relpath(script)


def own_table(run: Path) -> str:
    """Return retention and speedup of a finished evaluation as text."""
    from autoselect.evaluation.report.tables import terminal_table

    return terminal_table(json.loads((checkout() / run / "report.json").read_text()))


def demo_evaluation(out: Path, methods: str, images: int, seeds: int) -> dict[str, Any]:
    """Return settings that evaluate the demo's selector on the reference test shards."""
    return {
        "model": "autoselect/reference/model",
        "selector": RUN / "train" / "selector",
        "shards": "runs/reference/shards/test-*.tar",
        "budgets": BUDGETS,
        "methods": methods,
        "random_seeds": seeds,
        "diversity": DIVERSITIES,
        "max_images": images,
        "max_new_tokens": REFERENCE_ANSWER_TOKENS,
        "rows_per_batch": REFERENCE_ROWS,
        "out": out,
    }


def evaluate(settings: dict[str, Any], ranks: int, again: str = "the demo again") -> None:
    """Evaluate; the report of an earlier demo with other settings, such as `--images`, goes."""
    report = checkout() / str(settings["out"]) / "report.json"
    if report.is_file():
        from autoselect.evaluation.earlier import remove_earlier
        from autoselect.evaluation.settings import EvalSettings

        remove_earlier(report, EvalSettings(**settings))
    step(eval_command(settings, ranks), again)


def run_report(arguments: argparse.Namespace) -> int:
    ranks = min(2, visible_gpus() or 2) if arguments.ranks is None else arguments.ranks
    check_counts(ranks=ranks, images=arguments.images)
    if not (checkout() / RUN / "train" / "selector").is_dir():
        raise ConfigError(f"{RUN}/train/selector does not exist; run `make demo` first")
    settings = demo_evaluation(REPORT, "all", arguments.images, REPORT_SEEDS)
    evaluate(settings, ranks, "the report again")
    print(f"\n{own_table(REPORT)}\n\nreport      {REPORT}/report.html, {REPORT}/report.md")
    return 0


def run_dashboard(arguments: argparse.Namespace) -> int:
    from autoselect.tracking.dashboard import serve

    check_port(arguments.port)
    return serve(arguments.port)
