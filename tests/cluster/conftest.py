"""Fixtures of the cluster tests, which run only under `make cluster-test`: they start daemons."""

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
    """Make a project folder like a user's, in a temporary folder."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("autoselect", "configs", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    Workspace(folder).make()
    return folder
