"""Checkpoints: complete or absent, exact, small, and never replaced by a silent fresh start."""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from autoselect.ranks import processes
from autoselect.training import checkpoint
from autoselect.training.checkpoint import CheckpointError, CheckpointStore
from autoselect.training.engine_state import TrainedState
from autoselect.training.state import Origin, Progress, TrainingState
from tests.launching import Worker, environment
from tests.training.states import make_state
from tests.vlm.model_variants import POINTER


def assert_same(left: TrainingState, right: TrainingState) -> None:
    assert (left.step, left.config, left.origin, left.progress) == (
        right.step,
        right.config,
        right.origin,
        right.progress,
    )
    assert left.trained.adam_step == right.trained.adam_step
    for mine, theirs in (
        (left.trained.weights, right.trained.weights),
        (left.trained.first_moments, right.trained.first_moments),
        (left.trained.second_moments, right.trained.second_moments),
        (left.statistics, right.statistics),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def saved(folder: Path, steps: tuple[int, ...], keep: int = 5) -> CheckpointStore:
    store = CheckpointStore(folder, keep)
    for step in steps:
        store.save(make_state(step))
    return store


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    loaded = saved(tmp_path, (3, 6)).load()
    assert loaded is not None
    assert_same(loaded, make_state(6))


def test_reading_and_writing_leave_the_global_generators_alone(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    processes.seed_everything(3)
    expected = [draw(), draw(), draw()]
    processes.seed_everything(3)
    store = CheckpointStore(tmp_path)
    found = [draw()]
    store.save(make_state(1))
    found.append(draw())
    store.load()
    assert [*found, draw()] == expected


def test_a_state_of_an_earlier_version_is_read() -> None:
    """It also named the next step, and had no digest of the model."""
    values = make_state(6).to_dict()
    values["data"] = {"digest": "abc", "next_step": 6}
    values["run"] = {"tracking_run_id": None}
    state = TrainingState.from_dict(values, TrainedState(), {})
    assert state.origin == Origin("abc", None, {}) and state.progress == Progress()
    assert state.step == 6 and "next_step" not in make_state(6).to_dict()["data"]


def in_format_1(folder: Path) -> None:
    """Rewrite a checkpoint as earlier versions wrote it, with random states."""
    extra = load_file(folder / "extra.safetensors") | {"rng.torch": torch.get_rng_state()}
    save_file(extra, folder / "extra.safetensors")
    values = json.loads((folder / "state.json").read_text())
    values["rng"] = {"python": random.getstate(), "numpy": ["MT19937", [1, 2], 0, 0, 0.0]}
    (folder / "state.json").write_text(json.dumps(values))
    (folder / "manifest.json").unlink()
    files = {path.name: checkpoint._fingerprint(path) for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


def test_checkpoints_with_random_states_still_load(tmp_path: Path) -> None:
    store = saved(tmp_path, (3, 6))
    in_format_1(tmp_path / "step-00000006")
    loaded = store.load()
    assert loaded is not None
    assert_same(loaded, make_state(6))


def test_an_empty_folder_is_a_fresh_start_and_a_lost_checkpoint_is_not(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "new")
    assert store.load() is None
    store.save(make_state(1))
    shutil.rmtree(tmp_path / "new" / "step-00000001")
    with pytest.raises(CheckpointError, match="names a checkpoint"):
        store.load()


def test_only_the_newest_stay(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2, 3, 4), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest",
        "step-00000003",
        "step-00000004",
    ]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"latest"}


def test_a_good_checkpoint_stays_rather_than_a_corrupt_newer_one(tmp_path: Path) -> None:
    store = saved(tmp_path, (200, 300), keep=2)
    spoil_flip(tmp_path / "step-00000300")
    loaded = store.load()
    assert loaded is not None and loaded.step == 200
    store.save(make_state(250))
    assert names(tmp_path) == {"step-00000200", "step-00000250"}
    spoil_flip(tmp_path / "step-00000250")
    loaded = store.load()
    assert loaded is not None and loaded.step == 200


def test_a_good_checkpoint_stays_rather_than_a_corrupt_one_after_it(tmp_path: Path) -> None:
    store = saved(tmp_path, (1, 2, 3), keep=3)
    spoil_flip(tmp_path / "step-00000002")
    store.save(make_state(4))
    assert names(tmp_path) == {"step-00000001", "step-00000003", "step-00000004"}


def test_an_abandoned_newer_checkpoint_goes_before_an_older_one(tmp_path: Path) -> None:
    """Both are complete, but the run took another course after the older one."""
    store = saved(tmp_path, (1, 2, 9), keep=3)
    (tmp_path / "latest").write_text("step-00000002\n")
    store.save(make_state(3))
    assert names(tmp_path) == {"step-00000001", "step-00000002", "step-00000003"}


def spoil_truncate(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def spoil_flip(folder: Path) -> None:
    path = folder / "exp_avg_sq.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(bytes(content))


def spoil_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"step": 6', '"step": 7'))


def spoil_missing(folder: Path) -> None:
    (folder / "exp_avg.safetensors").unlink()


def spoil_unexpected(folder: Path) -> None:
    (folder / "other.safetensors").write_bytes(b"")


def spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def spoil_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def spoil_format(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format"] = 99
    (folder / "manifest.json").write_text(json.dumps(manifest))


def sealed(folder: Path) -> None:
    """Write the manifest again, as if the files had been saved like this."""
    (folder / "manifest.json").unlink()
    files = {path.name: checkpoint._fingerprint(path) for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"format": 2, "files": files}))


def spoil_numbers(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, folder / "weights.safetensors")
    sealed(folder)


def spoil_keys_of_the_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 6}')
    sealed(folder)


def spoil_kind_of_the_state(folder: Path) -> None:
    (folder / "state.json").write_text("[6]")
    sealed(folder)


def spoil_with_a_pointer(folder: Path) -> None:
    (folder / "weights.safetensors").write_text(POINTER.format("0" * 64))


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_corrupt_checkpoint_is_refused_and_the_previous_one_used(
    tmp_path: Path, spoil, caplog: pytest.LogCaptureFixture
) -> None:
    store = saved(tmp_path, (3, 6))
    spoil(tmp_path / "step-00000006")
    with caplog.at_level(logging.WARNING):
        loaded = store.load()
    assert loaded is not None
    assert_same(loaded, make_state(3))
    assert "refused" in caplog.text and "step-00000006" in caplog.text
    spoil_flip(tmp_path / "step-00000003")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        store.load()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"..", b"step-00000009", b"/" * 5000])
def test_a_damaged_pointer_is_said_and_the_newest_checkpoint_used(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = saved(tmp_path, (3, 6))
    (tmp_path / "latest").write_bytes(content)
    loaded = store.load()
    assert loaded is not None and loaded.step == 6
    assert "latest names" in caplog.text


def test_a_git_lfs_pointer_in_a_checkpoint_is_called_one(tmp_path: Path) -> None:
    saved(tmp_path, (3,))
    spoil_with_a_pointer(tmp_path / "step-00000003")
    with pytest.raises(CheckpointError, match="weights.safetensors is a git-lfs pointer"):
        checkpoint.read_checkpoint(tmp_path / "step-00000003")


def test_a_corrupt_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    store = saved(tmp_path, (3, 6))
    spoil_flip(tmp_path / "step-00000006")
    store.save(make_state(6))
    loaded = store.load()
    assert loaded is not None and loaded.step == 6


def test_a_checkpoint_newer_than_the_pointer_waits_for_its_turn(tmp_path: Path) -> None:
    """A crash between the rename of the folder and the pointer."""
    store = saved(tmp_path, (3, 6))
    (tmp_path / "latest").write_text("step-00000003\n")
    loaded = store.load()
    assert loaded is not None and loaded.step == 3
    store.save(make_state(6))
    loaded = store.load()
    assert loaded is not None and loaded.step == 6


@pytest.mark.parametrize("begun", [(), (3,)])
def test_two_runs_in_one_folder_are_found_out(tmp_path: Path, begun: tuple[int, ...]) -> None:
    """The second to save would take the other's checkpoint of that step for its own."""
    saved(tmp_path, begun)
    one, other = CheckpointStore(tmp_path), CheckpointStore(tmp_path)
    for store in (one, other):
        store.load()
    one.save(make_state(6))
    with pytest.raises(CheckpointError, match="another run has written .*step-00000006 meanwhile"):
        other.save(make_state(6))
    one.save(make_state(9))
    shutil.rmtree(tmp_path)
    one.save(make_state(12))


class Died(Exception):
    """Raised where the process is meant to end."""


FILE_OPERATIONS = ("_flush", "sync_folder", "_write_text", "_fingerprint", "write_tensors")


@pytest.mark.parametrize("keep", [1, 2])
def test_dying_at_any_operation_of_a_save_leaves_a_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    """The save is stopped before its first, second, ... file operation, until it ends by itself."""
    base = tmp_path / "base"
    saved(base, (3,), keep)
    died_at = 0
    while True:
        folder = tmp_path / f"run{died_at}"
        shutil.copytree(base, folder)
        left = [died_at]

        def step(function, left=left):
            def counted(*args, **kwargs):
                if left[0] == 0:
                    raise Died
                left[0] -= 1
                return function(*args, **kwargs)

            return counted

        with monkeypatch.context() as patch:
            for name in FILE_OPERATIONS:
                patch.setattr(checkpoint, name, step(getattr(checkpoint, name)))
            patch.setattr(checkpoint.shutil, "rmtree", step(shutil.rmtree))
            patch.setattr(Path, "rename", step(Path.rename))
            patch.setattr(Path, "replace", step(Path.replace))
            try:
                CheckpointStore(folder, keep).save(make_state(6))
                finished = True
            except Died:
                finished = False
        store = CheckpointStore(folder, keep)
        loaded = store.load()
        assert loaded is not None, died_at
        assert_same(loaded, make_state(loaded.step))
        assert loaded.step in ((6,) if finished else (3, 6))
        store.save(make_state(9))
        after = store.load()
        assert after is not None and after.step == 9
        assert not list(folder.glob("*.partial"))
        if finished:
            break
        died_at += 1
    assert died_at > 15


KILL_SCRIPT = """
from pathlib import Path
from autoselect.training.checkpoint import CheckpointStore
from tests.training.states import make_state
store = CheckpointStore(Path({folder!r}), keep=1)
for step in range(1, 100000):
    store.save(make_state(step))
"""


def test_kill_nine_inside_saves(tmp_path: Path) -> None:
    """The process gets SIGKILL while it does nothing but save."""
    script = tmp_path / "saves.py"
    script.write_text(KILL_SCRIPT.format(folder=str(tmp_path / "c")))
    chance = random.Random(0)
    for _ in range(3):
        worker = Worker(script, (), environment())
        while not (tmp_path / "c" / "latest").exists():
            assert worker.process.is_alive(), worker.wait(0)
            time.sleep(0.001)
        time.sleep(chance.uniform(0.01, 0.2))
        worker.signal(signal.SIGKILL)
        code, log = worker.wait(60)
        assert code == -signal.SIGKILL, log
        loaded = CheckpointStore(tmp_path / "c", keep=1).load()
        assert loaded is not None
        assert_same(loaded, make_state(loaded.step))
        shutil.rmtree(tmp_path / "c")


def test_size_is_twelve_bytes_per_trained_parameter(tmp_path: Path) -> None:
    count = 300_000
    tensors = {"weight": torch.randn(count)}
    state = TrainingState(1, TrainedState(tensors, tensors, tensors, 1))
    folder = CheckpointStore(tmp_path).save(state)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert 12 * count < size <= 12 * count + 1_000_000


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On NFS a file that another process has open keeps its folder."""

    def refuse(path: Path) -> None:
        raise OSError(39, "Directory not empty", str(path))

    saved(tmp_path, (1,), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", refuse)
        CheckpointStore(tmp_path, keep=1).save(make_state(2))
    assert "old checkpoint" in caplog.text and "Directory not empty" in caplog.text
    loaded = CheckpointStore(tmp_path, keep=1).load()
    assert loaded is not None and loaded.step == 2
    CheckpointStore(tmp_path, keep=1).save(make_state(3))
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000003"]


def test_a_loaded_checkpoint_keeps_no_file_open(tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path).save(make_state(1))
    state = CheckpointStore(tmp_path).load()
    assert state is not None
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_a_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autoselect.files.tensors.write_bytes", full)
    with pytest.raises(CheckpointError, match="written.*No space left.*free some space.*resumes"):
        CheckpointStore(tmp_path).save(make_state(1))


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        CheckpointStore(tmp_path / "file" / "checkpoints").save(make_state(1))
