"""The held-out loss: which rows it is measured on, and how it ends a training."""

import errno
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoselect.config import ConfigError, ScorerConfig, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import load_config
from autoselect.data.order import epoch_slice, stream_slice
from autoselect.data.shards import ShardSet, ShardWriter
from autoselect.method.scorer import Scorer
from autoselect.pruning import selector as selector_module
from autoselect.pruning.selector import Selector
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.signals import SignalFlag
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.shards import render_shards
from autoselect.reference.vlm import build_model, save_vlm
from autoselect.training import validation
from autoselect.training.remarks import cause_of_end
from autoselect.training.run import assemble
from autoselect.training.state import Progress
from autoselect.training.trainer import Trainer
from autoselect.training.update_guard import NumbersError
from autoselect.training.validation import held_out_rows, judged, take_best, warn_of_trained_rows

FIVE = ("--steps=5", "--validation.images=2")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    save_vlm(build_model(), folder / "vlm")
    render_shards(folder / "shards", ReferenceData(train=12, val=2, test=1), workers=1)
    return folder


def config_of(folder, output, *flags):
    given = [
        f"--model={folder / 'vlm'}",
        f"--data.train_shards={folder / 'shards' / 'train-*.tar'}",
        f"--output={output}",
        *("--steps=4", "--save_every=1", "--gate.calibration_images=2", "--tracking=false"),
        *("--validation.every=1", "--validation.images=3", *flags),
    ]
    return load_config(TrainConfig, None, given)


def trainer_of(config, alone, heartbeat):
    shipped = DeepSpeedConfig.load(ROOT / "configs" / "deepspeed" / "zero2.json")
    return assemble(config, shipped.with_batch(2, 2), alone, SignalFlag(), heartbeat)


def test_held_out_rows_are_never_trained_on(folder, tmp_path):
    config = config_of(folder, tmp_path)
    shards = ShardSet.open(config.data.train_shards)
    rows = [row.sample_id for row in held_out_rows(config, shards, 2)]
    assert rows == epoch_slice(12, 0, 0, 9, 12).tolist()
    assert not set(rows) & set(stream_slice(12, 0, 0, 4 * 2).tolist())
    with pytest.raises(ConfigError, match=r"5 steps of 2 rows leave 2 of the 12 rows .* unused"):
        held_out_rows(replace(config, steps=5), shards, 2)


def test_rows_of_other_shards_may_be_given(folder, tmp_path):
    other = str(folder / "shards" / "val-*.tar")
    config = config_of(folder, tmp_path, f"--validation.shards={other}", "--steps=99")
    rows = held_out_rows(config, ShardSet.open(config.data.train_shards), 2)
    assert [row.key for row in rows] == ["val-0000000", "val-0000001"]


@pytest.mark.parametrize(("name", "warned"), [("val", False), ("train", True)])
def test_a_validation_on_shards_of_the_training_is_told(folder, tmp_path, name, warned, caplog):
    """A training that waits for such a loss to rise picks the selector that knows its rows best."""
    copied = tmp_path / "judges"
    copied.mkdir()
    for path in (folder / "shards").glob(f"{name}-*"):
        shutil.copy(path, copied / path.name.replace(name, "judge"))
    shards = ShardSet.open(str(folder / "shards" / "train-*.tar"))
    warn_of_trained_rows(str(copied), shards)
    warn_of_trained_rows("held-out", shards)
    assert ("are trained on, so the held-out loss" in caplog.text) == warned


def test_rows_without_an_answer_are_refused_before_their_loss_of_0_is_the_lowest(
    alone, folder, tmp_path
):
    with ShardWriter(tmp_path / "questions") as writer:
        for row in ShardSet.open(str(folder / "shards" / "val-*.tar")):
            record = {"conversations": [{"from": "human", "value": "What is it?"}]}
            writer.write(row.key, record, list(row.images))
    config = config_of(folder, tmp_path / "run", f"--validation.shards={tmp_path}/questions/*.tar")
    with (
        pytest.raises(ConfigError, match="validation: none of 2 rows has a usable answer"),
        Heartbeat(alone) as heartbeat,
    ):
        trainer_of(config, alone, heartbeat)


def test_training_ends_early_with_the_selector_of_the_lowest_loss(alone, folder, tmp_path):
    """The losses are scripted; the weights of every step are recorded."""
    config = config_of(folder, tmp_path / "run", "--validation.patience=2", *FIVE)
    script, seen = iter([3.0, 2.0, 2.5, 2.0]), []
    with Heartbeat(alone) as heartbeat:
        trainer = trainer_of(config, alone, heartbeat)

        def scripted():
            weights = trainer.engine.module.scorer.state_dict()
            seen.append({name: tensor.clone() for name, tensor in weights.items()})
            return next(script)

        trainer.validation.loss = scripted
        assert trainer.run()
        assert trainer.step == 4
        assert (trainer.progress.best_step, trainer.progress.since_best) == (2, 2)
        again = trainer_of(config, alone, heartbeat)
        assert again.step == 4 and again.progress == trainer.now()
        assert again.run() and again.step == 4
    exported = Selector.from_pretrained(tmp_path / "run" / "selector").scorer.state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in seen[1].items())
    assert not torch.equal(seen[1]["projection.weight"], seen[3]["projection.weight"])


def test_a_run_killed_around_its_best_step_ends_with_the_selector_of_that_step(
    alone, folder, tmp_path, monkeypatch
):
    """The checkpoint of the best step comes first, and a resumed run writes what it lacks."""
    flags = ("--validation.patience=2", "--save_every=100", *FIVE)
    config = config_of(folder, tmp_path / "run", *flags)
    best = tmp_path / "run" / "best" / "config.json"

    def killed_at_step_2(trainer):
        if trainer.step == 2:
            raise KeyboardInterrupt

    def run(losses):
        trainer = trainer_of(config, alone, heartbeat)
        trainer.validation.loss = lambda: next(losses)
        began = trainer.step
        assert trainer.run()
        return began

    with Heartbeat(alone) as heartbeat:
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_export_best", killed_at_step_2)
            with pytest.raises(KeyboardInterrupt):
                run(iter([3.0, 2.0]))
        assert not best.exists()
        assert run(iter([2.5, 2.5])) == 2
        assert json.loads(best.read_text())["training"]["steps"] == 2
        exported = (tmp_path / "run" / "selector" / "selector.safetensors").read_bytes()
        assert exported == best.with_name("selector.safetensors").read_bytes()
        best.write_text(best.read_text().replace('"steps": 2', '"steps": 3'))
        with pytest.raises(ConfigError, match="must hold the selector of step 2.* that of step 3"):
            run(iter([]))
        shutil.rmtree(best.parent)
        with pytest.raises(ConfigError, match="must hold the selector of step 2.*holds none"):
            run(iter([]))


def test_a_run_that_resumes_with_other_held_out_rows_is_refused(alone, folder, tmp_path):
    """Its losses could not be compared with the lowest one of the checkpoint."""
    own = tmp_path / "held-out"
    shutil.copytree(folder / "shards", own, ignore=shutil.ignore_patterns("train-*", "test-*"))
    config = config_of(folder, tmp_path / "run", f"--validation.shards={own}", "--steps=1")
    with Heartbeat(alone) as heartbeat:
        assert trainer_of(config, alone, heartbeat).run()
        moved = replace(config.validation, shards=str(shutil.copytree(own, tmp_path / "moved")))
        assert trainer_of(replace(config, validation=moved), alone, heartbeat).run()
        shutil.rmtree(own)
        shutil.copytree(folder / "shards", own, ignore=shutil.ignore_patterns("train-*", "val-*"))
        with pytest.raises(ConfigError, match="held-out rows were others; restore validation"):
            trainer_of(config, alone, heartbeat)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(bad, tmp_path):
    progress = Progress()
    for step, loss in enumerate([bad, 3.0, bad, 2.0, bad], start=1):
        progress = judged(progress, step, loss)
    assert (progress.best_loss, progress.best_step, progress.since_best) == (2.0, 4, 1)
    only_bad = judged(Progress(), 1, bad)
    assert only_bad.since_best == 1
    with pytest.raises(NumbersError, match="no held-out loss was finite"):
        take_best(tmp_path, tmp_path / "selector", only_bad)


def test_a_full_disk_leaves_the_selector_that_was_there(tmp_path, monkeypatch):
    """The best selector replaces it file by file, weights first; none of them is left cut."""
    progress = judged(Progress(), 1, 2.0)
    old, best = (Selector(Scorer(8, ScorerConfig()), {"steps": steps}) for steps in (5, 1))
    old.save_pretrained(tmp_path / "selector")
    best.save_pretrained(tmp_path / validation.BEST_FOLDER)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(selector_module, "write_tensors", full)
        with pytest.raises(OSError) as error:
            take_best(tmp_path, tmp_path / "selector", progress)
    assert "free some space" in cause_of_end(error.value)[0]
    assert Selector.from_pretrained(tmp_path / "selector").metadata["steps"] == 5
    take_best(tmp_path, tmp_path / "selector", progress)
    tuned = Selector.from_pretrained(tmp_path / "selector")
    assert tuned.metadata["steps"] == 1 and tuned.diversity == 0
    tuned.diversity, tuned.metadata["note"] = 0.4, "kept"
    tuned.save_config(tmp_path / "selector")
    take_best(tmp_path, tmp_path / "selector", progress)  # the training is started again
    again = Selector.from_pretrained(tmp_path / "selector")
    assert again.diversity == 0.4 and again.metadata["note"] == "kept"
    assert "# selector:" in (tmp_path / "selector" / "README.md").read_text()


def test_the_loss_is_that_of_the_last_gates_and_changes_nothing(alone, folder, tmp_path):
    config = config_of(folder, tmp_path / "run", "--steps=2")
    with Heartbeat(alone) as heartbeat:
        trainer = trainer_of(config, alone, heartbeat)
        model = trainer.engine.module
        before = {name: p.clone() for name, p in model.named_parameters()}
        first, again = trainer.validation.loss(), trainer.validation.loss()
        assert first == again
        assert model.training and not model.frozen.training
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        gate = replace(config.gate, temperature_start=0.3)  # of the first step only
        other = replace(trainer.parts, config=replace(config, gate=gate))
        trainer.validation.run = other
        assert trainer.validation.loss() == first
        harder = replace(gate, temperature_end=0.3)
        trainer.validation.run = replace(other, config=replace(config, gate=harder))
        assert trainer.validation.loss() != first
        assert trainer.run()
