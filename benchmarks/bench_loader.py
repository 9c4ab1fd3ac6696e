"""How much of the decode-only rate does the loader keep, and what does resuming cost?

All contenders decode the same photo-like JPEGs to RGB on the same cores, one after the other.
`decode_only` has the bytes in memory and keeps the images of a micro-batch until its end.
`decode_and_drop` frees every image immediately, so all images share one buffer in the cache. The
loader orders, reads, checks and decodes samples from shards. Each round gives one measurement per
contender: images per second, and processor time per image, which other work on the machine disturbs
less. The result is the ratios of the medians. Run it with

    python benchmarks/bench_loader.py --output benchmarks/results/loader_cpu.json
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from autoselect.data.decode import read_image, reuse_image_memory
from autoselect.data.loader import BatchPlan, Loader
from autoselect.data.shards import ShardSet, ShardWriter
from autoselect.evaluation.latency.environment import environment
from autoselect.files.atomic import write_text

MICRO_BATCH = 16
PREFETCHED_PER_WORKER = 2
RESUME_SCRIPT = """
import sys, time
from autoselect.data.loader import BatchPlan, Loader
from autoselect.data.shards import ShardSet
start = time.perf_counter()
shards = ShardSet.open(sys.argv[1])
opened = time.perf_counter()
step = int(sys.argv[2]) // {micro_batch}
next(iter(Loader(shards, len, 0, BatchPlan({micro_batch}, start_step=step))))
print(len(shards), opened - start, time.perf_counter() - opened)
"""


class Sample(NamedTuple):
    """One measurement of one contender."""

    images_per_s: float
    processor_ms: float


def photo(number: int, width: int, height: int) -> bytes:
    """Make a JPEG with smooth regions, edges and fine grain like a photograph."""
    random = np.random.default_rng(number)
    coarse = random.uniform(0, 255, (height // 40, width // 40, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = random.normal(0, 6, (height, width, 3))
    pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def write_data(folder: Path, images: list[bytes]) -> None:
    turns = [
        {"from": "human", "value": "<image>\nWhat is in the picture?"},
        {"from": "gpt", "value": "Colours that blend into each other."},
    ]
    with ShardWriter(folder, samples_per_shard=256) as writer:
        for number, data in enumerate(images):
            writer.write(f"{number:06d}", {"conversations": turns}, [data])


def _decode_share(images: list[bytes], count: int, held: int, barrier: Any, results: Any) -> None:
    reuse_image_memory(held)
    barrier.wait()
    start = time.perf_counter()
    for first in range(0, count, held):
        pictures = [read_image(images[n % len(images)]) for n in range(first, first + held)]
        del pictures
    results.put(time.perf_counter() - start)


def processor_seconds() -> float:
    """Return the processor time of this process and its finished children."""
    own, children = (resource.getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def decode(images: list[bytes], count: int, processes: int, held: int) -> Sample:
    """Decode in `processes` processes, each of which frees its images after every `held`."""
    before = processor_seconds()
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(processes), context.Queue()
    share = count // processes // held * held
    arguments = (images, share, held, barrier, results)
    workers = [context.Process(target=_decode_share, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    seconds = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    decoded = share * processes
    return Sample(
        images_per_s=decoded / max(seconds),
        processor_ms=(processor_seconds() - before) / decoded * 1000,
    )


def loader(shards: ShardSet, count: int, workers: int) -> Sample:
    """Measure the loader while it delivers `count` images to this process.

    The rate is measured from the first delivery on, without batches that may be ready by then.
    """
    before = processor_seconds()
    loaded = count // MICRO_BATCH * MICRO_BATCH
    stop = count // MICRO_BATCH
    steps = iter(Loader(shards, len, 0, BatchPlan(MICRO_BATCH, stop_step=stop), workers))
    next(steps)
    start = time.perf_counter()
    delivered = sum(batch[0] for batch in steps)
    seconds = time.perf_counter() - start
    prefetched = workers * PREFETCHED_PER_WORKER * MICRO_BATCH
    return Sample(
        images_per_s=(delivered - prefetched) / seconds,
        processor_ms=(processor_seconds() - before) / loaded * 1000,
    )


def fewest(workers: int) -> int:
    """Return the fewest images of a round: a micro-batch is left when all that is ready is gone."""
    return (2 + workers * PREFETCHED_PER_WORKER) * MICRO_BATCH


def resume_seconds(folder: Path, rounds: int) -> dict[str, Any]:
    """Measure the first step after sample 1,000,000 - 10,000, each time in a new process.

    The data set has a thousand shards of a thousand samples, all links to one shard.
    """
    with ShardWriter(folder, samples_per_shard=1000) as writer:
        image = photo(0, 320, 240)
        for number in range(1000):
            turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A picture."}]
            writer.write(f"{number:06d}", {"conversations": turns}, [image])
    for number in range(1, 1000):
        for suffix in (".tar", ".tar.index.jsonl"):
            os.link(folder / f"shard-000000{suffix}", folder / f"shard-{number:06d}{suffix}")
    script = RESUME_SCRIPT.format(micro_batch=MICRO_BATCH)
    opened, first = [], []
    for _ in range(rounds):
        command = [sys.executable, "-c", script, str(folder), "990000"]
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert int(words[0]) == 1_000_000
        opened.append(float(words[1]))
        first.append(float(words[2]))
    return {
        "samples": 1_000_000,
        "shards": 1000,
        "open_s": summary(opened),
        "first_step_s": summary(first),
    }


def summary(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "raw": values}


def compare(sides: dict[str, Callable[[], Sample]], rounds: int, name: str) -> dict[str, Any]:
    """Measure all contenders in interleaved rounds; return ratios of the loader to the others."""
    for measure in sides.values():
        measure()
    taken: dict[str, list[Sample]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, measure in sides.items():
            taken[side].append(measure())
    result: dict[str, Any] = {
        side: {
            "images_per_s": summary([sample.images_per_s for sample in samples]),
            "processor_ms": summary([sample.processor_ms for sample in samples]),
        }
        for side, samples in taken.items()
    }
    rate, cost = (result["loader"][unit]["median"] for unit in Sample._fields)
    print(f"{name}: loader {rate:.0f} images/s, {cost:.2f} ms of processor time per image")
    for side in sides:
        if side != "loader":
            rates, costs = (result[side][unit]["median"] for unit in Sample._fields)
            result[side] |= {"loader_rate_ratio": rate / rates, "processor_ratio": costs / cost}
            print(
                f"  {side}: {rates:.0f} images/s, {costs:.2f} ms; "
                f"the loader keeps {rate / rates:.3f} of the rate, "
                f"{costs / cost:.3f} by processor time"
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help="distinct images")
    parser.add_argument("--count", type=int, default=1536, help="images decoded per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="pixels")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if arguments.count < (least := fewest(cores)):
        parser.error(
            f"--count {arguments.count} is too small to measure: the first micro-batch and those "
            f"that {cores} workers have ready by then do not count; give at least {least}"
        )
    images = [photo(number, *arguments.size) for number in range(arguments.images)]
    processor = environment("cpu")["processor"]
    results: dict[str, Any] = {
        "machine": {"processor": processor, "cores": cores, "system": platform.system()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: version(name) for name in ("pillow", "webdataset", "numpy")},
        "setting": {
            "image_pixels": list(arguments.size),
            "mean_image_bytes": round(statistics.mean(map(len, images))),
            "images_per_round": arguments.count,
            "micro_batch": MICRO_BATCH,
            "load_average_at_start": os.getloadavg()[0],
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), images)
        shards = ShardSet.open(folder)
        for workers in sorted({0, 1, cores}):
            count, processes = arguments.count, max(1, workers)
            sides = {
                "decode_only": partial(decode, images, count, processes, MICRO_BATCH),
                "decode_and_drop": partial(decode, images, count, processes, 1),
                "loader": partial(loader, shards, count, workers),
            }
            results[f"workers_{workers}"] = compare(sides, arguments.rounds, f"{workers} workers")
    with tempfile.TemporaryDirectory() as folder:
        results["resume"] = resume_seconds(Path(folder), arguments.rounds)
    opened, first = (results["resume"][name]["median"] for name in ("open_s", "first_step_s"))
    print(f"resume at sample 990,000: open {opened:.3f} s, first step {first:.3f} s")
    if arguments.output:
        write_text(arguments.output, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
