"""Trained state and update guard on real DeepSpeed engines: gloo ranks on the CPU, every stage."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.training.engine_state import TrainedState, check_keys
from tests import launching
from tests.launching import WORKERS, environment, free_port

CONFIGS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")


def launch(ranks: int, output: Path, configs: tuple[str, ...]) -> dict[str, Any]:
    """Run the worker on `ranks` processes and return its observations."""
    launching.launch(ranks, "engine_worker.py", str(output), *configs)
    return torch.load(output, weights_only=False)  # written a moment ago by our own worker


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launch(2, tmp_path_factory.mktemp("engines") / "two.pt", CONFIGS)


def assert_bit_equal(left: TrainedState, right: TrainedState) -> None:
    assert left.adam_step == right.adam_step
    for mine, theirs in (
        (left.weights, right.weights),
        (left.first_moments, right.first_moments),
        (left.second_moments, right.second_moments),
    ):
        assert mine.keys() == theirs.keys() and mine
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), name


def largest_difference(left: TrainedState, right: TrainedState) -> float:
    return max(
        float((tensor - right.weights[name]).abs().max()) for name, tensor in left.weights.items()
    )


@pytest.mark.parametrize("config", CONFIGS)
def test_start_state_is_the_untouched_model_with_zero_moments(
    two_ranks: dict[str, Any], config: str
) -> None:
    state = two_ranks["results"][config]["start"]
    assert state.adam_step == 0
    trained = {n: t for n, t in two_ranks["toy"].items() if n.startswith("trained.")}
    assert state.weights.keys() == trained.keys()
    assert all(torch.equal(state.weights[name], tensor) for name, tensor in trained.items())
    assert not any(moment.any() for moment in state.first_moments.values())


@pytest.mark.parametrize("config", CONFIGS)
def test_restored_state_reads_back_bit_for_bit(two_ranks: dict[str, Any], config: str) -> None:
    result = two_ranks["results"][config]
    assert result["middle"].adam_step == 3
    assert_bit_equal(result["right_after"], result["middle"])


@pytest.mark.parametrize("config", CONFIGS)
def test_resumed_run_is_bit_equal_to_the_uninterrupted_one(
    two_ranks: dict[str, Any], config: str
) -> None:
    result = two_ranks["results"][config]
    assert result["final"].adam_step == 6
    assert largest_difference(result["final"], result["middle"]) > 1e-3
    assert_bit_equal(result["resumed"], result["final"])


@pytest.mark.parametrize("config", CONFIGS[1:])
def test_zero_stages_agree(two_ranks: dict[str, Any], config: str) -> None:
    results = two_ranks["results"]
    assert largest_difference(results[config]["final"], results["zero0"]["final"]) < 1e-6
    assert math.isclose(
        results[config]["gradient_norm"], results["zero0"]["gradient_norm"], rel_tol=1e-5
    )


@pytest.mark.parametrize("config", CONFIGS)
def test_numbers_that_go_wrong_move_nothing(two_ranks: dict[str, Any], config: str) -> None:
    result = two_ranks["results"][config]
    assert result["injected_allowed"] == {
        "nan input": False,
        "inf loss": False,
        "overflowing gradient": False,
    }
    assert result["skipped"] == 3
    assert_bit_equal(result["after_injection"], result["final"])


@pytest.mark.parametrize("config", CONFIGS)
def test_a_row_of_bad_updates_ends_the_run(two_ranks: dict[str, Any], config: str) -> None:
    assert two_ranks["results"][config]["aborted"]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_skipped_first_update_leaves_the_start_state(
    two_ranks: dict[str, Any], config: str
) -> None:
    result = two_ranks["results"][config]
    assert_bit_equal(result["first_skipped"], result["start"])


@pytest.mark.parametrize("config", CONFIGS)
def test_the_frozen_part_keeps_its_own_dtype(two_ranks: dict[str, Any], config: str) -> None:
    result = two_ranks["results"][config]
    assert result["frozen_dtype"] == "torch.bfloat16"
    assert all(weight.dtype == torch.float32 for weight in result["final"].weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 4])
def test_world_sizes_agree(two_ranks: dict[str, Any], ranks: int, tmp_path: Path) -> None:
    configs = ("zero2", "zero3")
    other = launch(ranks, tmp_path / "other.pt", configs)
    for config in configs:
        mine, reference = other["results"][config], two_ranks["results"][config]
        assert mine["accumulation"] == 4 // ranks
        assert largest_difference(mine["final"], reference["final"]) < 1e-6
        assert_bit_equal(mine["resumed"], mine["final"])


def test_a_rank_leaves_with_its_own_code(tmp_path: Path) -> None:
    """A thread of gloo that waits for the interpreter's lock must not abort the process."""
    ranks = []
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    for rank in range(2):
        variables = {**environment(), **address, "RANK": str(rank)}
        command = [sys.executable, str(WORKERS / "leave_worker.py"), str(tmp_path / "marker")]
        ranks.append(subprocess.Popen(command, env=variables))
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [75, 0]
    finally:
        for rank in ranks:
            rank.kill()


def test_key_sets_are_compared_exactly() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(4)}
    found = {"a": torch.zeros(2), "b": torch.zeros(1), "d": torch.zeros(1)}
    check_keys(expected, dict(expected), "this checkpoint")
    with pytest.raises(ConfigError) as error:
        check_keys(expected, found, "this checkpoint")
    message = str(error.value)
    assert "missing c" in message and "unexpected d" in message
    assert "b has shape (1,), the model (3,)" in message
    assert "missing a" not in message
