"""`deepspeed --hostfile` on two nodes, whose ssh and pdsh run everything on this machine.

The launcher, its remote command line and the two node launchers are DeepSpeed's own. The stand-in
for pdsh starts each node's command in a bare environment and substitutes the node's number, as
pdsh with ssh does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoselect.pruning.selector import Selector
from autoselect.ranks.processes import _free_port

ROOT = Path(__file__).parents[2]

SSH = """#!/bin/bash
while [ "${1:0:1}" = - ]; do shift 2; done
shift # the host
exec bash -c "$*"
"""

PDSH = """#!/bin/bash
# pdsh -S -f N -w HOST,HOST COMMAND...: %n is the host's number, -S returns the largest code
hosts="$5"
shift 5
number=0
for host in ${hosts//,/ }; do
    command="$*"
    env -i PATH=/usr/bin:/bin HOME="$HOME" NODE="$host" bash -c "${command//%n/$number}" &
    jobs="$jobs $!"
    number=$((number + 1))
done
worst=0
for job in $jobs; do
    wait "$job"
    code=$?
    [ "$code" -le "$worst" ] || worst="$code"
done
exit "$worst"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.cluster.workspace import Workspace

    folder = tmp_path_factory.mktemp("hostfile")
    Workspace(folder).make()
    (folder / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    (folder / "bin").mkdir()
    for name, text in (("ssh", SSH), ("pdsh", PDSH)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    # Only some variables reach the other nodes; this file of DeepSpeed's adds more.
    (folder / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")
    return folder


def launch(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    tools = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}"
    return subprocess.run(
        [
            *("deepspeed", f"--hostfile={folder / 'hosts'}", "--master_addr=127.0.0.1"),
            *(f"--master_port={_free_port()}", str(ROOT / "autoselect" / "train.py")),
            *(f"--deepspeed={folder / 'deepspeed.json'}", f"--model={folder / 'vlm'}"),
            *(f"--data.train_shards={folder}/shards/train-*.tar", f"--output={folder / 'run'}"),
            *("--steps=2", "--gate.calibration_images=4", "--tracking=false"),
            *("--tune_images=0", *flags),
        ],
        cwd=folder,
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_two_nodes_of_a_hostfile_train_one_selector(folder: Path) -> None:
    done = launch(folder)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert "nnodes=2, num_local_procs=1, node_rank=0" in log
    assert "nnodes=2, num_local_procs=1, node_rank=1" in log
    assert "dist_world_size=2" in log
    assert Selector.from_pretrained(folder / "run" / "selector").metadata["steps"] == 2


@pytest.mark.slow
def test_an_error_on_the_nodes_is_the_launchers_exit_code(folder: Path) -> None:
    done = launch(folder, "--gate.token_budget=0", "--output=nothing")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "gate.token_budget=0 is below 1" in done.stderr
    assert not (folder / "nothing").exists()
