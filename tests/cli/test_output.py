"""Output that cannot be written: a reader that leaves, and a full disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoselect.cli import main as cli
from tests.launching import environment

INFO = [sys.executable, "-m", "autoselect.cli", "info"]


def test_a_reader_that_leaves_ends_the_command_without_a_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        INFO, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment(), check=False
    )
    os.close(writing)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_the_disk_does_not_take_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            INFO, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert run.returncode == 1
    assert "No space left on device; free some space" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("words", "resumes"),
    [
        ("eval --model reference", True),
        ("bench public --model reference", True),
        ("shards convert-llava rows.json", True),
        ("bench prefill --model reference", False),
        ("shards verify data", False),
        ("analyse gates", False),
        ("dashboard", False),
    ],
)
def test_only_a_command_that_resumes_says_so_after_ctrl_c(monkeypatch, capsys, words, resumes):
    def interrupted(wanted):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parser", interrupted)
    assert cli.main(words.split()) == 130
    name, said = words.split()[0], capsys.readouterr().err
    more = "; run it again to resume" if resumes else ""
    assert said == f"autoselect {name}: interrupted{more}\n"
