"""`autoselect train` becomes the documented launcher command."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import autoselect
from autoselect.cli import launch
from autoselect.cli.main import main
from autoselect.config.programs import patient

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
    launcher = ["deepspeed", "--quiet", "--num_gpus=2", "--master_port=29700"]
    program = [PROGRAM, "--deepspeed", JSON, "--steps", "3", "--gate.noise=channel"]
    assert command == patient([*launcher, *program])


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


SELECTION = ["--selector", "s", "--shards", "d"]


@pytest.mark.parametrize(
    "words", [["train", "--deepspeed", JSON], ["tune", "--model", "m", *SELECTION], ["demo"]]
)
def test_tasks_of_srun_do_not_each_do_the_whole_work(words, started, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PTY_PORT"):
        monkeypatch.delenv(name, raising=False)
    step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    for name, value in {**step, "SLURM_STEP_NUM_TASKS": "4"}.items():
        monkeypatch.setenv(name, value)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"SLURM_STEP_NUM_TASKS=4: each task would do all that autoselect {words[0]}" in said
    assert not started
    assert main(["info"]) == 0, "it may be asked on every node"


MISTAKES = {
    "": "autoselect: name a COMMAND of those above",
    "--foo": "autoselect: unrecognized arguments: --foo; see `autoselect --help`",
    "evl": "autoselect: argument COMMAND: invalid choice: 'evl' (choose from 'demo', 'show',",
    "info --steps 3": "autoselect info: unrecognized arguments: --steps 3; see `autoselect info",
    "show --bugdet 8": "autoselect show: unrecognized arguments: --bugdet (did you mean --budg",
    "shards": "autoselect shards: the following arguments are required: COMMAND; see `autoselect",
    "shards verify a.tar --decod --no": "autoselect shards verify: unrecognized arguments: --no;",
    "eval": "autoselect eval: the following arguments are required: --model, --selector, --shards, "
    "--budgets, --out; see `autoselect eval --help`",
    "show --scene x": "autoselect show: argument --scene: invalid int value: 'x'; see `autoselect",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistaken_command_line_ends_with_one_line_that_names_the_way_out(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(MISTAKES[words])
    assert len(lines) == 1 or (not words and "  train      " in "\n".join(lines))


def test_help_lists_every_command_under_its_step(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    steps = [printed.index(f"{step}:\n") for step in ("first steps", "data", "train", "evaluate")]
    assert steps == sorted(steps)
    assert printed.index("\n  shards") < steps[2] < printed.index("\n  train ") < steps[3]


WAITING = """
import signal, sys, time
def end(*_):
    time.sleep(0.8)
    print("saved", flush=True)
    sys.exit(1)
signal.signal(signal.SIGINT, end)
print("started", flush=True)
time.sleep(60)
"""
CALLING = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
from autoselect.config.programs import call
try:
    call([sys.executable, "-c", {WAITING!r}], "it again")
except KeyboardInterrupt:
    print("returned", flush=True)
"""


def test_ctrl_c_waits_for_the_program_that_was_called():
    """Before its checkpoint is written, "run it again" would meet the program at its port."""
    with subprocess.Popen(
        [sys.executable, "-c", CALLING], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        lines = iter(process.stdout.readline, "")
        assert any(line == "started\n" for line in lines)
        os.killpg(process.pid, signal.SIGINT)
        assert list(lines) == ["saved\n", "returned\n"]


def test_the_outer_launcher_ignores_ctrl_c_and_nothing_else_does():
    asks = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    for name, ignored in (("deepspeed", True), ("torchrun", False)):
        command = [sys.executable if word == name else word for word in patient([name])]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            told = subprocess.run([*command, "-c", asks], capture_output=True, check=True)
        finally:
            signal.signal(signal.SIGINT, before)
        assert told.stdout.decode() == f"{ignored}\n"
