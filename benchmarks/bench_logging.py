"""How much time do the console line and the tracker add to a training step?

The real trainer runs the reference run on one rank. Every second step is logged to the console and
to MLflow on SQLite in a temporary folder; the other steps are the comparison. The cost of logging a
step is measured in two ways:

* `caller_ms`: wall time that the step waits, measured around the logging calls;
* `processor_ms`: processor time of all threads, with the delivery to SQLite. Every block of logged
  steps is delivered between two steps, and the processor time of this delivery is measured.

The paired difference of whole steps is reported too, but steps vary far more than logging costs.
The result is each cost divided by the median step. Run it with

    python benchmarks/bench_logging.py --output benchmarks/results/logging_cpu.json
"""

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import from_dict
from autoselect.files.atomic import write_text
from autoselect.ranks import processes
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.signals import SignalFlag
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.resources import resolve_model
from autoselect.reference.shards import render_shards
from autoselect.training.run import assemble
from autoselect.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
TARGET = 0.01


def make_trainer(folder: Path, steps: int) -> Trainer:
    """Build a trainer of the reference run that logs every step, on shards in `folder`."""
    render_shards(folder / "shards", ReferenceData(train=256, val=1, test=1), workers=1)
    info = processes.RankInfo(rank=0, world_size=1, local_rank=0, source="single")
    processes.setup_logging(info)
    processes.set_accelerator_default()
    processes.init_distributed(info, processes.choose_device(info))
    values = {
        "model": resolve_model("reference"),
        "output": str(folder / "run"),
        "steps": steps,
        "log_every": 1,
        "gate": {"calibration_images": 32},
        "data": {"train_shards": str(folder / "shards" / "train-*.tar")},
    }
    deepspeed = DeepSpeedConfig.load(ROOT / "configs" / "deepspeed" / "zero2.json")
    config = from_dict(TrainConfig, values)
    return assemble(config, deepspeed, info, SignalFlag(), Heartbeat(info))


def measure(trainer: Trainer, steps: int, block: int) -> dict[str, list[float]]:
    """Return milliseconds of steps without and with logging, and of logging itself.

    Args:
        trainer: a trainer before its first step.
        steps: number of measured steps, after two steps of warm-up.
        block: number of logged steps that are delivered together.
    """
    taken: dict[str, list[float]] = {
        "step_ms": [],
        "step_processor_ms": [],
        "logged_step_ms": [],
        "caller_ms": [],
        "processor_ms": [],
    }
    waiting = 0
    for number, batches in enumerate(islice(iter(trainer.loader), steps + 2)):
        start, processor = time.perf_counter(), time.process_time()
        metrics = trainer.update(batches)
        trainer.step += 1
        stepped = time.perf_counter()
        if number < 2:
            continue
        if number % 2 == 0:
            taken["step_ms"].append((stepped - start) * 1000)
            taken["step_processor_ms"].append((time.process_time() - processor) * 1000)
            continue
        begun = time.process_time()
        trainer.log(metrics)
        logged = time.perf_counter()
        spent = time.process_time() - begun
        taken["caller_ms"].append((logged - stepped) * 1000)
        taken["logged_step_ms"].append((logged - start) * 1000)
        taken["processor_ms"].append(spent * 1000)
        waiting += 1
        if waiting == block:
            begun = time.process_time()
            trainer.tracker.flush()
            delivery = (time.process_time() - begun) * 1000
            for position in range(-block, 0):
                taken["processor_ms"][position] += delivery / block
            waiting = 0
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80, help="half of them logged")
    parser.add_argument("--block", type=int, default=5, help="logged steps delivered together")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started_in = Path.cwd()
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.chdir(folder)
        # The thread would deliver at moments of its own; the blocks do so at measured ones.
        import autoselect.tracking.delivery as delivery_module

        delivery_module.DELIVERY_SECONDS = 3600.0
        trainer = make_trainer(Path(folder), arguments.steps + 2)
        taken = measure(trainer, arguments.steps, arguments.block)
        trainer.tracker.finish("FINISHED")
        os.chdir(started_in)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    step, processor = medians["step_ms"], medians["step_processor_ms"]
    ratios = {
        "wall": medians["caller_ms"] / step,
        "processor": statistics.mean(taken["processor_ms"]) / processor,
        "whole_steps": medians["logged_step_ms"] / step - 1,
    }
    report(ratios, medians)
    if arguments.output:
        result: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "system": platform.system()},
            "versions": {"python": platform.python_version(), "torch": torch.__version__}
            | {name: version(name) for name in ("mlflow", "deepspeed")},
            "setting": {
                "log_every": 1,
                "global_batch": trainer.sizes.total,
                "threads": torch.get_num_threads(),
                "delivered_together": arguments.block,
                "load_average": os.getloadavg()[0],
            },
            "share_of_a_step": ratios,
            "median": medians,
            "raw": taken,
        }
        write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    logging.shutdown()


def report(ratios: dict[str, float], medians: dict[str, float]) -> None:
    print(f"step {medians['step_ms']:.1f} ms, processor {medians['step_processor_ms']:.1f} ms")
    print(f"logging: the step waits {medians['caller_ms']:.3f} ms, {ratios['wall']:.3%} of it")
    print(f"logging: {ratios['processor']:.3%} of the step's processor time, delivery included")
    print(f"whole steps with logging against without: {ratios['whole_steps']:+.2%}")
    cost = ratios["processor"] * medians["step_processor_ms"]
    print(f"which is {cost:.2f} ms for each logged step")
    worst = max(ratios["wall"], ratios["processor"])
    print(f"{'under' if worst < TARGET else 'ABOVE'} {TARGET:.0%} of a step, logging every step")


if __name__ == "__main__":
    main()
