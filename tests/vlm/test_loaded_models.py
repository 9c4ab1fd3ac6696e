"""Models as users load and call them, see `loaded_models`."""

import pytest

from tests.vlm import loaded_models


@pytest.mark.parametrize("way", loaded_models.WAYS)
def test_an_attached_model_may_be_used_as_a_stock_one(way):
    check, _ = loaded_models.WAYS[way]
    check()


def test_a_replica_of_data_parallel_is_refused():
    loaded_models.replicated()
