"""Starts the ranks of tests/workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"


def launch(ranks: int, worker: str, *arguments: str) -> None:
    """Runs `worker` on `ranks` processes of this machine; fails with their output."""
    sys.path.insert(0, str(WORKERS))
    from toy import environment

    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(WORKERS / worker)]
    done = subprocess.run(
        [*command, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
