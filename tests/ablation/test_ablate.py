"""`autoselect ablate` runs one real cell: trained, evaluated, measured, tracked and collected."""

import json

import pytest

from autoselect.ablation import cells
from autoselect.cli.main import main
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.reference.shards import render_shards
from tests.launching import call, free_port

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


def forked_programs(folder, monkeypatch):
    """Work in a folder; return the list of the programs that cells start there from now on.

    `deepspeed` starts as for a user; `autoselect` is forked with its libraries imported.
    """
    programs, start = [], cells.call

    def started(command, again, **more):
        programs.append(command)
        if command[0] == "deepspeed":
            start(command, again, **more)
        else:
            call(folder, *map(str, command))

    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(cells, "call", started)
    return programs


@pytest.mark.slow
@pytest.mark.skipif(
    not (MODEL_FOLDER / "model.safetensors").is_file(), reason="no reference VLM in this checkout"
)
def test_one_cell_from_training_to_the_tables(tmp_path, monkeypatch):
    render_shards(tmp_path / "shards", ReferenceData(train=64, val=1, test=6), workers=1)
    (tmp_path / "one.yaml").write_text(YAML)
    programs = forked_programs(tmp_path, monkeypatch)
    command = ("ablate", "--config", "one.yaml", "--out", "out", "--port", free_port())
    assert main(command) == 0
    started = [program[0] for program in programs]
    assert started.count("deepspeed") == 1 and started.count("autoselect") == 3
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    (row,) = found["variants"]
    assert row["steps"] == 2 and row["final_loss"]["mean"] > 0
    assert 0 < row["polarisation"]["mean"] <= 1
    assert row["leak"]["without_denoiser"]["mean"] <= 1 and row["leak"]["budget"] == 16
    assert set(row["against"]["divprune"]) == {"8", "16"}
    assert main(command) == 0
    assert len(programs) == 4, "a finished cell starts no program"
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == found
    tracked = json.loads((tmp_path / "out" / "tracking.json").read_text())["ablation"]
    note = json.loads(
        (tmp_path / "out" / "cells" / "reference" / "seed-0" / "cell.json").read_text()
    )
    logged = f"reference, seed 0, selector {note['selector'][:12]}"
    assert set(tracked["runs"]) == {"parent", logged}
