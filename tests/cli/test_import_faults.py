"""Every command that needs transformers names a torchvision that does not fit torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MESSAGE = "torchvision does not fit torch (operator torchvision::nms does not exist)"
EVAL_FLAGS = "--model reference --selector s --shards d --budgets 4 --out OUT".split()


@pytest.fixture
def misfit(tmp_path):
    """Fail like the import of a CUDA build of torchvision with a CPU build of torch."""
    (tmp_path / "torchvision").mkdir()
    error = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
    (tmp_path / "torchvision" / "__init__.py").write_text(error)
    facts = tmp_path / "torchvision-0.28.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "autoselect.cli", "doctor", "--config", "configs/train/reference.yaml"],
        ["-m", "autoselect.cli", "eval", *EVAL_FLAGS],
        ["autoselect/train.py", "--tracking=false", "--output=OUT"],
        ["autoselect/eval.py", *EVAL_FLAGS],
    ],
    ids=["doctor", "eval", "train", "distributed eval"],
)
def test_a_torchvision_that_does_not_fit_is_named(misfit, tmp_path, command):
    command = [word.replace("OUT", str(tmp_path / "out")) for word in command]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=misfit,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert MESSAGE in done.stderr and "pip uninstall torchvision" in done.stderr
    assert "Traceback" not in done.stderr
