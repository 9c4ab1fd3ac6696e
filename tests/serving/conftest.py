"""Fixtures: the reference model with the weight names of vLLM, and a selector."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoselect.config import ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from tests.serving.cases import REFERENCE, TOWER_WIDTH, WIDTH


@pytest.fixture(scope="session")
def native(tmp_path_factory) -> Path:
    """Return the reference model; vLLM knows the tower's weights by the names of older releases."""
    folder = tmp_path_factory.mktemp("native") / "model"
    shutil.copytree(REFERENCE, folder)
    weights = load_file(folder / "model.safetensors")
    named = {
        name.replace("vision_tower.", "vision_tower.vision_model."): own
        for name, own in weights.items()
    }
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def selector(tmp_path_factory) -> Path:
    """Return a selector with random weights and a tuned diversity; equality holds for any."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("selector")
    curve = [{"share": 0.05, "weight": 0.5}, {"share": 0.3, "weight": 0.1}]
    Selector(Scorer(WIDTH, ScorerConfig()), {"model": "reference"}, curve).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def before_projector(tmp_path_factory) -> Path:
    """Return a selector with random weights that scores what the projector takes."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("before")
    scorer = Scorer(TOWER_WIDTH, ScorerConfig())
    Selector(scorer, diversity=0.3, site="before_projector").save_pretrained(folder)
    return folder
