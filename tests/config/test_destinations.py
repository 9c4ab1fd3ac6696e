"""Places that cannot be written and numbers out of range are refused before anything is done."""

import os

import pytest

from autoselect.cli import main as cli
from autoselect.config import ConfigError
from autoselect.config.destinations import check_file, check_folder, check_run_folder
from autoselect.config.flags import check_port

EVAL = ["eval", "--model", "reference", "--selector", "s", "--shards", "s", "--budgets", "8"]
PREFILL = ["bench", "prefill", "--model", "reference", "--selector", "s"]
ANALYSE = ["analyse", "gates", *EVAL[1:]]


def test_a_folder_is_made_where_it_can_be_and_else_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    check_folder("out", tmp_path / "new" / "deep")
    check_file("json", tmp_path / "new" / "a.json")
    assert list(tmp_path.iterdir()) == [file], "nothing is left behind"
    for place in (file, file / "below", "/proc/none/here"):
        with pytest.raises(ConfigError, match=r"^out=.* cannot be written \(.*\); choose another"):
            check_folder("out", place)
    with pytest.raises(ConfigError, match="Is a directory"):
        check_file("json", tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", "best", "selector", "tune"])
def test_what_a_training_writes_last_is_looked_at_first(tmp_path, name):
    """A link to a disk that was cleared looks like an empty folder until something is written."""
    check_run_folder(tmp_path)
    (tmp_path / name).symlink_to(tmp_path / "cleared")
    with pytest.raises(ConfigError, match=f"^output=.*/{name} cannot be written .*No such file"):
        check_run_folder(tmp_path)
    (tmp_path / "cleared").mkdir()
    check_run_folder(tmp_path)


def test_what_a_written_file_would_replace_is_refused_unless_it_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    check_file("json", tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/null"):
        with pytest.raises(ConfigError, match=r"^json=.*: Not a plain file\); choose another file"):
            check_file("json", path)


@pytest.mark.parametrize(
    "command",
    [
        [*EVAL, "--out", "/proc/none"],
        [*ANALYSE, "--out", "/proc/none"],
        [*PREFILL, "--json", "/proc/none/a.json"],
        ["shards", "convert-llava", "a.json", "--images", "i", "--output", "/proc/none"],
        ["ablate", "--out", "/proc/none"],
        ["reference", "shards", "--out", "/proc/none"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_looks_at_its_destination_first(command, capsys):
    assert cli.main(command) == 2
    assert "/proc/none" in capsys.readouterr().err


def test_a_destination_that_no_shell_has_expanded_is_named(capsys):
    assert cli.main([*EVAL, "--out=~/none"]) == 2
    assert "out=~/none: ~ and $NAME stay as they are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["demo", "--images", "0"], "images=0 is below 1"),
        (["demo", "--ranks", "-1"], "ranks=-1 is below 1"),
        (["demo", "--port", "99999999"], "port=99999999 is not a TCP port"),
        (["report", "--images", "-5"], "images=-5 is below 1"),
        (["dashboard", "--port", "99999"], "port=99999 is not a TCP port"),
        (["plan", "--gpus", "0"], "gpus=0 is below 1"),
        (["plan", "--visual-tokens", "-7"], "visual_tokens=-7 is below 1"),
        (["plan", "--gpu-memory", "0"], "gpu_memory=0.0 and"),
        (["plan", "--overhead-gib", "-50"], "overhead_gib=-50.0 must be finite"),
        (["doctor", "--gpus", "0"], "gpus=0 is below 1"),
        (["doctor", "--visual-tokens", "-1"], "visual_tokens=-1 is below 1"),
        (["doctor", "--gpu-memory", "0"], "gpu_memory=0.0 must be above 0"),
        (["reference", "measure", "--images", "0"], "images=0 is below 1"),
        ([*PREFILL, "--json", "a.json", "--device", "foo"], "device=foo is not a device"),
        ([*PREFILL, "--json", "a.json", "--device", "cuda:99"], "device=cuda:99: PyTorch sees"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_numbers_and_names_are_checked_before_the_first_step(command, message, capsys, monkeypatch):
    def started(*arguments):
        raise AssertionError(f"{arguments} was started")

    monkeypatch.setattr("autoselect.cli.demo.call", started)
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err


def test_ports_have_sixteen_bits():
    check_port(29500)
    for port in (0, -1, 65536):
        with pytest.raises(ConfigError):
            check_port(port)


def test_a_file_that_is_not_an_ablation_is_named(tmp_path, capsys):
    other = "does not hold an ablation"
    for text, rule in (("{", "is not valid JSON"), ("[]", other), ("{}", other)):
        (tmp_path / "a.json").write_text(text)
        assert cli.main(["evidence", "--ablation", str(tmp_path / "a.json")]) == 2
        assert f"a.json {rule}" in capsys.readouterr().err
