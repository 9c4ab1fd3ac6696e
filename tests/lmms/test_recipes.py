"""Every recipe loads, keeps fewer tokens than its model has, and fits the GPUs it names.

It has to fit with rows as long as its `data.max_text_tokens`, because one such row would end a run.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import transformers as hf
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import load_config
from autoselect.preflight.estimates import GIB, Estimate
from autoselect.preflight.plan import GPUS
from autoselect.vlm.shape import read_shape
from tests.lmms.published_configs import PUBLISHED
from tests.vlm.tiny_processors import tokenizer

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "train"
GPU_COUNTS = (8, 16, 32)
FIXED = {"llava-1.5-7b", "llava-1.5-13b"}
"""Recipes for models that give every image the same number of tokens."""


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes the configuration of a published model into a folder."""

    def write(name: str) -> str:
        (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name][0]))
        return str(tmp_path)

    return write


@pytest.fixture
def shape(folder):
    """Return a function that gives the sizes of a published model, with its recipe's tokens."""
    return lambda name: read_shape(folder(name), said_tokens(name))


def said_tokens(name: str) -> int | None:
    said = re.search(r"--visual-tokens (\d+)", (RECIPES / f"{name}.yaml").read_text())
    return int(said.group(1)) if said else None


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
    deepspeed = DeepSpeedConfig.load(ROOT / head.group(1))
    stage = deepspeed.zero_stage
    assert f"ZeRO stage {stage}" in path.read_text()
    assert ("activations recomputed" in path.read_text()) == config.activation_checkpointing
    model = shape(name)
    published = PUBLISHED[name][1]
    assert model.parameters / 1e9 == pytest.approx(published, abs=0.006)
    assert config.gate.lowest_budget < config.gate.token_budget < model.visual_tokens
    assert config.data.max_text_tokens > model.visual_tokens
    estimate = Estimate(model, config)
    for count in GPU_COUNTS:
        worst = estimate.worst_batch(deepspeed.split(count).micro)
        need = estimate.memory(str(stage), count, worst).total
        assert need < GPUS["a100-80"].memory_gib * GIB


def test_every_recipe_of_a_public_model_is_checked():
    own = {"reference", "soft-removal", "paper", "paper-llava-1.5-7b", "before-encoder"}
    assert {path.stem for path in RECIPES.glob("*.yaml")} - own == set(PUBLISHED)


def test_the_paper_preset_fits_one_card_of_48_gb(shape):
    config = load_config(TrainConfig, str(RECIPES / "paper-llava-1.5-7b.yaml"), [])
    deepspeed = DeepSpeedConfig.load(ROOT / "configs" / "deepspeed" / "zero2_one_card.json")
    estimate = Estimate(shape("llava-1.5-7b"), config)
    worst = estimate.worst_batch(deepspeed.split(1).micro)
    need = estimate.memory("2", 1, worst).total
    assert need < GPUS["a6000"].memory_gib * GIB


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_names_the_visual_tokens_that_its_configuration_does_not_say(name, folder):
    """`image_seq_length` of InternVL and LLaVA-NeXT counts only one tile."""
    if name in FIXED:
        assert said_tokens(name) is None
        assert read_shape(folder(name)).visual_tokens == 576
        return
    assert said_tokens(name) is not None
    most = ", at most 2928" if name == "llava-next-7b" else ""
    with pytest.raises(ConfigError, match=rf"varying number .* --visual-tokens N{most}$"):
        read_shape(folder(name))


def test_the_named_visual_tokens_are_those_of_the_processors():
    tiles = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448})
    own = hf.InternVLProcessor.images_kwargs
    assert said_tokens("internvl3-8b") == 256 * tiles.get_number_of_image_patches(480, 640, own)
    pinpoints = PUBLISHED["llava-next-7b"][0]["image_grid_pinpoints"]
    processor = hf.LlavaNextProcessor(
        LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints, size={"shortest_edge": 336}),
        tokenizer({}),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    sides = range(112, 1500, 56)
    sizes = [(480, 640), *((height, width) for height in sides for width in sides)]
    first, *counts = processor._get_num_multimodal_tokens(sizes)["num_image_tokens"]
    assert said_tokens("llava-next-7b") == first
    assert max(counts) == 2928


def test_vision_patches_count_those_that_become_one_token(shape):
    patches = {name: (shape(name).patches, shape(name).patches_per_tile) for name in PUBLISHED}
    assert patches["llava-1.5-7b"] == (24**2, 24**2)
    assert patches["internvl3-8b"] == (13 * 32**2, 32**2)
    assert patches["smolvlm"] == (13 * 27**2, 27**2)
    assert patches["llava-next-7b"] == (5 * 24**2, 24**2)
    assert patches["qwen2.5-vl-7b"] == (4 * 391, 4 * 391), "no tiles: all patches are one image"


@pytest.mark.parametrize("name", ["llava-next-7b", "internvl3-8b", "smolvlm"])
def test_a_tower_that_sees_tiles_does_so_many_times_the_work_of_one(name, folder):
    config, tile = TrainConfig(), {"smolvlm": 81, "internvl3-8b": 256}

    def vision(tiles: int) -> float:
        shape = read_shape(folder(name), tiles * tile.get(name, 576))
        blind = replace(shape, patches=0)
        return Estimate(shape, config).step_flops(1) - Estimate(blind, config).step_flops(1)

    assert vision(5) == pytest.approx(5 * vision(1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_of_the_guide_is_what_the_plan_says(name, shape):
    (row,) = re.findall(
        rf"^\| `{re.escape(name)}\.yaml`.*$", (ROOT / "docs/reproduce.md").read_text(), re.MULTILINE
    )
    config = load_config(TrainConfig, str(RECIPES / f"{name}.yaml"), [])
    model = shape(name)
    estimate = Estimate(model, config)
    sizes = DeepSpeedConfig.load(ROOT / "configs/deepspeed/public_zero2.json").split(8)
    usual, worst = (
        estimate.memory("2", 8, batch)
        for batch in (estimate.typical_batch(sizes.micro), estimate.worst_batch(sizes.micro))
    )
    rate = 8 * GPUS["h100"].tflops * 1e12 * estimate.have.utilisation
    seconds = estimate.step_flops(sizes.total) / rate
    budgets = (config.gate.lowest_budget, config.gate.token_budget)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0].endswith("(recomputation)") == config.activation_checkpointing
    assert cells[1].split(" at ")[0] == f"{model.visual_tokens:,}"
    assert cells[2:] == [
        " to ".join(f"{budget:,}" for budget in budgets),
        f"{usual.frozen / GIB:.2f}",
        f"{usual.activations / GIB:.2f} / {worst.activations / GIB:.2f}",
        f"{usual.total / GIB:.2f} / {worst.total / GIB:.2f}",
        f"{seconds:.2f}",
        f"{seconds * config.steps / 3600:.2f}",
    ]
