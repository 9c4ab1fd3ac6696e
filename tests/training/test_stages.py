"""The real trainer on real ranks: ZeRO stages, world sizes and batch splits agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from autoselect.data.shards import ShardWriter
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.shards import render_sample, render_shards
from tests.launching import launch
from tests.training.small import write_small_vlm
from tests.vlm.stock import model_of

STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stages")
    write_small_vlm(path / "vlm")
    render_shards(path / "shards", ReferenceData(train=32, val=1, test=1), workers=1)
    return path


def test_zero_3_never_holds_the_frozen_model_whole(folder: Path) -> None:
    launch(2, "loading_worker.py", str(folder))
    for rank in range(2):
        for result in json.loads((folder / f"loading-{rank}.json").read_text()).values():
            assert result["held"] < 0.51 * result["all"]
            assert result["different"] == [] and result["tokens_equal"]


def test_experts_are_loaded_and_trained_sharded(tmp_path: Path) -> None:
    """A tensor per expert in the file, one for all in the model, which no family lists."""
    model = model_of("qwen3_5_moe")
    model.save_pretrained(tmp_path / "experts")
    with safe_open(tmp_path / "experts" / "model.safetensors", "pt") as file:
        assert any("experts.0.down_proj" in name for name in file.keys())
    assert any(name.endswith("experts.down_proj") for name, _ in model.named_parameters())
    launch(2, "experts_worker.py", str(tmp_path))
    for rank in range(2):
        found = json.loads((tmp_path / f"experts-{rank}.json").read_text())
        assert found["zero3"]["held"] < 0.51 and found["zero0"]["held"] == 1
        assert found["zero3"]["losses"] == pytest.approx(found["zero0"]["losses"], rel=1e-5)
        assert len(set(found["zero0"]["losses"])) == 3


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "checkpoints" / f"step-{STEPS:08d}" / "weights.safetensors")


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((tensor - right[name]).abs().max()) for name, tensor in left.items())


@pytest.mark.slow
def test_ranks_without_an_image_do_not_hang_at_any_stage(folder: Path) -> None:
    """Every second sample has no image, one sample per micro-batch: some ranks have none.

    Their answers differ in length; those without any are replaced by blanks.
    """
    (folder / "mixed").mkdir()
    with ShardWriter(folder / "mixed", "train") as writer:
        for index in range(32):
            key, record, jpeg = render_sample(3, "train", index)
            if index % 2:
                human = {"from": "human", "value": "is there a sign ?"}
                answer = {"from": "gpt", "value": "no" if index % 4 == 1 else "there is no sign"}
                turns = [human] if index % 8 == 7 else [human, answer]
                record = {"id": key, "conversations": turns}
            writer.write(key, record, [] if index % 2 else [jpeg])
    names = ("zero2+micro+mixed", "zero3+micro+mixed")
    launch(2, "stage_worker.py", str(folder), str(STEPS), *names)
    left, right = (weights(folder, f"{name}-2") for name in names)
    assert largest_difference(left, right) < 1e-6


@pytest.mark.slow
def test_stages_world_sizes_and_splits_agree_after_8_steps(folder: Path) -> None:
    launch(
        2, "stage_worker.py", str(folder), str(STEPS), "zero0", "zero1", "zero2", "zero3",
        "zero2+micro", "zero3+recompute", "zero3+options",
    )  # fmt: skip
    launch(1, "stage_worker.py", str(folder), str(STEPS), "zero2", "zero2+micro", "zero2+options")
    launch(4, "stage_worker.py", str(folder), str(STEPS), "zero2")
    start = weights(folder, "zero0-2")
    names = ("zero1-2", "zero2-2", "zero3-2", "zero2+micro-2", "zero2-1", "zero2+micro-1")
    for name in (*names, "zero2-4", "zero3+recompute-2"):
        assert largest_difference(weights(folder, name), start) < 1e-6, name
    covered = weights(folder, "zero3+options-2")
    assert largest_difference(covered, weights(folder, "zero2+options-1")) < 1e-6
    assert largest_difference(covered, start) > 1e-4
