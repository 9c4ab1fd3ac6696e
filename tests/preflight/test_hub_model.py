"""`autoselect doctor` checks a hub model's cached files as it checks a folder."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.preflight import model_check
from autoselect.preflight.finding import Machine, Subject
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.vlm.loading import read_config
from tests.vlm.model_variants import OTHER_PROCESSOR
from tests.vlm.stock import model_of

ROOT = Path(__file__).parents[2]
NAME = "org/vlm"


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """Put the reference VLM into a cache of the hub, as `org/vlm`, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--vlm"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    return Path(shutil.copytree(MODEL_FOLDER, repository / "snapshots" / "0123"))


@pytest.fixture
def reachable(monkeypatch):
    """Let the hub answer for every name; files still come from the cache alone."""
    monkeypatch.setattr(model_check, "_ask_hub", lambda name: "")


def found_for(name: str | Path) -> model_check.Finding:
    deepspeed = DeepSpeedConfig.load(ROOT / "configs" / "deepspeed" / "zero2.json")
    machine = Machine(1, None, None, None, 0)
    return model_check.check_model(Subject(TrainConfig(model=str(name)), deepspeed, "", machine))


def test_a_whole_model_in_the_cache_is_ok(snapshot):
    found = found_for(NAME)
    assert (found.status, found.fix) == ("ok", "")
    assert found.found.startswith("org/vlm: 1 weight files") and "in the cache" in found.found


def lose_the_processor(snapshot):
    (snapshot / "processor_config.json").unlink()


def lose_the_tokenizer(snapshot):
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer_config.json").unlink()


def lose_the_weights(snapshot):
    (snapshot / "model.safetensors").unlink()


LOST = [
    (lose_the_processor, "lacks processor_config.json"),
    (lose_the_tokenizer, "lacks tokenizer.json"),
    (lose_the_weights, "lacks weights"),
]


@pytest.mark.parametrize(("lose", "lacks"), LOST, ids=lambda value: getattr(value, "__name__", ""))
def test_a_cache_without_some_files_fails_offline_and_warns_online(
    snapshot, monkeypatch, lose, lacks
):
    lose(snapshot)
    offline = found_for(NAME)
    assert offline.status == "fail" and f"org/vlm {lacks}" in offline.found
    assert (
        "HF_HUB_OFFLINE is set" in offline.found
        and "hf download org/vlm, with a network" in offline.fix
    )
    monkeypatch.setattr(model_check, "_ask_hub", lambda name: "")
    online = found_for(NAME)
    assert online.status == "warn" and lacks in online.found


def test_a_model_that_is_not_in_the_cache_is_to_be_downloaded_before_the_job(snapshot, reachable):
    """The check itself has fetched the configuration."""
    for file in snapshot.iterdir():
        if file.name != "config.json":
            file.unlink()
    found = found_for(NAME)
    assert found.status == "warn" and "can be reached on the hub, but the cache" in found.found
    assert "compute nodes often have no network" in found.fix
    assert "`hf download org/vlm` now, and set HF_HUB_OFFLINE=1 in the job" in found.fix


@pytest.mark.parametrize("fault", OTHER_PROCESSOR, ids=lambda fault: fault[0].__name__[6:])
def test_a_processor_that_does_not_fit_is_found_in_the_cache(snapshot, fault):
    plant, found, fix = fault
    plant(snapshot)
    finding = found_for(NAME)
    assert finding.status == "fail" and finding.found.startswith("org/vlm ")
    assert found in finding.found and fix in finding.fix


def test_a_cache_is_enough_without_a_network(snapshot, monkeypatch):
    monkeypatch.setattr(model_check, "_ask_hub", lambda name: "the hub cannot be reached")
    monkeypatch.setattr(model_check.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_check, "check_files", lambda name, **_: read_config(snapshot))
    found = found_for(NAME)
    assert found.status == "warn" and "in the cache, but the hub cannot be" in found.found
    assert "set HF_HUB_OFFLINE=1" in found.fix


def test_a_family_that_training_refuses_is_found_under_its_hub_name(snapshot):
    """PaliGemma; a folder and a hub name get the same words."""
    model_of("paligemma").save_pretrained(snapshot)
    by_name, by_folder = found_for(NAME), found_for(snapshot)
    assert by_name.status == by_folder.status == "fail" and by_name.fix == by_folder.fix
    assert "cannot be trained on: its whole prompt is a bidirectional prefix" in by_name.found
    assert by_name.found.removeprefix(NAME) == by_folder.found.removeprefix(str(snapshot))
