"""`autoselect show`: answers with all and with fewer tokens, and a picture of what stayed."""

import dataclasses
import errno
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoselect.cli.main import main
from autoselect.cli.photos import Picture, find_pictures, unique_names
from autoselect.cli.show_answers import ask, count_tokens, inputs_of
from autoselect.config import ConfigError, ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.vlm.families import FAMILIES
from tests.vlm.conversations import frozen, picture


@pytest.fixture(scope="module")
def selector(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("selector")
    Selector(Scorer(192, ScorerConfig(hidden_size=32, num_layers=1))).save_pretrained(folder)
    return folder


def show(capsys, *words):
    code = main(["show", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_scene_is_answered_with_all_and_with_fewer_tokens(selector, tmp_path, capsys):
    facts = tmp_path / "facts.json"
    code, printed, _ = show(capsys, "--selector", selector, "--out", tmp_path, "--json", facts)
    assert code == 0
    (scene,) = json.loads(facts.read_text())
    assert [answer["tokens"] for answer in scene["answers"]] == [144, 32, 16]
    assert [len(answer["kept"] or range(144)) for answer in scene["answers"]] == [144, 32, 16]
    assert scene["answers"][0]["answer"] in printed
    assert "144 (all)" in printed and "16 (11.1 %)" in printed
    with Image.open(scene["overlay"]) as overlay:
        assert overlay.width > 500


def test_all_tokens_give_the_answer_of_the_model_without_a_selector(selector, tmp_path, capsys):
    facts = tmp_path / "facts.json"
    words = ("--selector", selector, "--budgets", "144", "--out", tmp_path, "--json", facts)
    for scene in range(3):
        assert show(capsys, *words, "--scene", scene)[0] == 0
        ((full, kept),) = [entry["answers"] for entry in json.loads(facts.read_text())]
        assert full["answer"] == kept["answer"]


def test_photos_and_folders_are_shown_as_the_encoder_sees_them(selector, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    for name in ("a/cat.png", "b/cat.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(pixels).save(tmp_path / name)
    out, facts = tmp_path / "b", tmp_path / "facts.json"
    photo = (out / "cat.png").read_bytes()
    code, printed, _ = show(
        capsys,
        *(tmp_path / "a", out / "cat.png"),
        *("--selector", selector, "--budget", "10%", "--question", "is there a red star ?"),
        *("--out", out, "--json", facts),
    )
    assert code == 0
    assert "reference VLM knows only its own drawn scenes" in printed
    written = sorted(file.name for file in out.iterdir())
    assert written == ["cat-2-kept.png", "cat-kept.png", "cat.png"]
    assert (out / "cat.png").read_bytes() == photo
    assert {answer["tokens"] for answer in json.loads(facts.read_text())[0]["answers"]} == {14, 144}


def test_no_overlay_replaces_another():
    files = [Path(name) for name in ("a/cat.png", "cat-2.png", "b/cat.png", "cat.jpg")]
    assert unique_names(files) == ["cat", "cat-2", "cat-3", "cat-4"]


def test_a_picture_that_the_processor_refuses_is_named(selector, tmp_path, capsys, monkeypatch):
    vlm = frozen("llava_pixtral")
    loaded = vlm, Selector(Scorer(vlm.width, ScorerConfig(hidden_size=8, num_layers=1)))
    monkeypatch.setattr("autoselect.evaluation.loading.load_pair", lambda *_: loaded)
    Image.new("RGB", (1, 64)).save(tmp_path / "thin.png")
    code, _, error = show(capsys, tmp_path / "thin.png", "--selector", selector)
    assert code == 2
    assert "autoselect: picture 'thin': PixtralWriting refuses its images of 1 x 64 pixels" in error


def test_the_tokens_of_all_tiles_are_counted(monkeypatch):
    """A budget holds for each tile of a family that does not tell tiles from images."""
    blind = dataclasses.replace(FAMILIES["idefics3"], tiles=None)
    monkeypatch.setitem(FAMILIES, "idefics3", blind)
    vlm = frozen("idefics3")
    selector = Selector(Scorer(vlm.width, ScorerConfig(hidden_size=8, num_layers=1)))
    inputs = inputs_of(vlm, Picture("wide", picture(0, (48, 24)), "is there a red star ?"))
    full, few = ask(vlm, selector, inputs, (3,), 2)
    assert few.tokens == len(few.kept) and 3 < few.tokens < full.tokens
    assert (full.tokens, full.kept) == (count_tokens(vlm, inputs), None)


@pytest.mark.parametrize(
    "words, message",
    [
        (["missing.jpg"], "PHOTO=missing.jpg does not exist"),
        (["--scene", "-1"], "scene=-1 is negative"),
        (["a.jpg", "--scene", "3"], "scene=3 would be ignored beside PHOTO=a.jpg"),
        ([""], "PHOTO='' is empty"),
        (["--selector", "nowhere/selector"], "nowhere/selector"),
        (["--selector", "./nowhere"], "selector=nowhere is not a folder here; give a folder writ"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
    ],
)
def test_what_cannot_be_shown_is_named(words, message, selector, tmp_path, capsys):
    defaults = [] if "--selector" in words else ["--selector", selector]
    code, _, error = show(capsys, *words, *defaults, "--out", tmp_path)
    assert code == 2
    assert message in error


def test_the_demo_is_named_if_its_selector_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, error = show(capsys, "--model", MODEL_FOLDER)
    assert code == 2
    assert "run `make demo` first" in error


def test_a_path_that_the_user_may_not_enter_is_named(monkeypatch, capsys):
    def closed(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "is_dir", closed)
    code, _, error = show(capsys, "photos", "--device", "cpu")
    assert code == 2
    assert "photos cannot be opened (Permission denied)" in error


def test_many_photos_are_checked_at_once_and_kept_one_by_one(tmp_path):
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    found = find_pictures([str(tmp_path)], None, None)
    images = [weakref.ref(picture.image) for picture in found]
    assert len(images) == 3 and not any(image() for image in images)
    (tmp_path / "c.png").write_text("hello")
    with pytest.raises(ConfigError, match="c.png cannot be read"):
        find_pictures([str(tmp_path)], None, None)


def test_a_file_that_is_not_a_picture_is_named(selector, tmp_path, capsys):
    (tmp_path / "notes.jpg").write_text("hello")
    code, _, error = show(capsys, tmp_path / "notes.jpg", "--selector", selector)
    assert code == 2
    assert "notes.jpg cannot be read as a picture" in error
