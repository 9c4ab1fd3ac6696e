"""Every command that needs transformers names a torchvision that does not fit torch."""

import os
from pathlib import Path

import pytest

from tests.forking import Program, run_after

ROOT = Path(__file__).parents[2]
MESSAGE = "torchvision does not fit torch (operator torchvision::nms does not exist)"
EVAL_FLAGS = "--model reference --selector s --shards d --budgets 4 --out OUT".split()
COMMANDS = {
    "doctor": ["-m", "autoselect.cli", "doctor", "--config", "configs/train/reference.yaml"],
    "eval": ["-m", "autoselect.cli", "eval", *EVAL_FLAGS],
    "train": ["autoselect/train.py", "--tracking=false", "--output=OUT"],
    "distributed eval": ["autoselect/eval.py", *EVAL_FLAGS],
}
IMPORTS = """
import sys, torch
assert not {"transformers", "torchvision"} & set(sys.modules)
"""


def program(command: list[str]) -> Program:
    """Return what Python does with the arguments of a command line."""
    start, words = "run_path", command
    if command[0] == "-m":
        start, words = "run_module", command[1:]
    run = f"runpy.{start}({words[0]!r}, run_name='__main__')"
    return Program(f"import runpy, sys; sys.argv = {words!r}; {run}")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return how the commands ended where torchvision is a CUDA build and torch a CPU build."""
    folder = tmp_path_factory.mktemp("misfit")
    (folder / "torchvision").mkdir()
    error = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
    (folder / "torchvision" / "__init__.py").write_text(error)
    facts = folder / "torchvision-0.28.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    misfit = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    programs = [
        program([word.replace("OUT", str(folder / name)) for word in command])
        for name, command in COMMANDS.items()
    ]
    return dict(zip(COMMANDS, run_after(IMPORTS, programs, ROOT, misfit), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_torchvision_that_does_not_fit_is_named(ended, command):
    done = ended[command]
    assert done.returncode == 2, done.stderr
    assert MESSAGE in done.stderr and "pip uninstall torchvision" in done.stderr
    assert "Traceback" not in done.stderr
