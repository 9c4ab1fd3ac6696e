"""Ranks of `tests/test_engine_state.py`: trains the toy at every ZeRO stage, writes what happened.

Usage: torchrun --nproc_per_node N engine_worker.py OUTPUT.pt CONFIG [CONFIG ...]
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from autoselect.ranks.exchange import broadcast_object
from autoselect.ranks.processes import RankInfo, leave, shutdown_distributed
from autoselect.training.engine_state import TrainedState, capture, restore
from autoselect.training.update_guard import NumbersError, UpdateGuard
from tests.workers.toy import Toy, make_engine, rows, start


def train(engine: Any, guard: UpdateGuard, info: RankInfo, steps: range) -> None:
    for step in steps:
        for micro in range(engine.gradient_accumulation_steps()):
            loss = engine(rows(engine, info, step, micro))
            guard.observe(loss)
            engine.backward(loss)
            if engine.is_gradient_accumulation_boundary():
                guard.update_allowed(step)
            engine.step()


def train_with_injection(engine: Any, guard: UpdateGuard, info: RankInfo, what: str) -> bool:
    """Make an update with a bad number on the last rank only; return if it was allowed."""
    spoiled = info.rank == info.world_size - 1
    for micro in range(engine.gradient_accumulation_steps()):
        inputs = rows(engine, info, 99, micro)
        first = micro == 0
        if spoiled and first and what == "nan input":
            inputs = inputs * float("nan")
        loss = engine(inputs)
        observed = loss * float("inf") if spoiled and first and what == "inf loss" else loss
        guard.observe(observed)
        scale = 1e38 if spoiled and first and what == "overflowing gradient" else 1.0
        engine.backward(loss * scale * scale if scale > 1 else loss)
        if engine.is_gradient_accumulation_boundary():
            allowed = guard.update_allowed(99)
        engine.step()
    return allowed


def run_one(config: str, info: RankInfo) -> dict[str, Any]:
    """Return all observations for one configuration; the test says what they must be."""
    engine = make_engine(config, info)
    guard = UpdateGuard(engine, patience=4)
    start_state = capture(engine)
    train(engine, guard, info, range(3))
    middle = broadcast_object(capture(engine))
    norm = guard.gradient_norm()
    train(engine, guard, info, range(3, 6))
    final = capture(engine)

    injected = {}
    for what in ("nan input", "inf loss", "overflowing gradient"):
        injected[what] = train_with_injection(engine, guard, info, what)
    after_injection = capture(engine)
    skipped = guard.skipped
    try:
        train_with_injection(engine, guard, info, "nan input")
        aborted = False
    except NumbersError:
        aborted = True

    resumed_engine = make_engine(config, info)
    resumed_guard = UpdateGuard(resumed_engine)
    restore(resumed_engine, middle)
    right_after = capture(resumed_engine)
    train(resumed_engine, resumed_guard, info, range(3, 6))
    resumed = capture(resumed_engine)
    first_skipped = skip_first_update(config, info)
    return {
        "start": start_state,
        "middle": middle,
        "right_after": right_after,
        "final": final,
        "resumed": resumed,
        "after_injection": after_injection,
        "injected_allowed": injected,
        "skipped": skipped,
        "aborted": aborted,
        "first_skipped": first_skipped,
        "gradient_norm": norm,
        "frozen_dtype": str(engine.module.frozen.weight.dtype),
        "accumulation": engine.gradient_accumulation_steps(),
    }


def skip_first_update(config: str, info: RankInfo) -> TrainedState:
    """State after a skipped first update and one with gradients that are all zero."""
    engine = make_engine(config, info)
    guard = UpdateGuard(engine)
    train_with_injection(engine, guard, info, "nan input")
    state = capture(engine)
    for micro in range(engine.gradient_accumulation_steps()):
        engine.backward(engine(rows(engine, info, 0, micro)) * 0.0)
        if engine.is_gradient_accumulation_boundary():
            guard.update_allowed(1)
        engine.step()
    return state


def main() -> None:
    info = start()
    results = {config: run_one(config, info) for config in sys.argv[2:]}
    if info.is_main:
        torch.save({"results": results, "toy": Toy().state_dict()}, sys.argv[1])
    shutdown_distributed()


if __name__ == "__main__":
    main()
    leave(0)
