"""Fixtures: small shards made on the spot."""

from collections.abc import Callable
from pathlib import Path

import pytest

from autoselect.data.shards import ShardSet
from tests.data.shard_samples import write_shards


@pytest.fixture
def shard_folder(tmp_path: Path) -> Path:
    """50 samples with one image each, in shards of 20, 20 and 10."""
    return write_shards(tmp_path / "shards")


@pytest.fixture
def open_set(shard_folder: Path) -> Callable[[], ShardSet]:
    return lambda: ShardSet.open(str(shard_folder))
