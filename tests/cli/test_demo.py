"""A finished demo is not trained again; anything that differs is left to the training."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from autoselect.cli import demo
from autoselect.config import DataConfig, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import to_dict
from autoselect.config.programs import DEFAULT_DEEPSPEED, checkout
from autoselect.data.shards import ShardSet
from autoselect.evaluation.settings import EvalSettings
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.resources import REFERENCE, resolve_model
from autoselect.reference.shards import render_shards
from autoselect.vlm.loading import weights_digest


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Return a folder of reference shards, which no test changes."""
    folder = tmp_path_factory.mktemp("rendered") / "shards"
    render_shards(folder, ReferenceData(train=4, val=1, test=1), workers=1)
    return folder


@pytest.fixture
def finished(shards, tmp_path):
    """Return a root whose runs/demo/train looks as it does after the training."""
    shutil.copytree(shards, tmp_path / "runs/reference/shards")
    pattern = "runs/reference/shards/train-*.tar"
    config = TrainConfig(
        model=resolve_model(REFERENCE),
        output="runs/demo/train",
        data=DataConfig(train_shards=pattern),
    )
    deepspeed = (checkout() / DEFAULT_DEEPSPEED).read_text()
    (tmp_path / DEFAULT_DEEPSPEED).parent.mkdir(parents=True)
    (tmp_path / DEFAULT_DEEPSPEED).write_text(deepspeed)
    settings = {
        "train": to_dict(config),
        "deepspeed": DeepSpeedConfig.load(tmp_path / DEFAULT_DEEPSPEED).to_dict(),
    }
    tuning = {"data_digest": ShardSet.open(str(tmp_path / pattern)).digest}
    run = tmp_path / "runs/demo/train"
    training = {"tuning": tuning, "model_digest": weights_digest(config.model)}
    Selector(Scorer(8, config.scorer), training).save_pretrained(run / "selector")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def edit(path: Path, change) -> None:
    values = yaml.safe_load(path.read_text())  # JSON is YAML too
    change(values)
    path.write_text(json.dumps(values))


def test_a_finished_training_is_recognised(finished):
    assert demo.is_trained(finished)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.yaml", lambda s: s["train"].update(steps=241)),
        ("config.yaml", lambda s: s["train"].update(model="elsewhere")),
        ("config.yaml", lambda s: s["deepspeed"].update(train_batch_size=64)),
        ("selector/config.json", lambda s: s["training"].pop("tuning")),
        ("selector/config.json", lambda s: s["training"].update(model_digest="other")),
        ("selector/config.json", lambda s: s["training"]["tuning"].update(data_digest="x")),
    ],
)
def test_other_settings_data_or_an_unfinished_search_are_not(finished, file, change):
    edit(finished / "runs/demo/train" / file, change)
    assert not demo.is_trained(finished)


@pytest.mark.parametrize("file", ["config.yaml", "selector/config.json"])
def test_an_interrupted_training_is_not(finished, file):
    path = finished / "runs/demo/train" / file
    path.write_text("{")
    assert not demo.is_trained(finished)
    path.unlink()
    assert not demo.is_trained(finished)


SAME = EvalSettings(**demo.demo_evaluation(demo.RUN, "none", 300, 1))
FEWER = replace(SAME, max_images=8)
OTHER = replace(SAME, scoring="likelihood")


@pytest.mark.parametrize(("before", "kept"), [(SAME, True), (FEWER, False), (OTHER, False)])
def test_the_demo_replaces_its_own_report(before, kept, tmp_path, monkeypatch):
    """An evaluation refuses to replace the report of other settings, such as fewer images."""
    report = tmp_path / demo.RUN / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"settings": asdict(before)}, default=str))
    called = []
    monkeypatch.setattr(demo, "checkout", lambda: tmp_path)
    monkeypatch.setattr(demo, "step", lambda command, again: called.append(report.exists()))
    settings = demo.demo_evaluation(demo.RUN, "none", 300, 1)
    demo.evaluate(settings, 1)
    assert called == [kept]


@pytest.mark.parametrize("activated", [True, False])
def test_what_comes_next_can_be_typed_in_this_shell(activated, tmp_path, monkeypatch):
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "autoselect").write_text("#!/bin/sh\n")
    (folder / "autoselect").chmod(0o755)
    monkeypatch.setattr(demo.sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(folder) if activated else "/nowhere")
    monkeypatch.chdir(tmp_path)
    shown = "autoselect" if activated else ".venv/bin/autoselect"
    assert f"  {shown} show " in demo.NEXT.format(run=demo.RUN, show=f"{demo.program()} show")
