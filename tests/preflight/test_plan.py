"""What `autoselect plan` prints, and what it refuses."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.files import load_config
from autoselect.preflight import plan
from autoselect.preflight.estimates import Estimate
from autoselect.preflight.plan import add_plan_command
from autoselect.reference.vlm import build_model, save_vlm
from autoselect.vlm.shape import read_shape
from tests.preflight.published_sizes import llava

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vlm")
    save_vlm(build_model(), path)
    return path


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_plan_command(parser.add_subparsers())
    found, settings = parser.parse_known_args(
        ["plan", "--deepspeed", str(ROOT / "configs/deepspeed/zero2.json"), "--gpu", "h100"]
        + [*arguments]
    )
    found.settings = settings
    return found


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
    assert "128 text and 32 answer tokens" in text


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        (None, (), "h100, assumed as no GPU is visible (--gpu names another): 79.1 GiB, 989 TFLOP"),
        (None, ("--gpu", "l40s"), "l40s: 44.4 GiB, 362 TFLOP/s"),
        ("NVIDIA H200", (), "NVIDIA H200, visible here: 40.0 GiB, 989 TFLOP/s"),
        ("NVIDIA A100-SXM4-40GB", (), "NVIDIA A100-SXM4-40GB, visible here: 40.0 GiB, 312 TFLOP/s"),
        ("NVIDIA H200", ("--gpu", "b200"), "b200: 178.4 GiB, 2250 TFLOP/s"),
        (
            "Other",
            (),
            "Other, visible here, at the rate of h100, as its own is not known (--tflops",
        ),
        ("Other", ("--tflops", "7"), "Other, visible here: 40.0 GiB, 7 TFLOP/s"),
    ],
)
def test_the_device_is_named_and_is_a_visible_one(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
    flags: tuple[str, ...],
    said: str,
) -> None:
    device = SimpleNamespace(name=name, total_memory=40 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name is not None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    arguments = parse("--model", str(folder), *flags)
    if "--gpu" not in flags:
        arguments.gpu = None
    arguments.run(arguments)
    text = capsys.readouterr().out
    assert f"device     {said}" in text
    gib = re.search(r"^device .*: ([\d.]+) GiB", text, re.MULTILINE)
    assert gib is not None and f"fits in {gib[1]}" in text


def test_the_dtype_is_that_of_the_configuration(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {folder}\ndtype: float32\n")
    for flags, size in (((), 4), (("--dtype", "bfloat16"), 2)):
        arguments = parse("--config", str(config), *flags)
        arguments.run(arguments)
        assert f"weights and activations of {size} bytes" in capsys.readouterr().out


def test_typical_and_worst_memory_are_printed_and_the_worst_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = str(ROOT / "configs/deepspeed/public_zero2.json")
    arguments = parse("--model", llava(tmp_path, "13b"), "--stage", "2", "--deepspeed", public)
    arguments.run(arguments)
    text = capsys.readouterr().out
    assert "typical: 4 x 704 tokens, 32 of each row" in text
    assert "worst: 4 x 2048, data.max_text_tokens=2048" in text
    line = re.search(r"^  2 +([\d. ]+)  (.*)$", text, re.MULTILINE)
    assert line is not None and line[2] == "does not fit in 79.1"
    frozen, trained, buffers, usual, usual_total, most, most_total = map(float, line[1].split())
    rest = frozen + trained + buffers
    assert usual_total == pytest.approx(rest + usual, abs=0.03)
    assert most_total == pytest.approx(rest + most, abs=0.03)
    assert usual_total < 79.1 < most_total
    assert "h for 240 steps" in text and "of typical rows" in text


def test_a_run_is_planned_from_its_own_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = str(ROOT / "configs/train/llava-1.5-7b.yaml")
    arguments = parse("--config", preset, "--model", str(folder), "--gpus", "2")
    arguments.run(arguments)
    planned = capsys.readouterr().out
    config = load_config(TrainConfig, preset, [])
    assert f"h for {config.steps} steps" in planned
    trained = Estimate(read_shape(str(folder)), config).trained_parameters / 1e6
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
    """A 70b model does not fit at stage 2; the advised file must not change the training."""
    given = ROOT / "configs/deepspeed" / name
    arguments = parse(
        "--model", llava(tmp_path, "70b"), "--gpus", "8", "--activation_checkpointing=true"
    )
    arguments.deepspeed = str(given)
    arguments.run(arguments)
    text = capsys.readouterr().out
    assert f"accumulation steps, by {given}" in text
    assert f"fits: 3 ({given.with_name(name.replace('2', '3'))})" in text
    one_card = given.with_name("zero2_one_card.json")
    assert plan.stage_advice(one_card, "1").startswith(f"a copy of {one_card} at stage 1")
    own = tmp_path / "own.json"
    own.write_text(given.read_text())
    assert plan.stage_advice(own, "3").startswith(f"a copy of {own} at stage 3")
    alone = tmp_path / "zero2.json"
    assert plan.stage_advice(alone, "3").startswith(f"a copy of {alone} at stage 3")
    assert plan.stage_advice(alone, "2") == str(alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "neither a folder here nor a hub name"),
        (["--gpus", "0"], "gpus=0 is below 1"),
        (["--steps", "0"], "steps=0 is below 1"),
        (["--config", "nothing.yaml"], "config=nothing.yaml does not exist"),
        (["--gpus", "3"], "train_batch_size=32 cannot be split"),
        (["--utilisation", "2"], "utilisation=2"),
        (["--tflops", "inf"], "tflops=inf must be above 0 and finite"),
        (["--gpu-memory", "nan"], "gpu_memory=nan and .* must be above 0 and finite"),
        (["--overhead-gib", "nan"], "overhead_gib=nan must be finite and not below 0"),
        (["--text-tokens", "20"], "text_tokens=20 count .* answer_tokens=32; give fewer"),
        (["--deepspeed", "nothing.json"], "does not exist"),
    ],
)
def test_mistakes_are_named(folder: Path, arguments: list[str], message: str) -> None:
    parsed = parse(*(["--model", str(folder)] + arguments))
    with pytest.raises(ConfigError, match=message):
        parsed.run(parsed)


def test_settings_are_given_as_to_the_training(folder: Path) -> None:
    arguments = parse("--model", str(folder), "--gate.token_budget", "12", "--steps=7")
    config = plan.run_config(arguments)
    assert (config.model, config.gate.token_budget, config.steps) == (str(folder), 12, 7)
    with pytest.raises(ConfigError, match="gpu-mem"):
        plan.run_config(parse("--gpu-mem", "80"))
