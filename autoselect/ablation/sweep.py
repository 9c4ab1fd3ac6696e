"""Run the cells of an ablation, one after the other or several at the same time."""

import dataclasses
import logging
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from autoselect.ablation.cells import LOG, Cell, run_cell
from autoselect.ablation.variants import AblationPlan, Variant
from autoselect.reference.resources import resolve_shards

logger = logging.getLogger(__name__)
Work = tuple[Variant, int]


def run_cells(plan: AblationPlan, out: Path, cells: Sequence[Work], jobs: int) -> Iterator[Cell]:
    """Run cells whose results are missing, and yield every cell when it is finished.

    If several cells run at the same time, each writes the output of its programs into its own
    folder, and its ranks meet at a port of their own, counted upwards from `plan.port`. After a
    failure the cells that are running end normally and no further cell starts.

    Raises:
        ConfigError: a cell failed.
    """
    if jobs == 1:
        for number, (variant, seed) in enumerate(cells, start=1):
            finished = Cell.of(out, variant, seed).is_finished
            state = "measured before, kept unless something changed" if finished else variant.asks
            print(
                f"\n[cell {number}/{len(cells)}] {variant.name}, seed {seed}: {state}", flush=True
            )
            yield run_cell(plan, out, variant, seed)
        return
    for shards in {plan.train_shards, plan.test_shards}:
        resolve_shards(shards)  # render them here once, before cells start in parallel
    for number, cell in enumerate(_side_by_side(plan, out, cells, jobs), start=1):
        print(f"[{number} of {len(cells)} cells] {cell.variant.name}, seed {cell.seed}", flush=True)
        yield cell


def _side_by_side(
    plan: AblationPlan, out: Path, cells: Sequence[Work], jobs: int
) -> Iterator[Cell]:
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        ports.put(plan.port + slot)

    def run(group: Sequence[Work]) -> list[Cell]:
        port = ports.get()
        try:
            return [
                _run_quietly(dataclasses.replace(plan, port=port), out, *work) for work in group
            ]
        finally:
            ports.put(port)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, group) for group in _by_training(cells)]
        try:
            for future in as_completed(futures):
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _by_training(cells: Sequence[Work]) -> list[list[Work]]:
    """Group cells that share a trained selector, with the one that trains it first."""
    groups: dict[tuple[str, int], list[Work]] = {}
    for variant, seed in cells:
        groups.setdefault((variant.trained_as or variant.name, seed), []).append((variant, seed))
    return [
        sorted(group, key=lambda work: work[0].trained_as is not None) for group in groups.values()
    ]


def _run_quietly(plan: AblationPlan, out: Path, variant: Variant, seed: int) -> Cell:
    cell = Cell.of(out, variant, seed)
    log = cell.folder / LOG
    cell.folder.mkdir(parents=True, exist_ok=True)
    if not cell.is_finished:
        logger.info("%s, seed %d: started, log in %s", variant.name, seed, log)
    return run_cell(plan, out, variant, seed, log)
