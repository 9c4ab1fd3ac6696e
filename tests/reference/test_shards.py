"""Reference shards: standard layout, deterministic, restartable."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from autoselect.config import ConfigError
from autoselect.data.shards import ShardSet
from autoselect.reference import shards as module
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.resources import REFERENCE, resolve_model
from autoselect.reference.shards import render_shards

SIZES = ReferenceData(train=9, val=3, test=4, seed=2)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES_PER_SHARD", 4)


def test_splits_have_their_sizes_and_tasks(tmp_path, small_shards):
    render_shards(tmp_path, SIZES, workers=1)
    for split, count in (("train", 9), ("val", 3), ("test", 4)):
        data = ShardSet.open(str(tmp_path / f"{split}-*.tar"))
        assert len(data) == count
        for index in range(count):
            sample = data[index]
            rounds = len(sample.record["conversations"]) // 2
            assert len(sample.record["tasks"]) == len(sample.record["boxes"]) == rounds
            assert sample.pictures[0].size == (96, 96)
            assert sample.record["conversations"][0]["value"].startswith("<image>")
            if split != "train":
                assert len(set(sample.record["tasks"])) == rounds <= 5


def test_an_interrupted_rendering_is_finished_and_byte_equal(tmp_path, small_shards):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    render_shards(whole, SIZES, workers=1)
    render_shards(broken, SIZES, workers=1)
    names = sorted(path.name for path in whole.glob("*.tar"))
    (broken / names[0]).unlink()
    for index in broken.glob(f"{names[1]}?*"):
        index.unlink()
    render_shards(broken, SIZES, workers=1)
    for name in names:
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_other_sizes_in_the_same_folder_are_refused(tmp_path, small_shards):
    render_shards(tmp_path, SIZES, workers=1)
    with pytest.raises(ConfigError, match="other sizes"):
        render_shards(tmp_path, ReferenceData(train=8, val=3, test=4, seed=2), workers=1)


@pytest.mark.parametrize("found", [True, False])
def test_pages_that_are_set_in_another_way_are_told(tmp_path, monkeypatch, caplog, found):
    monkeypatch.setattr(module.features, "check", lambda feature: found)
    for domain in ("pages", "scenes"):
        caplog.clear()
        render_shards(tmp_path / domain, ReferenceData(1, 1, 1, seed=2), 1, domain)
        assert ("apt-get install libfribidi0" in caplog.text) == (domain == "pages" and not found)


def test_sizes_below_one_are_refused():
    with pytest.raises(ConfigError, match="test=0 images is below 1"):
        ReferenceData(test=0)


def test_captions_name_every_object_in_words_of_the_reference_vlm(tmp_path, small_shards):
    render_shards(tmp_path, SIZES, workers=1, domain="captions")
    scenes = tmp_path / "scenes"
    render_shards(scenes, SIZES, workers=1)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(REFERENCE))
    captions, questions = (ShardSet.open(f"{at}/train-*.tar") for at in (tmp_path, scenes))
    for index in range(len(captions)):
        sample, same = captions[index], questions[index]
        assert sample.pictures[0].tobytes() == same.pictures[0].tobytes()
        request, caption = (turn["value"] for turn in sample.record["conversations"])
        for item in same.record["objects"]:
            assert f"a {item['colour']} {item['shape']}" in caption
        ids = tokenizer(request.removeprefix("<image>\n") + " " + caption)["input_ids"]
        assert tokenizer.unk_token_id not in ids


def test_shards_are_written_without_the_import_of_torch():
    """Every demo looks at its shards first, and importing torch and transformers takes seconds."""
    program = (
        "import sys, autoselect.reference.shards\n"
        "assert not {'torch', 'transformers'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
