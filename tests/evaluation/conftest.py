import dataclasses

import pytest
import torch

from autoselect.config import ScorerConfig
from autoselect.data.shards import ShardWriter
from autoselect.evaluation.latency.protocol import Rounds
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.reference.jpeg import to_jpeg
from autoselect.reference.questions import FAMILIES, ask
from autoselect.reference.scenes import make_scene, scene_rng
from autoselect.reference.vlm import build_model, save_vlm


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """Time two rounds unless a test says otherwise, which shows the shape of a report."""
    monkeypatch.setattr(Rounds, "on", lambda own, device: (own.repeats or 2, own.warmup or 0))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Return an untrained reference VLM as a folder that `from_pretrained` loads."""
    folder = tmp_path_factory.mktemp("model")
    save_vlm(build_model(0), folder)
    return str(folder)


@pytest.fixture(scope="session")
def selector_folder(tmp_path_factory):
    """Return an untrained selector for it."""
    folder = tmp_path_factory.mktemp("selector")
    torch.manual_seed(0)
    Selector(Scorer(192, ScorerConfig()), {"model": "test"}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Five reference scenes with one question of each family."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(str(folder)) as writer:
        for index in range(5):
            key = f"{index:04d}"
            scene = make_scene(0, "test", index)
            questions = ask(scene_rng(1, "test", index), scene, FAMILIES)
            writer.write(key, record_of(key, questions), [to_jpeg(scene.image)])
    return str(folder)


def record_of(key, questions):
    """Return a LLaVA record, as the reference shards hold it."""
    turns = []
    for question in questions:
        turns.append({"from": "human", "value": question.question})
        turns.append({"from": "gpt", "value": question.answer})
    turns[0]["value"] = "<image>\n" + turns[0]["value"]
    boxes = [[list(box) for box in question.boxes] for question in questions]
    tasks = [dataclasses.asdict(question)["family"] for question in questions]
    return {
        "id": key,
        "image": f"{key}.jpg",
        "conversations": turns,
        "tasks": tasks,
        "boxes": boxes,
    }
