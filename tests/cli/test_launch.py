"""`autoselect train` becomes the documented launcher command."""

import sys
from pathlib import Path

import pytest

import autoselect
from autoselect.cli import launch
from autoselect.cli.main import main

PROGRAM = str(Path(autoselect.__file__).parent / "train.py")
JSON = str(Path(autoselect.__file__).parents[1] / "configs" / "deepspeed" / "zero2.json")


@pytest.fixture
def started(monkeypatch):
    """Collect the command that would replace this process."""
    commands = []

    def exec_instead(_file, command, environment):
        assert Path(sys.executable).parent == Path(environment["PATH"].split(":")[0])
        commands.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(launch.os, "execvpe", exec_instead)
    return commands


def test_train_starts_the_launcher_with_all_settings(started):
    words = ["--ranks", "2", "--port", "29700", "--deepspeed", JSON]
    with pytest.raises(SystemExit):
        main(["train", *words, "--steps", "3", "--gate.noise=channel"])
    (command,) = started
    assert command[:4] == ["deepspeed", "--quiet", "--num_gpus=2", "--master_port=29700"]
    assert command[4:] == [PROGRAM, "--deepspeed", JSON, "--steps", "3", "--gate.noise=channel"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--deepspeed", "none.json"], "deepspeed=none.json is not a file"),
        (["--deepspeed", JSON, "--config", "none.yaml"], "config=none.yaml is not a file"),
        (["--deepspeed", JSON, "--ranks", "0"], "ranks=0"),
        (["--deepspeed", JSON, "--port", "99999"], "port=99999"),
    ],
)
def test_a_wrong_start_is_refused_before_anything_runs(words, message, started, capsys):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err
    assert not started


def test_other_commands_refuse_flags_that_they_do_not_know(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["info", "--steps", "3"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --steps 3" in capsys.readouterr().err


def test_help_lists_every_command_under_its_step(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    steps = [printed.index(f"{step}:\n") for step in ("first steps", "data", "train", "evaluate")]
    assert steps == sorted(steps)
    assert printed.index("\n  shards") < steps[2] < printed.index("\n  train ") < steps[3]
