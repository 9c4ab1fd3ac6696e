"""Every recipe loads, keeps fewer tokens than there are, and fits where its first lines say.

It fits with rows as long as its `data.max_text_tokens`, so that none of them ends the run.
"""

import json
import re
from pathlib import Path

import pytest
from published_configs import PUBLISHED

from autoselect.config import TrainConfig
from autoselect.config_files import load_config
from autoselect.deepspeed_config import batch_sizes, load_deepspeed_config
from autoselect.estimates import GIB, Assumptions, memory, worst_batch
from autoselect.plan import GPUS
from autoselect.vlm.shape import read_shape

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "configs" / "train"
GPU_COUNTS = (8, 16, 32)


@pytest.fixture
def shape(tmp_path):
    """Sizes of the published model; the recipe says how many visual tokens its model gets."""

    def read(name: str):
        config, _ = PUBLISHED[name]
        (tmp_path / "config.json").write_text(json.dumps(config))
        said = re.search(r"--visual-tokens (\d+)", (RECIPES / f"{name}.yaml").read_text())
        return read_shape(str(tmp_path), int(said.group(1)) if said else None)

    return read


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_fits_its_model_and_its_gpus(name, shape):
    path = RECIPES / f"{name}.yaml"
    head = re.search(
        r"^# deepspeed autoselect/train.py --deepspeed (\S+) --config (\S+)$",
        path.read_text(),
        re.MULTILINE,
    )
    assert head is not None and head.group(2) == f"configs/train/{name}.yaml"
    config = load_config(TrainConfig, str(path), [])
    deepspeed = load_deepspeed_config(ROOT / head.group(1))
    stage = deepspeed["zero_optimization"]["stage"]
    assert f"ZeRO stage {stage}" in path.read_text()
    assert ("activations recomputed" in path.read_text()) == config.activation_checkpointing
    model = shape(name)
    published = PUBLISHED[name][1]
    assert model.parameters / 1e9 == pytest.approx(published, abs=0.006)
    assert config.gate.min_token_budget < config.gate.token_budget < model.visual_tokens
    assert config.data.max_text_tokens > model.visual_tokens
    for count in GPU_COUNTS:
        micro = batch_sizes(deepspeed, count).micro
        worst = worst_batch(model, micro, config, Assumptions())
        need = memory(model, str(stage), count, worst, config, Assumptions()).total
        assert need < GPUS["a100-80"].memory_gib * GIB


def test_every_recipe_of_a_public_model_is_checked():
    own = {"reference", "soft-removal"}
    assert {path.stem for path in RECIPES.glob("*.yaml")} - own == set(PUBLISHED)


def test_vision_patches_count_those_that_become_one_token(shape):
    assert shape("internvl3-8b").patches == 1024
    assert shape("smolvlm").patches == 13 * 27**2
    assert shape("qwen2.5-vl-7b").patches == 4 * 391
    assert shape("llava-next-7b").patches == 5 * 24**2
