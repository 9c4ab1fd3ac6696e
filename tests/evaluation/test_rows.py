"""A user's own LLaVA JSON is evaluated without shards, labels or boxes."""

import dataclasses
import gzip
import json
import lzma
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from autoselect.config import ConfigError
from autoselect.data.shards import ShardSet
from autoselect.evaluation.answers.answering import FULL, Column
from autoselect.evaluation.answers.predictions import read_scores
from autoselect.evaluation.report.check import check_report
from autoselect.evaluation.rows import with_converted_rows
from autoselect.evaluation.run import evaluate
from autoselect.evaluation.samples import EvaluationSet
from autoselect.evaluation.settings import EvalSettings
from autoselect.reference.scenes import make_scene


@pytest.fixture
def source(tmp_path):
    """Three rows about two images; the last has neither answer nor task nor boxes."""
    folder = tmp_path / "mine" / "pictures"
    folder.mkdir(parents=True)
    for number in range(3):
        make_scene(3, "test", number).image.save(folder / f"{number}.png")
    rows = [
        {
            "id": f"row {number}",
            "image": f"pictures/{number}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nwhat colour is the circle ?"},
                {"from": "gpt", "value": "a long caption that nobody can match"},
            ],
        }
        for number in range(3)
    ]
    rows[2]["conversations"].pop()
    file = tmp_path / "mine" / "rows.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def settings(model_folder, selector_folder, source, tmp_path, monkeypatch):
    return EvalSettings(
        model=model_folder,
        selector=selector_folder,
        shards=str(source),
        budgets="4,16",
        out=str(tmp_path / "out"),
        methods="grid,oracle,scope",
        max_new_tokens=3,
        reference="model",
        audit=2,
        tracking=False,
    )


def test_the_full_model_is_the_reference_if_there_are_no_labels(settings):
    result = evaluate(dataclasses.replace(settings, methods="grid,scope"))
    report, out = result.report, Path(settings.out)
    check_report(json.loads((out / "report.json").read_text()))
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    table = page[page.index("## What it writes") : page.index("## Before and after")]
    assert all(re.search(rf"`{path.name}[`/]", table) for path in out.iterdir())
    assert report["reference"] == "model" and report["questions"] == 3
    assert report["full"]["mean"] == 1.0 and report["full"]["answers"]["agreement"] == 1.0
    for row in report["rows"]:
        assert row["mean"] == pytest.approx(row["answers"]["agreement"])
    full = result.replies[str(Column(FULL, 0))]
    pruned = result.replies[str(Column("autoselect", 4))]
    lost = sorted((few[0].loss - all_[0].loss for few, all_ in zip(pruned, full, strict=True)))
    listed = [row["loss_difference"] for row in report["audit"]]
    assert listed == pytest.approx(lost[::-1][:2])
    assert report["audit"][0]["full"] == full[int(report["audit"][0]["key"])][0].text
    assert Image.open(out / "figures" / "audit.png").size[1] > 300
    assert "Samples that lose most by pruning" in (out / "report.md").read_text()


def test_rows_become_the_shards_that_conversion_writes_once(settings, source):
    found = with_converted_rows(settings)
    (shard,) = Path(settings.out).glob("data/*/*.tar")
    before = shard.stat().st_mtime_ns
    samples = EvaluationSet.open(found.shards, needs_answers=False)
    assert [len(sample.questions) for sample in samples] == [1, 1, 1]
    assert samples[2].answers == (("",),) and samples[2].tasks == ("vqa",)
    assert with_converted_rows(settings) == found and shard.stat().st_mtime_ns == before
    source.write_text(json.dumps(json.loads(source.read_text())[:1]))
    assert with_converted_rows(settings).shards != found.shards, "a changed file is converted anew"


def test_rows_that_cannot_be_used_are_named(settings, source):
    rows = json.loads(source.read_text())
    rows[1]["image"] = "pictures/nowhere.png"
    source.write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match="1 of 3 rows cannot be used, the first is row 1"):
        evaluate(settings)
    with pytest.raises(ConfigError, match="cannot be read"):
        with_converted_rows(dataclasses.replace(settings, shards="nowhere.jsonl"))
    with pytest.raises(ConfigError, match="image_folder=pictures goes with a JSON file"):
        with_converted_rows(
            dataclasses.replace(settings, shards="x/*.tar", image_folder="pictures")
        )


def test_pictures_that_were_changed_or_added_are_read_anew(settings, source):
    first = with_converted_rows(settings)
    pictures = source.parent / "pictures"
    make_scene(4, "test", 9).image.save(pictures / "0.png")
    second = with_converted_rows(settings)
    before, after = (EvaluationSet.open(one.shards, None, False)[0] for one in (first, second))
    assert before.image.tobytes() != after.image.tobytes()
    (pictures / "1.png").rename(pictures / "later.png")
    with pytest.raises(ConfigError, match="1 of 3 rows cannot be used"):
        with_converted_rows(settings)
    (pictures / "later.png").rename(pictures / "1.png")
    assert len(EvaluationSet.open(with_converted_rows(settings).shards, None, False)) == 3


def test_another_folder_of_pictures_is_taken_as_the_error_proposes(settings, source, tmp_path):
    elsewhere = source.parent.rename(tmp_path / "elsewhere")
    source = Path(shutil.copy(elsewhere / "rows.json", tmp_path))
    settings = dataclasses.replace(settings, shards=str(source))
    with pytest.raises(ConfigError, match="or name another --image-folder"):
        with_converted_rows(settings)
    found = with_converted_rows(dataclasses.replace(settings, image_folder=str(elsewhere)))
    assert len(EvaluationSet.open(found.shards, None, False)) == 3


@pytest.mark.parametrize(
    ("name", "packed"),
    [("rows.JSON", bytes), ("rows.jsonl.gz", gzip.compress), ("rows.json.xz", lzma.compress)],
)
def test_a_file_of_rows_is_known_by_its_name(settings, source, name, packed):
    file = source.with_name(name)
    file.write_bytes(packed(source.read_bytes()))
    found = with_converted_rows(dataclasses.replace(settings, shards=str(file)))
    assert len(EvaluationSet.open(found.shards, None, False)) == 3
    with pytest.raises(ConfigError, match=f"{name} is JSON, but shards are tar files"):
        ShardSet.open(str(file))
    assert not list(source.parent.glob("*.index.jsonl"))


def test_labels_are_needed_unless_the_model_is_the_reference(settings):
    with pytest.raises(ConfigError, match="give every question its gpt turn"):
        evaluate(dataclasses.replace(settings, reference="answers"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"audit": -1}, "audit=-1"),
        ({"reference": "teacher"}, "choose one of answers, model"),
        ({"scoring": "likelihood"}, "needs the data's answers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, change, match):
    with pytest.raises(ConfigError, match=match):
        dataclasses.replace(settings, **change)


def test_rows_about_one_picture_have_no_other_image(settings, source):
    rows = json.loads(source.read_text())
    source.write_text(json.dumps([row | {"image": rows[0]["image"]} for row in rows]))
    report = evaluate(dataclasses.replace(settings, methods="none", audit=0)).report
    assert report["images"] == 1 and "other_image" not in report
    assert any("1 image is too few for intervals" in text for text in report["warnings"])


def test_rows_about_one_picture_count_as_one_image(settings, source):
    rows = json.loads(source.read_text())
    rows[1]["image"] = rows[0]["image"]
    source.write_text(json.dumps(rows))
    result = evaluate(dataclasses.replace(settings, methods="none", audit=0))
    assert result.report["images"] == 2 and result.report["questions"] == 3
    first, again, other = [sample.image_digest for sample in result.asked]
    assert first == again != other
    lines = (Path(settings.out) / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_digest"] for line in lines] == [first, again, other]
    assert read_scores(Path(settings.out) / "predictions.jsonl").pictures == (first, again, other)
