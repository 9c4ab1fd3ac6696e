"""The short form of the kill-and-resume check; `make cluster-test` runs the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "cluster" / "kill_resume.py"


@pytest.mark.slow
def test_three_kills_are_resumed_bit_equal() -> None:
    """The kills come while the run starts, between updates, and inside a save."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "3", "--ranks", "1", "--steps", "8"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["3 of 3 resumed bit-equal"], done.stdout + done.stderr
    assert done.returncode == 0
