"""A run in this process, on one rank: what its steps depend on, and when it may resume."""

import json
import logging
import os
import random
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoselect.config import ConfigError, GateConfig, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import from_dict, load_config, to_dict
from autoselect.data.shards import ShardWriter
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.processes import RankInfo
from autoselect.ranks.signals import SignalFlag
from autoselect.reference.jpeg import to_jpeg
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.shards import render_shards
from autoselect.reference.vlm import build_model, save_vlm
from autoselect.tracking import Tracker
from autoselect.training import trainer as training_loop
from autoselect.training import validation
from autoselect.training.engine_state import TrainedState
from autoselect.training.resume import check_resumable
from autoselect.training.run import assemble, warn_of_few_cores
from autoselect.training.state import Origin, Progress, TrainingState
from autoselect.vlm.model_files import processor_digests
from tests.lmms.hub_folder import write_next_folder
from tests.vlm.conversations import picture

ROOT = Path(__file__).parents[2]
SIZES = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 8}


def adam(kind="AdamW", **parameters):
    return {"optimizer": {"type": kind, "params": {"torch_adam": True, **parameters}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_vlm(build_model(), folder / "vlm")
    render_shards(folder / "shards", ReferenceData(train=4, val=1, test=1), workers=1)
    return folder


def of_two_rows(folder, output, *flags):
    """Return the settings of a run on the rendered scenes, two rows in a batch."""
    own = [
        f"--model={folder / 'vlm'}",
        f"--data.train_shards={folder / 'shards' / 'train-*.tar'}",
        *(f"--output={output}", "--gate.calibration_images=2"),
    ]
    deepspeed = DeepSpeedConfig.load(ROOT / "configs" / "deepspeed" / "zero2.json")
    return load_config(TrainConfig, None, [*own, *flags]), deepspeed.with_batch(2, 2)


def test_no_step_draws_from_a_global_generator(alone, folder):
    """This is why a checkpoint holds no random state."""
    config, deepspeed = of_two_rows(
        folder, folder / "run", "--steps=2", "--save_every=1", "--tracking=false"
    )
    with Heartbeat(alone) as heartbeat:
        trainer = assemble(config, deepspeed, alone, SignalFlag(), heartbeat)
        before = generator_states()
        assert trainer.run()
    assert generator_states() == before


def test_no_rank_waits_in_a_collective_for_a_slow_tracking_server_or_slow_shards(
    alone, folder, tmp_path, monkeypatch
):
    """Both may take longer than a collective: an outage's backlog, indexes that are built."""

    class Noting(Heartbeat):
        doing = None

        @contextmanager
        def independently(self, doing):
            self.doing = doing
            with super().independently(doing):
                yield
            self.doing = None

    class SlowTracker(Tracker):
        waits: list = []

        def flush(self, timeout=None):
            self.waits.append(timeout)

    places, held_out_rows = {}, validation.held_out_rows

    def start(_run, _run_id):
        places["tracker"] = heartbeat.doing
        return SlowTracker(None)

    def held_out(*given):
        places["rows"] = heartbeat.doing
        return held_out_rows(*given)

    monkeypatch.setattr(training_loop, "start_tracker", start)
    monkeypatch.setattr(validation, "held_out_rows", held_out)
    held_out_shards = f"--validation.shards={folder / 'shards' / 'val-*.tar'}"
    config, deepspeed = of_two_rows(
        folder, tmp_path / "run", "--steps=1", "--validation.every=1", held_out_shards
    )
    with Noting(alone) as heartbeat:
        assert assemble(config, deepspeed, alone, SignalFlag(), heartbeat).run()
    assert places["tracker"] and places["rows"]
    assert SlowTracker.waits and None not in SlowTracker.waits


def test_steps_that_train_nothing_are_told_before_them_and_counted(alone, folder, tmp_path, caplog):
    """Of five samples one has a picture, so most steps of one sample train nothing."""
    caplog.set_level(logging.INFO)
    with ShardWriter(tmp_path / "shards") as writer:
        for number in range(5):
            turns = [{"from": "human", "value": "which?"}, {"from": "gpt", "value": "red"}]
            images = [] if number else [to_jpeg(Image.new("RGB", (96, 96), "red"))]
            writer.write(f"{number}", {"conversations": turns}, images)
    flags = [
        f"--model={folder / 'vlm'}",
        f"--data.train_shards={tmp_path / 'shards' / '*.tar'}",
        f"--output={tmp_path / 'run'}",
        *("--steps=5", "--gate.calibration_images=2", "--tracking=false", "--log_every=1"),
    ]
    config = load_config(TrainConfig, None, flags)
    deepspeed = DeepSpeedConfig.load(ROOT / "configs" / "deepspeed" / "zero2.json")
    logged = {}
    with Heartbeat(alone) as heartbeat:
        trainer = assemble(config, deepspeed.with_batch(1, 1), alone, SignalFlag(), heartbeat)
        assert "1 of 5 samples have a picture" in caplog.text
        assert "4 of the first 5 steps will train nothing" in caplog.text
        assert "5 steps x 1 images = 1.0 epochs of 5 samples" in caplog.text
        scorer, weights = trainer.engine.module.scorer, {}

        def note(metrics, step):
            logged[step] = metrics
            weights[step] = [weight.detach().clone() for weight in scorer.parameters()]

        trainer.tracker.log_metrics = note
        assert trainer.run()
        again = assemble(config, deepspeed.with_batch(1, 1), alone, SignalFlag(), heartbeat)
        assert again.step == 5 and again.progress.empty_steps == 4, "a resumed run counts on"
    images = [logged[step]["train/images"] for step in range(1, 6)]
    assert sorted(images) == [0, 0, 0, 0, 1]
    assert [logged[step]["train/answer_tokens"] > 0 for step in range(1, 6)] == [
        n > 0 for n in images
    ]
    assert logged[5]["train/empty_steps"] == 4
    trained = images.index(1) + 1
    measured = {"train/loss", "train/polarisation", "train/budget_error_tokens"}
    for step, metrics in logged.items():
        assert measured & metrics.keys() == (measured if step == trained else set())
        if step not in (1, trained):  # momentum and weight decay alone move nothing
            assert all(map(torch.equal, weights[step], weights[step - 1]))
    selector = json.loads((tmp_path / "run" / "selector" / "config.json").read_text())
    assert selector["training"]["polarisation"] == logged[trained]["train/polarisation"]
    assert from_dict(GateConfig, selector["training"]["gate"]) == config.gate
    first = images.index(0) + 1
    assert f"step {first} trains nothing" in caplog.text


def test_data_without_pictures_is_refused_before_anything_is_written(alone, folder, tmp_path):
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write("0", {"conversations": [{"from": "human", "value": "which?"}]}, [])
    flags = [
        f"--model={folder / 'vlm'}",
        f"--data.train_shards={tmp_path / 'shards' / '*.tar'}",
        f"--output={tmp_path / 'run'}",
        "--tracking=false",
    ]
    config = load_config(TrainConfig, None, flags)
    deepspeed = DeepSpeedConfig.load(ROOT / "configs" / "deepspeed" / "zero2.json")
    with Heartbeat(alone) as heartbeat, pytest.raises(ConfigError, match="none of 1 samples has a"):
        assemble(config, deepspeed.with_batch(1, 1), alone, SignalFlag(), heartbeat)
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize(
    ("now", "refused"),
    [
        (adam(betas=[0.9, 0.95]), None),
        (adam(), r"\(optimizer.params.betas: \[0.9, 0.95\] -> unset\)"),
        (adam("Adam", betas=[0.9, 0.95]), r"\(optimizer.type: AdamW -> Adam\)"),
        (adam(betas=[0.9, 0.95], eps=1e-6), r"\(optimizer.params.eps: unset -> 1e-06\)"),
    ],
)
def test_what_the_optimiser_is_given_stays(now, refused):
    """A parameter that is left out on resume is a change, like one that is added."""
    state = begun(to_dict(TrainConfig()), adam(betas=[0.9, 0.95]))
    with pytest.raises(ConfigError, match=refused) if refused else nullcontext():
        check_resumable(state, TrainConfig(), origin(now))


def test_a_setting_that_is_new_since_the_checkpoint_had_its_default():
    recorded = to_dict(TrainConfig())
    del recorded["gate"]["soft_removal"], recorded["dtype"]
    state = begun(recorded, {})
    check_resumable(state, TrainConfig(), origin({}))
    removing = from_dict(TrainConfig, {"gate": {"soft_removal": True}})
    with pytest.raises(ConfigError, match=r"\(gate.soft_removal: False -> True\)"):
        check_resumable(state, removing, origin({}))
    recorded["gate"]["dropout"] = 0.5  # of an earlier version
    with pytest.raises(ConfigError, match=r"\(gate.dropout: 0.5 -> unset\)"):
        check_resumable(state, TrainConfig(), origin({}))


def test_auto_is_the_dtype_that_the_run_was_begun_with():
    """A run that began in bfloat16 on a GPU does not go on in float32 on a CPU unnoticed."""
    recorded = begun(to_dict(TrainConfig()), {})
    state = replace(recorded, origin=replace(recorded.origin, dtype="bfloat16"))
    state = TrainingState.from_dict(state.to_dict(), TrainedState(), {})
    with pytest.raises(ConfigError, match=r"\(dtype: bfloat16 -> float32\)"):
        check_resumable(state, TrainConfig(), replace(origin({}), dtype="float32"))
    named = from_dict(TrainConfig, {"dtype": "bfloat16"})
    check_resumable(state, named, replace(origin({}), dtype="bfloat16"))
    check_resumable(state, TrainConfig(), origin({}))  # a check without the device


def test_a_run_goes_on_with_the_same_model_and_shards_in_another_place():
    state = begun(to_dict(TrainConfig()), {})
    places = {"model": "/scratch/vlm", "data": {"train_shards": "/scratch/*.tar"}}
    moved = from_dict(TrainConfig, places)
    check_resumable(state, moved, origin({}))
    with pytest.raises(ConfigError, match="other weights of model=/scratch/vlm"):
        check_resumable(state, moved, replace(origin({}), model_digest="other"))
    with pytest.raises(ConfigError, match="a run on other data"):
        check_resumable(state, moved, replace(origin({}), data_digest="other"))


def test_the_shards_of_the_validation_may_move_if_their_rows_are_compared():
    """`Validation.resumed` refuses other rows in another place."""
    state = begun(to_dict(TrainConfig()), {})
    moved = from_dict(TrainConfig, {"validation": {"shards": "/scratch/val/*.tar"}})
    with pytest.raises(ConfigError, match="validation.shards: held-out -> /scratch"):
        check_resumable(state, moved, origin({}))
    known = replace(state, progress=Progress(held_out_digest="d"))
    check_resumable(known, moved, origin({}))


@pytest.mark.parametrize("told", [False, True])
def test_a_setting_that_was_removed_must_have_had_its_default(told):
    values = begun(to_dict(TrainConfig()), {}).to_dict()
    values["config"]["denoiser"]["told_gate"] = told
    values["config"]["gate"] |= {"removal": "none", "removal_probability": 0.97}
    state = TrainingState.from_dict(values, TrainedState(), {})
    refused = r"told_gate: True -> unset\); .* go on with the version that has denoiser.told_gate"
    with pytest.raises(ConfigError, match=refused) if told else nullcontext():
        check_resumable(state, TrainConfig(), origin({}))


def test_a_checkpoint_of_a_removed_option_is_named():
    values = begun(to_dict(TrainConfig()), {}).to_dict()
    assert TrainingState.from_dict(values, TrainedState(), {}).train_config() == TrainConfig()
    values["config"]["gate"] |= {"removal": "per_image", "removal_probability": 1.0}
    state = TrainingState.from_dict(values, TrainedState(), {})
    with pytest.raises(ConfigError, match="trained with gate.removal=per_image, which this"):
        state.train_config()


def test_a_lowest_budget_in_tokens_is_the_share_that_means_the_same():
    """Checkpoints of earlier versions name tokens, whatever the settings did."""
    named = from_dict(TrainConfig, {"gate": {"min_token_budget": 6.0}})
    for old, new in ((named, TrainConfig()), (TrainConfig(), named)):
        check_resumable(begun(to_dict(old), {}), new, origin({}))
    other = from_dict(TrainConfig, {"gate": {"min_token_budget": 5}})
    with pytest.raises(ConfigError, match=r"\(gate.min_token_budget: 6 -> 5\)"):
        check_resumable(begun(to_dict(TrainConfig()), {}), other, origin({}))


def test_a_run_goes_on_with_the_processor_that_it_began_with(folder, tmp_path):
    """Other pixels or another chat template change what is trained, and no weight."""
    model = tmp_path / "vlm"
    shutil.copytree(folder / "vlm", model)
    config = TrainConfig(model=str(model))
    at_start = Origin(processor=processor_digests(model))
    state = TrainingState(1, TrainedState(), to_dict(config), origin=at_start)
    check_resumable(state, config, Origin(processor=processor_digests(model)))
    check_resumable(replace(state, origin=Origin()), config, at_start)  # of an earlier version
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ConfigError, match="another processor .*: chat_template.jinja changed"):
        check_resumable(state, config, Origin(processor=processor_digests(model)))
    template.unlink()
    with pytest.raises(ConfigError, match="chat_template.jinja changed"):
        check_resumable(state, config, Origin(processor=processor_digests(model)))
    fewer = {n: d for n, d in at_start.processor.items() if n != template.name}
    on_hub = replace(config, model="org/name")  # whose cache is filled file by file
    check_resumable(replace(state, config=to_dict(on_hub)), on_hub, Origin(processor=fewer))


def origin(changes: dict) -> Origin:
    """Return what a run with these changes to its DeepSpeed file is begun with."""
    return Origin("data", "model", DeepSpeedConfig(SIZES | adam() | changes).step_settings())


def begun(recorded: dict, changes: dict) -> TrainingState:
    """Return a checkpoint of a run with these settings."""
    return TrainingState(1, TrainedState(), recorded, origin=origin(changes))


def generator_states() -> tuple[str, str, bytes]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    drawn = b"".join(state.numpy().tobytes() for state in states)
    return repr(random.getstate()), repr(np.random.get_state()), drawn


def test_images_below_the_budget_are_counted(alone, tmp_path, caplog):
    """Of two images, one has fewer tokens than the budget; both come once per step."""
    write_next_folder(tmp_path / "vlm")
    with ShardWriter(tmp_path / "shards") as writer:
        for number, size in enumerate([(112, 112), (112, 40)]):
            turns = [{"from": "human", "value": "<image>which?"}, {"from": "gpt", "value": "no"}]
            writer.write(f"{number}", {"conversations": turns}, [to_jpeg(picture(number, size))])
    flags = [
        f"--model={tmp_path / 'vlm'}",
        f"--data.train_shards={tmp_path / 'shards' / '*.tar'}",
        f"--output={tmp_path / 'run'}",
        *("--steps=3", "--gate.calibration_images=2", "--tracking=false", "--data.workers=0"),
        *("--gate.token_budget=60", "--gate.min_token_budget=60", "--save_every=2"),
    ]
    config = load_config(TrainConfig, None, flags)
    deepspeed = DeepSpeedConfig.load(ROOT / "configs" / "deepspeed" / "zero2.json")
    caplog.set_level("INFO")
    with Heartbeat(alone) as heartbeat:
        assert assemble(config, deepspeed.with_batch(2, 2), alone, SignalFlag(), heartbeat).run()
        resumed = assemble(config, deepspeed.with_batch(2, 2), alone, SignalFlag(), heartbeat)
    assert "3 of 6 images had fewer visual tokens than the budget" in caplog.text
    progress = resumed.progress
    assert (progress.images, progress.smaller_images) == (6, 3)
