"""Work that rank 0 does for all ranks, however long it takes.

Collectives time out after `processes.COLLECTIVE_TIMEOUT_S`, which suits a step but is too short for
work of rank 0 alone: rendering shards, calibrating, writing a checkpoint to a slow disk. Meanwhile
the others wait at a key-value store hosted by rank 0, where its death shows at once. They take the
result in a collective afterwards.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from autoselect.config import ConfigError
from autoselect.ranks.exchange import broadcast_object, gather_objects

PATIENCE_S = 3600.0
"""Longest wait for rank 0, in seconds."""

FAREWELL_S = 5.0
"""Longest wait for ranks that end for the same reason, in seconds."""

LONGEST_PAUSE_S = 0.25
_TURNS, _REASON, _ENDING = "turns", "reason", "ending"

logger = logging.getLogger(__name__)

_store: dist.TCPStore | None = None
_turns = 0


def open_store(timeout_s: float) -> dist.TCPStore:
    """Open a key-value store that rank 0 hosts on a free port (a collective).

    Args:
        timeout_s: longest wait of one call, in seconds.
    """
    timeout = timedelta(seconds=timeout_s)
    store = None
    if dist.get_rank() == 0:
        store = dist.TCPStore("0.0.0.0", 0, None, True, timeout, wait_for_workers=False)
    port = broadcast_object(store.port if store is not None else None)
    if store is None:
        address = os.environ["MASTER_ADDR"]
        store = dist.TCPStore(address, port, None, False, timeout, wait_for_workers=False)
    return store


def prepare() -> None:
    """Open the store at which `on_main` waits (a collective)."""
    global _store, _turns
    _store, _turns = None, 0
    if dist.get_world_size() > 1:
        _store = open_store(timeout_s=30)


def on_main(action: Callable[[], Any]) -> Any:
    """Run `action` on rank 0 and return its result on every rank (a collective).

    Raises:
        ConfigError: `action` raised it or a subclass; raised on every rank.
        DistNetworkError: rank 0 died, or took longer than `PATIENCE_S`.
    """
    global _turns
    _turns += 1
    result: Any = None
    failure: ConfigError | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            result = action()
        except ConfigError as error:
            failure = error
        if _store is not None:
            _store.add(_TURNS, 1)
    elif _store is not None:
        _wait_for_rank_0(_store, _turns)
    result, failure = broadcast_object((result, failure))
    if failure is not None:
        raise failure
    return result


def on_first_of_node(action: Callable[[], None], local_rank: int) -> None:
    """Run `action` on the first rank of each node while the others wait (a collective).

    They wait in a collective: give that enough time with `processes.patient_collectives`.

    Args:
        action: what is done once per node.
        local_rank: number of this process on its node.

    Raises:
        ConfigError: `action` raised it on some node; raised on every rank.
    """
    failure = ""
    if local_rank == 0:
        try:
            action()
        except ConfigError as error:
            failure = str(error)
    for found in gather_objects(failure):
        if found:
            raise ConfigError(found)


def report_end(reason: str) -> None:
    """Log why this rank ends, unless rank 0 ends for the same reason and logs it.

    Ranks that fail at the same time end together, each with its own exit code: the launcher stops
    the others when the first one ends. A rank that fails alone ends after `FAREWELL_S`.
    """
    if _store is None or not dist.is_initialized():
        logger.error("%s", reason)
        return
    is_first, first = dist.get_rank() == 0, None
    with suppress(dist.DistError):  # rank 0, which hosts the store, may have ended before
        if is_first:
            _store.set(_REASON, reason)
        elif _comes(lambda store: store.check([_REASON])):
            first = _store.get(_REASON).decode()
    if first != reason:
        logger.error("%s", reason)
    if is_first or first is not None:
        with suppress(dist.DistError):
            _store.add(_ENDING, 1)
            _comes(lambda store: store.add(_ENDING, 0) == dist.get_world_size())


def _comes(condition: Callable[[dist.TCPStore], bool]) -> bool:
    """Wait until a condition on the store holds; return False after `FAREWELL_S`."""
    assert _store is not None
    deadline = time.monotonic() + FAREWELL_S
    while not condition(_store):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _wait_for_rank_0(store: dist.TCPStore, turn: int) -> None:
    deadline, pause = time.monotonic() + PATIENCE_S, 0.001
    name = f"rank 0 ({os.environ['MASTER_ADDR']})"
    while _turns_made(store, name) < turn:
        if time.monotonic() > deadline:
            raise dist.DistNetworkError(
                f"{name} is stalled: the other ranks waited {PATIENCE_S:.0f} s for its work"
            )
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _turns_made(store: dist.TCPStore, name: str) -> int:
    try:
        return store.add(_TURNS, 0)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise dist.DistNetworkError(f"{name} is dead: {reason}") from error
