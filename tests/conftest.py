"""What tests of several folders share."""

import os
from unittest import mock

import pytest

from autoselect.ranks import processes
from autoselect.ranks.processes import RankInfo

pytest.register_assert_rewrite("tests.vlm.checks")


@pytest.fixture
def alone():
    """Yield the only rank of a group in the test's own process; the test ends the group."""
    import deepspeed

    rank = RankInfo(rank=0, world_size=1, local_rank=0, source="single")
    with mock.patch.dict(os.environ):
        processes.init_distributed(rank, processes.choose_device(rank))
        yield rank
        deepspeed.comm.destroy_process_group()
