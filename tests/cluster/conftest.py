"""The cluster tests run only where `make cluster-test` asked for them: they start real daemons."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm, missing_programs
from tests.cluster.workspace import ROOT, Workspace


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if not os.environ.get("AUTOSELECT_CLUSTER_TEST"):
        pytest.skip("starts a Slurm on this host; run it with make cluster-test")
    missing = missing_programs()
    assert not missing, f"not installed: {', '.join(missing)} (tests/cluster/run.sh installs them)"
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def project(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder as users have it, whose outputs land in a temporary place."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("autoselect", "configs", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    Workspace(folder).make()
    return folder
