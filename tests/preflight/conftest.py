"""A sound training run for every test of the doctor."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from autoselect.cli.main import main
from autoselect.data.shards import ShardWriter
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.reference.shards import render_sample
from tests.preflight.planting import STEPS, free_port

ROOT = Path(__file__).parents[2]
ZERO2 = ROOT / "configs" / "deepspeed" / "zero2.json"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(MODEL_FOLDER, folder / "model")
    with ShardWriter(folder / "shards", "train", 4) as writer:
        for number in range(8):
            key, record, jpeg = render_sample(0, "train", number)
            writer.write(key, record, [jpeg])
    return folder


@pytest.fixture
def run(prepared, tmp_path, monkeypatch, capsys):
    """Return a function that checks a good run with changes: exit code and findings by name."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MASTER_ADDR", "RANK", "WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "model": str(tmp_path / "model"),
        "output": str(tmp_path / "run"),
        "steps": STEPS,
        "data": {"train_shards": str(tmp_path / "shards" / "train-*.tar")},
    }

    def call(*flags: str, **changes):
        Path("run.yaml").write_text(yaml.safe_dump(values | changes))
        command = ["doctor", "--config", "run.yaml", "--deepspeed", str(ZERO2), "--json"]
        command += ["--gpu", "h100", "--port", str(free_port())]
        code = main([*command, *flags])
        findings = json.loads(capsys.readouterr().out)
        assert code == int(any(finding["status"] == "fail" for finding in findings))
        return code, {finding["name"]: finding for finding in findings}

    return call
