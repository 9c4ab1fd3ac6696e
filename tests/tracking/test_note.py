"""Which runs belong to an output folder."""

import json

import pytest

from autoselect.config import ConfigError
from autoselect.tracking.note import ABLATION, TRAINING, RunNote


def test_ids_are_kept_by_work_and_identity(tmp_path):
    first = RunNote(tmp_path / "out", "evaluation", {"budgets": (8, 16)})
    assert first.get("parent") is None
    first.keep("parent", "a1")
    first.keep("without tracking", None)
    RunNote(tmp_path / "out", TRAINING, 1).keep(TRAINING, "b2")
    assert RunNote(tmp_path / "out", "evaluation", {"budgets": [8, 16]}).get("parent") == "a1"
    assert RunNote(tmp_path / "out", "evaluation", {"budgets": [8]}).get("parent") is None
    assert RunNote(tmp_path / "out", TRAINING, 1).get(TRAINING) == "b2"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tracking.json"]


def test_notes_of_earlier_versions_are_understood(tmp_path):
    note = tmp_path / "tracking.json"
    note.write_text(json.dumps({"run_id": "a1", "settings": {"seed": 0}}))
    assert RunNote(tmp_path, TRAINING, {"seed": 0}).get(TRAINING) == "a1"
    assert RunNote(tmp_path, TRAINING, {"seed": 1}).get(TRAINING) is None
    note.write_text(json.dumps({"parent": "b2", "plain, seed 0": "c3"}))
    ablation = RunNote(tmp_path, ABLATION, None)
    assert ablation.get("parent") == "b2" and ablation.get("plain, seed 0") == "c3"
    ablation.keep("other, seed 0", "d4")
    assert set(json.loads(note.read_text())) == {ABLATION}


@pytest.mark.parametrize("text", ["", "[1]", '{"evaluation": 3}', '{"evaluation": {"runs": 3}}'])
def test_what_is_not_a_note_is_refused(tmp_path, text):
    (tmp_path / "tracking.json").write_text(text)
    with pytest.raises(ConfigError, match="tracking.json is not a note of MLflow runs; remove it"):
        RunNote(tmp_path, TRAINING, None)
