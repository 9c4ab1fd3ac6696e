"""The estimates against counts of a real step of small VLMs, and against known large models."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlavaForConditionalGeneration,
)

from autoselect.config import (
    ConfigError,
    DataConfig,
    DenoiserConfig,
    GateConfig,
    GateSite,
    ScorerConfig,
    TrainConfig,
)
from autoselect.method.gating import GateSetting
from autoselect.method.model import AutoSelect
from autoselect.method.statistics import TokenStatistics
from autoselect.preflight.estimates import GIB, STAGES, Assumptions, Estimate, MicroBatch
from autoselect.preflight.plan import GPUS
from autoselect.reference.vlm import build_model, build_processor, save_vlm
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import IGNORED_LABEL, TrainBatch
from autoselect.vlm.shape import read_shape
from tests.measuring import peak_bytes
from tests.preflight.published_sizes import llava

ROWS, TEXT, ANSWERS = 2, 40, 6
SETTING = GateSetting(16, 0.5, 0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vlm")
    save_vlm(build_model(), path)
    return path


def make_batch(vlm: FrozenVLM, text: int = TEXT, answers: int = ANSWERS) -> TrainBatch:
    """Return ROWS rows of one image with `text` text tokens, the first with a padding less."""
    assert vlm.num_tokens is not None
    length = vlm.num_tokens + text
    ids = torch.full((ROWS, length), 9)
    ids[:, : vlm.num_tokens] = vlm.adapter.image_token_id
    labels = torch.full_like(ids, IGNORED_LABEL)
    labels[:, -answers - 1 : -1] = 9
    segments = torch.zeros_like(ids)
    segments[0, -1] = -2
    return TrainBatch(
        ids,
        labels,
        torch.arange(length).expand(ROWS, -1).contiguous(),
        segments,
        {"pixel_values": torch.randn(ROWS, 3, 96, 96)},
        [vlm.num_tokens] * ROWS,
        torch.arange(ROWS),
    )


def make_model(config: TrainConfig, model: LlavaForConditionalGeneration) -> AutoSelect:
    vlm = FrozenVLM(model, build_processor(), "test")
    width = vlm.width_at(config.gate.site)
    statistics = TokenStatistics(torch.zeros(width), torch.ones(width), participation_ratio=1.0)
    return AutoSelect(vlm, config, statistics)


def step(model: AutoSelect, batch: TrainBatch) -> None:
    model.zero_grad()
    model(batch, SETTING).loss_sum.backward()


def test_the_shape_is_read_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "hidden")
    try:
        shape = read_shape(str(folder))
    finally:
        (folder / "hidden").rename(folder / "model.safetensors")
    model = build_model()
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.embedding_parameters == model.get_input_embeddings().weight.numel()
    assert (shape.visual_tokens, shape.patches, shape.width, shape.layers) == (144, 144, 192, 4)


@pytest.mark.parametrize("scorer", [ScorerConfig(), ScorerConfig(hidden_size=24, num_layers=3)])
@pytest.mark.parametrize(
    "denoiser",
    [DenoiserConfig(), DenoiserConfig(3, 40), DenoiserConfig(0)],
)
@pytest.mark.parametrize("site", ["after_projector", "before_projector"])
def test_trained_parameters_are_counted_exactly(
    folder: Path, scorer: ScorerConfig, denoiser: DenoiserConfig, site: GateSite
) -> None:
    config = TrainConfig(scorer=scorer, denoiser=denoiser, gate=GateConfig(site=site))
    model = make_model(config, build_model())
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert Estimate(read_shape(str(folder)), config).trained_parameters == expected


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("answers", "key_heads"), [(180, 6), (6, 1)])
def test_the_peak_of_activations_is_that_of_a_measured_step(
    tmp_path: Path, recompute: bool, answers: int, key_heads: int
) -> None:
    """A deep language model, a large vocabulary, and key heads that several query heads share."""
    sizes = build_model().config
    sizes.text_config.num_hidden_layers = 10
    sizes.text_config.vocab_size = 4000
    sizes.text_config.num_key_value_heads = key_heads
    sizes.save_pretrained(tmp_path)
    config = TrainConfig(activation_checkpointing=recompute)
    model = make_model(config, LlavaForConditionalGeneration(sizes))
    batch = make_batch(model.vlm, 200, answers)
    step(model, batch)
    measured = peak_bytes(partial(step, model, batch))
    shape = read_shape(str(tmp_path))
    have = Assumptions(text_tokens=200, answer_tokens=answers, weight_bytes=4)
    estimate = Estimate(shape, config, have)
    estimated = estimate.activation_bytes(estimate.typical_batch(ROWS))
    assert 0.85 < estimated / measured < 1.18, (estimated, measured)


def test_operations_match_a_counted_step(folder: Path) -> None:
    config = TrainConfig()
    model = make_model(config, build_model())
    # The counter knows no formula for the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(model, make_batch(model.vlm))
    have = Assumptions(text_tokens=TEXT, answer_tokens=ANSWERS)
    estimated = Estimate(read_shape(str(folder)), config, have).step_flops(ROWS)
    assert 0.85 < estimated / counter.get_total_flops() < 1.15


@pytest.mark.parametrize(("name", "billions"), [("7b", 7.06), ("13b", 13.35), ("70b", 69.3)])
def test_known_models_have_their_known_size(tmp_path: Path, name: str, billions: float) -> None:
    shape = read_shape(llava(tmp_path, name))
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.visual_tokens == 576


def test_a_model_larger_than_a_device_needs_stage_3(tmp_path: Path) -> None:
    config = TrainConfig(activation_checkpointing=True)
    large, small = (
        Estimate(read_shape(llava(tmp_path / name, name)), config) for name in ("70b", "7b")
    )
    gib = GPUS["h100"].memory_gib
    assert small.smallest_stage(8, 8, gib) == "1"
    assert large.smallest_stage(8, 8, gib) == "3"
    assert large.smallest_stage(1, 8, gib) == "3_offload"
    assert large.smallest_stage(1, 8, 8.0) is None
    for stage in ("1", "2"):
        assert large.memory(stage, 64, large.typical_batch(1)).frozen > 138e9


def test_memory_shrinks_with_stage_devices_and_checkpointing(tmp_path: Path) -> None:
    shape = read_shape(llava(tmp_path, "7b"))
    kept = Estimate(shape, TrainConfig())
    batch = kept.typical_batch(8)

    def total(stage: str, gpus: int = 8) -> float:
        return kept.memory(stage, gpus, batch).total

    totals = [total(stage) for stage in STAGES]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)
    assert total("3", gpus=16) < total("3", gpus=8)
    recomputed = Estimate(shape, TrainConfig(activation_checkpointing=True))
    assert recomputed.activation_bytes(batch) < 0.2 * kept.activation_bytes(batch)
    assert 1.2 < recomputed.step_flops(8) / kept.step_flops(8) < 1.5


def limited(tokens: int, **more: bool) -> TrainConfig:
    return TrainConfig(data=DataConfig(max_text_tokens=tokens), **more)


def test_the_worst_rows_fill_the_limit_of_the_run(tmp_path: Path) -> None:
    shape = read_shape(llava(tmp_path, "7b"))
    assert Estimate(shape, limited(2048)).worst_batch(4) == MicroBatch(4, 2048, 2048 - 576)
    short = Estimate(shape, limited(600))
    longer = short.typical_batch(4)
    assert longer == MicroBatch(4, 576 + 128, 32)
    assert short.worst_batch(4).length == longer.length, "no shorter than the typical one"


def test_the_worst_rows_decide_what_fits(tmp_path: Path) -> None:
    """LLaVA-1.5-13B in micro-batches of 4: the typical one leaves a third of the device free."""
    shape, gib = read_shape(llava(tmp_path, "13b")), 79.1
    estimate = Estimate(shape, limited(2048))
    usual = estimate.memory("1", 8, estimate.typical_batch(4)).total
    assert usual < 0.67 * gib * GIB
    assert estimate.smallest_stage(8, 4, gib) == "3"
    assert Estimate(shape, limited(1024)).smallest_stage(8, 4, gib) == "1"
    recomputed = limited(2048, activation_checkpointing=True)
    assert Estimate(shape, recomputed).smallest_stage(8, 4, gib) == "1"


def test_a_model_without_images_is_refused(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="vision-language"):
        read_shape(str(tmp_path))
