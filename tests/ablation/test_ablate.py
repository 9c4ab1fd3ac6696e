"""`autoselect ablate` runs one real cell: trained, evaluated, measured, tracked and collected."""

import json

import pytest

from autoselect.reference.resources import MODEL_FOLDER
from tests.launching import call, free_port

SIZES = ("--train", "64", "--val", "1", "--test", "12")
YAML = """
train_shards: shards/train-*.tar
test_shards: shards/test-*.tar
steps: 2
seeds: [0]
images: 6
budgets: 8,16
baselines: divprune
leak_images: 4
ranks: 1
base: {gate.calibration_images: 32, log_every: 1, tune_images: 0}
variants:
  - name: reference
    asks: Does it run?
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (MODEL_FOLDER / "model.safetensors").is_file(), reason="no reference VLM in this checkout"
)
def test_one_cell_from_training_to_the_tables(tmp_path):
    call(tmp_path, "autoselect", "reference", "shards", "--out", "shards", *SIZES)
    (tmp_path / "one.yaml").write_text(YAML)
    port = free_port()
    command = ("autoselect", "ablate", "--config", "one.yaml", "--out", "out", "--port", port)
    log = call(tmp_path, *command)
    assert log.count("$ deepspeed") == 1 and log.count("$ autoselect") == 3
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    (row,) = found["variants"]
    assert row["steps"] == 2 and row["final_loss"]["mean"] > 0
    assert 0 < row["polarisation"]["mean"] <= 1
    assert row["leak"]["without_denoiser"]["mean"] <= 1 and row["leak"]["budget"] == 16
    assert set(row["against"]["divprune"]) == {"8", "16"}
    again = call(tmp_path, *command)
    assert "$ " not in again, "a finished cell starts no program"
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == found
    tracked = json.loads((tmp_path / "out" / "tracking.json").read_text())["ablation"]
    note = json.loads(
        (tmp_path / "out" / "cells" / "reference" / "seed-0" / "cell.json").read_text()
    )
    logged = f"reference, seed 0, selector {note['selector'][:12]}"
    assert set(tracked["runs"]) == {"parent", logged}
