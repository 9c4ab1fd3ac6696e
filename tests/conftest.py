"""What tests of several folders share."""

import os
from unittest import mock

import pytest

from autoselect.ranks import processes
from autoselect.ranks.processes import RankInfo

pytest.register_assert_rewrite("tests.vlm.checks")

try:
    import hypothesis
except ImportError:  # its tests are skipped
    pass
else:  # by default an example of 0.2 s fails, which a busy machine makes of any
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("busy")


@pytest.fixture
def alone():
    """Yield the only rank of a group in the test's own process; the test ends the group."""
    import deepspeed

    rank = RankInfo(rank=0, world_size=1, local_rank=0, source="single")
    with mock.patch.dict(os.environ):
        processes.init_distributed(rank, processes.choose_device(rank))
        yield rank
        deepspeed.comm.destroy_process_group()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """Return the bytes of an SQLite store with its tables, made once; they take seconds."""
    from autoselect.tracking.store import Store

    folder = tmp_path_factory.mktemp("store")
    Store(f"sqlite:///{folder}/mlflow.db").client.search_experiments()
    return (folder / "mlflow.db").read_bytes()
