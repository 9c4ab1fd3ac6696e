"""Fixtures: evaluation shards of a few reference images, and a selector with random weights."""

from pathlib import Path

import pytest
import torch

from autoselect.config import ScorerConfig
from autoselect.data.shards import ShardWriter
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.reference.shards import render_sample

IMAGES = 6


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """Return a folder with `test-000000.tar` and `selector/`."""
    folder = tmp_path_factory.mktemp("reference")
    with ShardWriter(folder, "test", IMAGES) as writer:
        for number in range(IMAGES):
            key, record, jpeg = render_sample(0, "test", number)
            writer.write(key, record, [jpeg])
    torch.manual_seed(3)
    Selector(Scorer(192, ScorerConfig()), {"model": "reference"}).save_pretrained(
        folder / "selector"
    )
    return folder
