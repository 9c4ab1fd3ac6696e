"""The short form of the kill-and-resume check; `make cluster-test` runs the long one."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from tests.cluster.kill_resume import kill_and_resume
from tests.cluster.workspace import Workspace
from tests.launching import forks


@pytest.mark.slow
def test_three_kills_are_resumed_bit_equal(tmp_path: Path) -> None:
    """The kills come while the run starts, between updates, and inside a save."""
    forks()
    options = Namespace(kills=3, ranks=1, steps=8, seed=0)
    assert kill_and_resume(Workspace(tmp_path).make(), options) == 3
