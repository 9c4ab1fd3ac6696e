"""docs/formats.md names every field that the programs write, and no other."""

import dataclasses
import json
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from autoselect.config import ScorerConfig
from autoselect.data.convert import REJECTED, Rejected, convert_llava
from autoselect.evaluation.report.schema import MethodScores, Report
from autoselect.method.scorer import Scorer
from autoselect.pruning.folder import KEYS, NEEDED
from autoselect.pruning.selector import Selector
from autoselect.training.checkpoint import CheckpointStore
from autoselect.training.engine_state import TrainedState
from autoselect.training.state import TrainingState

TEXT = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()


def fields(head: str, heading: str = "") -> list[str]:
    """Return the names in the first column of a table, by its first cell and its section."""
    section = TEXT[TEXT.index(heading) :]
    table = section[section.index(f"\n| {head} |") :].strip().partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Return a folder of shards from one good row and one bad row."""
    folder = tmp_path_factory.mktemp("converted")
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    turns = [
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "Black"},
    ]
    rows = [{"id": name, "image": name, "conversations": turns} for name in ("a.jpg", "b.jpg")]
    (folder / "rows.json").write_text(json.dumps(rows))
    convert_llava(folder / "rows.json", [folder], folder / "shards")
    return folder / "shards"


def test_the_fields_of_a_stored_row_are_named(converted):
    (shard,) = converted.glob("*.tar")
    with tarfile.open(shard) as tar:
        (member,) = [name for name in tar.getnames() if name.endswith(".json")]
        row = json.load(tar.extractfile(member))
    added = fields("field", "The converters add")
    assert set(row) == {*added, "conversations"}
    assert set(row) - set(added) <= set(fields("field", "## Plain LLaVA JSON"))


def test_the_fields_of_an_index_and_of_rejected_rows_are_named(converted):
    (index,) = converted.glob("*.index.jsonl")
    header = json.loads(index.read_text().splitlines()[0])
    assert fields("field", "The header:") == list(header)
    (line,) = (converted / REJECTED).read_text().splitlines()
    assert fields("field", "Rejected rows") == list(json.loads(line))
    assert fields("field", "Rejected rows") == [f.name for f in dataclasses.fields(Rejected)]


def test_the_files_and_fields_of_a_checkpoint_are_named(tmp_path):
    state = TrainingState(3, TrainedState({}, {}, {}, 3))
    step = CheckpointStore(tmp_path).save(state)
    named = fields("file", "### Checkpoint")
    files = [name for name in named if name.endswith((".safetensors", ".json"))]
    assert sorted(files) == sorted(path.name for path in step.iterdir())
    assert fields("field of `state.json`") == list(state.to_dict())


def test_the_files_and_fields_of_a_selector_are_named(tmp_path):
    Selector(Scorer(8, ScorerConfig(hidden_size=8, num_heads=2))).save_pretrained(tmp_path)
    section = TEXT[TEXT.index("## Selector") : TEXT.index("| field of `config.json`")]
    for path in tmp_path.iterdir():
        assert f"`{path.name}`" in section
    assert fields("field of `config.json`") == list(KEYS)
    assert list(json.loads((tmp_path / "config.json").read_text())) == list(KEYS)
    required = ", ".join(f"`{name}`" for name in NEEDED[:-1])
    assert f"Only {required} and `{NEEDED[-1]}` are required" in TEXT


def test_the_fields_of_a_report_are_named():
    assert sorted(fields("field of `report.json`")) == sorted(Report.model_fields)
    assert sorted(fields("field of a row")) == sorted(MethodScores.model_fields)
