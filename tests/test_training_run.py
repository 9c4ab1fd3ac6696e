"""A run in this process, on one rank: what its steps depend on."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from autoselect.config import TrainConfig
from autoselect.config_files import from_dict, load_config
from autoselect.deepspeed_config import load_deepspeed_config
from autoselect.heartbeat import Heartbeat
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.shards import render_shards
from autoselect.reference.vlm import build_model, save_vlm
from autoselect.runtime import RankInfo, SignalFlag
from autoselect.training_run import assemble, warn_of_few_cores

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_vlm(build_model(), folder / "vlm")
    render_shards(folder / "shards", ReferenceData(train=4, val=1, test=1), workers=1)
    return folder


def test_no_step_draws_from_a_global_generator(alone, folder):
    """This is why a checkpoint holds no random state."""
    flags = [
        f"--model={folder / 'vlm'}",
        f"--data.train_shards={folder / 'shards' / 'train-*.tar'}",
        f"--output={folder / 'run'}",
        *("--steps=2", "--save_every=1", "--gate.calibration_images=2", "--tracking=false"),
    ]
    config = load_config(TrainConfig, None, flags)
    deepspeed = load_deepspeed_config(ROOT / "configs" / "deepspeed" / "zero2.json")
    deepspeed |= {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 2}
    with Heartbeat(alone) as heartbeat:
        trainer = assemble(config, deepspeed, alone, SignalFlag(), heartbeat)
        before = generator_states()
        assert trainer.run()
    assert generator_states() == before


@pytest.mark.parametrize(
    ("source", "cores", "warned"),
    [
        ("slurm", 1, True),
        ("slurm", 5, False),
        ("launcher", 1, False),
    ],
)
def test_a_task_with_too_few_cores_is_told(monkeypatch, caplog, source, cores, warned):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    config = from_dict(TrainConfig, {"data": {"workers": 4}})
    warn_of_few_cores(config, RankInfo(0, 2, 0, source))
    assert ("--cpus-per-task=5" in caplog.text) == warned


def generator_states() -> tuple[str, str, bytes]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    drawn = b"".join(state.numpy().tobytes() for state in states)
    return repr(random.getstate()), repr(np.random.get_state()), drawn
