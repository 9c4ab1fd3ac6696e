"""The plan against counts of a real step of the reference VLM, and against known large models."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

from autoselect import plan
from autoselect.calibration import TokenStatistics
from autoselect.config import (
    ConfigError,
    DenoiserConfig,
    GateConfig,
    GateSite,
    ScorerConfig,
    TrainConfig,
)
from autoselect.config_files import load_config
from autoselect.model import AutoSelect, GateSetting
from autoselect.plan import Assumptions, add_plan_command, trained_parameters
from autoselect.reference.vlm import build_model, build_processor, save_vlm
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batch import IGNORED_LABEL, TrainBatch
from autoselect.vlm.shape import read_shape

ROOT = Path(__file__).parents[1]
ROWS, TEXT, ANSWERS = 4, 40, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vlm")
    save_vlm(build_model(), path)
    return path


def make_batch(vlm: FrozenVLM) -> TrainBatch:
    """ROWS rows of one image, TEXT text tokens and ANSWERS answer tokens each."""
    assert vlm.num_tokens is not None
    length = vlm.num_tokens + TEXT
    ids = torch.full((ROWS, length), 9)
    ids[:, : vlm.num_tokens] = vlm.image_token_id
    labels = torch.full_like(ids, IGNORED_LABEL)
    labels[:, -ANSWERS:] = 9
    return TrainBatch(
        ids,
        labels,
        torch.arange(length).expand(ROWS, -1).contiguous(),
        torch.full_like(ids, -1),
        {"pixel_values": torch.randn(ROWS, 3, 96, 96)},
        torch.arange(ROWS),
    )


def make_model(config: TrainConfig) -> AutoSelect:
    vlm = FrozenVLM(build_model(), build_processor(), "test")
    width = vlm.width_at(config.gate.site)
    statistics = TokenStatistics(torch.zeros(width), torch.ones(width), None, 1.0)
    return AutoSelect(vlm, config, statistics)


def kept_bytes(model: AutoSelect, batch: TrainBatch) -> int:
    """Bytes that one forward pass keeps for its backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(batch, GateSetting(16, 0.5, 0, 0))
    return sum(kept.values())


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
    [DenoiserConfig(), DenoiserConfig(3, 40), DenoiserConfig(0), DenoiserConfig(told_gate=True)],
)
@pytest.mark.parametrize("site", ["after_projector", "before_projector"])
def test_trained_parameters_are_counted_exactly(
    folder: Path, scorer: ScorerConfig, denoiser: DenoiserConfig, site: GateSite
) -> None:
    config = TrainConfig(scorer=scorer, denoiser=denoiser, gate=GateConfig(site=site))
    model = make_model(config)
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_parameters(read_shape(str(folder)), config) == expected


def test_kept_activations_match_a_measured_step(folder: Path) -> None:
    config = TrainConfig()
    model = make_model(config)
    measured = kept_bytes(model, make_batch(model.vlm))
    have = Assumptions(text_tokens=TEXT, answer_tokens=ANSWERS, weight_bytes=4)
    estimate = plan.activation_bytes(read_shape(str(folder)), ROWS, config, have)
    assert 0.75 < estimate / measured < 1.33, (estimate, measured)


def test_operations_match_a_counted_step(folder: Path) -> None:
    config = TrainConfig()
    model = make_model(config)
    # The counter knows no formula for the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(make_batch(model.vlm), GateSetting(16, 0.5, 0, 0)).loss_sum.backward()
    have = Assumptions(text_tokens=TEXT, answer_tokens=ANSWERS)
    estimate = plan.step_flops(read_shape(str(folder)), ROWS, config, have)
    assert 0.85 < estimate / counter.get_total_flops() < 1.15


def llava(folder: Path, name: str) -> str:
    """A folder with the configuration of LLaVA-1.5 (7b, 13b) or of a 70b model, no weights."""
    sizes = {
        "7b": (4096, 11008, 32, 32, 32),
        "13b": (5120, 13824, 40, 40, 40),
        "70b": (8192, 28672, 80, 64, 8),
    }
    width, mlp, layers, heads, key_heads = sizes[name]
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=32000, image_seq_length=576
    ).save_pretrained(folder)
    assert isinstance(AutoConfig.from_pretrained(folder), LlavaConfig)
    return str(folder)


@pytest.mark.parametrize(("name", "billions"), [("7b", 7.06), ("13b", 13.35), ("70b", 69.3)])
def test_known_models_have_their_known_size(tmp_path: Path, name: str, billions: float) -> None:
    shape = read_shape(llava(tmp_path, name))
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.visual_tokens == 576


def test_a_model_larger_than_a_device_needs_stage_3(tmp_path: Path) -> None:
    config, have = TrainConfig(activation_checkpointing=True), Assumptions()
    large, small = (read_shape(llava(tmp_path / name, name)) for name in ("70b", "7b"))
    gib = plan.GPUS["h100"].memory_gib
    assert plan.smallest_stage(small, 8, 8, config, have, gib) == "1"
    assert plan.smallest_stage(large, 8, 8, config, have, gib) == "3"
    assert plan.smallest_stage(large, 1, 8, config, have, gib) == "3_offload"
    assert plan.smallest_stage(large, 1, 8, config, have, 8.0) is None
    for stage in ("1", "2"):
        assert plan.memory(large, stage, 64, 1, config, have).frozen > 138e9


def test_memory_shrinks_with_stage_devices_and_checkpointing(tmp_path: Path) -> None:
    shape = read_shape(llava(tmp_path, "7b"))
    config, have = TrainConfig(), Assumptions()
    totals = [plan.memory(shape, stage, 8, 8, config, have).total for stage in plan.STAGES]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)
    more = plan.memory(shape, "3", 16, 8, config, have).total
    assert more < plan.memory(shape, "3", 8, 8, config, have).total
    recomputed = TrainConfig(activation_checkpointing=True)
    assert plan.activation_bytes(shape, 8, recomputed, have) < 0.3 * plan.activation_bytes(
        shape, 8, config, have
    )
    assert (
        1.2
        < plan.step_flops(shape, 8, recomputed, have) / plan.step_flops(shape, 8, config, have)
        < 1.5
    )


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_plan_command(parser.add_subparsers())
    return parser.parse_args(
        ["plan", "--deepspeed", str(ROOT / "configs/deepspeed/zero2.json")] + [*arguments]
    )


def test_the_command_prints_stage_time_and_assumptions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = llava(tmp_path, "13b")
    arguments = parse("--model", model, "--gpus", "2", "--gpu", "h100", "--steps", "1000")
    assert arguments.run(arguments) == 0
    text = capsys.readouterr().out
    assert "13.35 B frozen" in text
    assert "smallest stage that fits" in text and "does not fit" in text
    assert "32 images = 16 x 2 devices x 1 accumulation" in text
    assert "lower its micro batch" not in text
    assert "h for 1000 steps" in text and "assumed" in text and "35% of 989 TFLOP/s" in text


def test_a_run_is_planned_from_its_own_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = str(ROOT / "configs/train/llava-1.5-7b.yaml")
    arguments = parse("--config", preset, "--model", str(folder), "--gpus", "2")
    arguments.run(arguments)
    planned = capsys.readouterr().out
    config = load_config(TrainConfig, preset, [])
    assert f"h for {config.steps} steps" in planned
    trained = trained_parameters(read_shape(str(folder)), config) / 1e6
    assert f"{trained:.2f} M trained" in planned
    arguments = parse("--config", preset, "--model", str(folder), "--gpus", "2", "--steps", "7")
    arguments.run(arguments)
    assert "h for 7 steps" in capsys.readouterr().out


def test_a_micro_batch_that_must_be_lowered_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = parse("--model", str(folder), "--gpus", "16")
    arguments.run(arguments)
    text = capsys.readouterr().out
    assert "32 images = 2 x 16 devices x 1 accumulation" in text
    assert "lower its micro batch of 16 to 2" in text


@pytest.mark.parametrize("name", ["public_zero2.json", "zero2.json"])
def test_the_advised_file_has_the_batch_of_the_given_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A 70b model does not fit at stage 2; what is advised must not change the training."""
    given = ROOT / "configs/deepspeed" / name
    arguments = parse("--model", llava(tmp_path, "70b"), "--gpus", "8", "--checkpointing")
    arguments.deepspeed = str(given)
    arguments.run(arguments)
    text = capsys.readouterr().out
    assert f"accumulation steps, by {given}" in text
    assert f"fits: 3 ({given.with_name(name.replace('2', '3'))})" in text
    own = tmp_path / "own.json"
    own.write_text(given.read_text())
    assert plan.stage_advice(own, "3").startswith(f"a copy of {own} at stage 3")
    alone = tmp_path / "zero2.json"
    assert plan.stage_advice(alone, "3").startswith(f"a copy of {alone} at stage 3")
    alone.write_text("")
    assert plan.stage_advice(alone, "2") == str(alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "no vision-language configuration"),
        (["--gpus", "0"], "gpus=0 is below 1"),
        (["--steps", "0"], "steps=0 is below 1"),
        (["--config", "nothing.yaml"], "config=nothing.yaml does not exist"),
        (["--gpus", "3"], "train_batch_size=32 cannot be split"),
        (["--utilisation", "2"], "utilisation=2"),
        (["--deepspeed", "nothing.json"], "does not exist"),
    ],
)
def test_mistakes_are_named(folder: Path, arguments: list[str], message: str) -> None:
    parsed = parse(*(["--model", str(folder)] + arguments))
    with pytest.raises(ConfigError, match=message):
        parsed.run(parsed)


def test_a_model_without_images_is_refused(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="vision-language"):
        read_shape(str(tmp_path))
