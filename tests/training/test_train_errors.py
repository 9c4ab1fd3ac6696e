"""Bad input to training or evaluation: one clear message, exit code 2, nothing half-done."""

import errno
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient

from autoselect import eval as distributed_eval
from autoselect import train as entry
from autoselect.config import ConfigError, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import load_config
from autoselect.data.order import global_batch
from autoselect.data.quarantine import QuarantineBudgetError
from autoselect.data.shards import ShardSet
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.judge import EXIT_RANK_LOST, RankLostError
from autoselect.ranks.processes import RankInfo
from autoselect.ranks.signals import SignalFlag
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.shards import render_shards
from autoselect.reference.vlm import build_model, save_vlm
from autoselect.training.remarks import cause_of_end
from autoselect.training.run import assemble
from autoselect.training.trainer import Trainer
from autoselect.training.update_guard import NumbersError, UpdateGuard
from tests.launching import Worker, environment

ROOT = Path(__file__).parents[2]
ALONE = RankInfo(rank=0, world_size=1, local_rank=0, source="single")
DEEPSPEED = ROOT / "configs" / "deepspeed" / "zero2.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    save_vlm(build_model(), folder / "vlm")
    render_shards(folder / "shards", ReferenceData(train=4, val=1, test=1), workers=1)
    return folder


def run(folder: Path, *flags: str, batch: int = 16, zero: dict | None = None) -> None:
    defaults = [
        f"--model={folder / 'vlm'}",
        f"--data.train_shards={folder / 'shards' / 'train-*.tar'}",
        f"--output={folder / 'run'}",
        "--tracking=false",
    ]
    config = load_config(TrainConfig, None, [*defaults, *flags])
    deepspeed = DeepSpeedConfig.load(DEEPSPEED).with_batch(batch, batch)
    if zero is not None:
        deepspeed = DeepSpeedConfig({**deepspeed.values, "zero_optimization": zero})
    with Heartbeat(ALONE) as heartbeat:
        assemble(config, deepspeed, ALONE, SignalFlag(), heartbeat).run()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data.train_shards=/nowhere/*.tar", "/nowhere"),
        ("--model=/nowhere/vlm", "model=/nowhere/vlm is neither a folder here nor"),
        ("--gate.token_budget=145", "gate.token_budget=145 exceeds the 144 visual tokens"),
        ("--tune_budgets=3%,much", "tune_budgets='3%,much': "),
        ("--tune_budgets=','", "tune_budgets=',' names no budget"),
        ("--tune_budgets=8,145", "tune_budgets='8,145': budget=145 exceeds the 144 visual tokens"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(folder, flag, message):
    with pytest.raises(ConfigError, match=message.replace("*", r"\*")):
        run(folder, flag)
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": 2, "overlap_com": True}, "zero_optimization.overlap_com=True is refused"),
        ({"stage": 2, "overlap_comm": "yess"}, "zero_optimization.overlap_comm='yess' is refused"),
    ],
)
def test_what_deepspeed_refuses_is_named_before_the_model_is_loaded(folder, zero, message):
    with pytest.raises(ConfigError, match=message):
        run(folder, "--model=/nowhere/vlm", zero=zero)


def test_a_configuration_of_the_user_in_the_run_folder_is_not_replaced(folder, tmp_path):
    own = tmp_path / "config.yaml"
    own.write_text("steps: 3\n")
    with pytest.raises(ConfigError, match=f"output={tmp_path}: .* into config.yaml .*another name"):
        run(folder, f"--output={tmp_path}")
    assert own.read_text() == "steps: 3\n" and list(tmp_path.iterdir()) == [own]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gate.token_budgett", "3"], "unknown configuration key gate.token_budgett=3"),
        (["--gate.token_budget", "0"], "gate.token_budget=0 is below 1"),
        (["--config", "none.yaml"], "config=none.yaml does not exist"),
        (["--gate", "3", "--gate.token_budget", "4"], "gate=3 is one value by an earlier flag"),
    ],
)
def test_wrong_settings_end_with_code_two(capsys, arguments, message):
    assert entry.main(["--deepspeed", str(DEEPSPEED), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_full_disk_ends_with_one_line_and_other_faults_with_a_traceback(monkeypatch, capsys):
    def failing(number):
        def fail(*_given):
            raise OSError(number, os.strerror(number), "run/config.yaml")

        monkeypatch.setattr(entry.processes, "init_distributed", fail)
        return entry.main(["--deepspeed", str(DEEPSPEED)])

    assert failing(errno.ENOSPC) == 1
    assert "'run/config.yaml'; free some space, then start again" in capsys.readouterr().err
    with pytest.raises(PermissionError):
        failing(errno.EACCES)


EVALUATION = ["--model=m", "--selector=s", "--shards=t", "--out=o", "--budgets=8"]


@pytest.mark.parametrize(("program", "flags"), [(entry, []), (distributed_eval, EVALUATION)])
def test_half_of_a_launcher_ends_with_code_two(monkeypatch, capsys, program, flags):
    """The ranks are read first; an error there is one line like every other."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert program.main(flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "ERROR WORLD_SIZE is not set although" in lines[0]


def test_a_malformed_deepspeed_file_ends_with_code_two(tmp_path, capsys):
    broken = tmp_path / "zero.json"
    broken.write_text('{"train_batch_size": 8,')
    assert entry.main(["--deepspeed", str(broken)]) == 2
    assert f"deepspeed={broken} is not valid JSON" in capsys.readouterr().err
    broken.write_text(json.dumps({"train_batch_sise": 8}))
    assert entry.main(["--deepspeed", str(broken)]) == 2
    assert "train_batch_sise" in capsys.readouterr().err


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        script = ROOT / "autoselect" / "train.py"
        flags = ("--deepspeed", str(DEEPSPEED))
        code, log = Worker(script, flags, environment() | rank | meeting, tmp_path).wait(600)
    assert code == 2, log
    assert f"MASTER_PORT={port} is already in use" in log


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_run_over_its_budget_goes_on_once_the_shards_are_repaired(
    alone, folder, tmp_path, checkpoint
):
    shards, output = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(folder / "shards", shards)
    (shard,) = shards.glob("train-*.tar")
    whole = shard.read_bytes()
    opened = ShardSet.open(str(shard))
    late = int(global_batch(len(opened), 0, 1, 2)[0])
    damaged = bytearray(whole)
    damaged[opened.locate(late)[2][0].data + 5] ^= 1
    flags = (
        *(f"--output={output}", f"--data.train_shards={shard}", "--gate.calibration_images=2"),
        *("--steps=2", f"--save_every={1 if checkpoint else 2}"),
    )
    shard.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(QuarantineBudgetError, match="1 of 4 samples are unusable"):
            run(folder, *flags, batch=2)
    assert (output / "checkpoints" / "step-00000001").exists() == checkpoint
    shard.write_bytes(whole)
    run(folder, *flags, batch=2)
    assert (output / "quarantine-0.jsonl").exists() == checkpoint
    assert (output / "selector").is_dir()


def test_a_run_that_died_before_its_first_checkpoint_goes_on_as_the_same_tracked_run(
    alone, folder, tmp_path, monkeypatch, empty_store
):
    """A later start with a setting that changes its numbers is refused by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    output = tmp_path / "run"
    flags = (
        f"--output={output}",
        *("--tracking=true", "--steps=2", "--log_every=1", "--gate.calibration_images=2"),
    )

    def die(trainer):
        raise OSError("no space left")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space left"):
        patched.setattr(Trainer, "save", die)
        run(folder, *flags, "--save_every=1", batch=2)
    first = json.loads((output / "tracking.json").read_text())["train"]["runs"]["train"]
    run(folder, *flags, "--save_every=1", batch=2)
    tracked = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert tracked.get_run(first).info.status == "FINISHED"
    assert [m.step for m in tracked.get_metric_history(first, "train/loss")] == [1, 2]
    run(folder, *flags, "--save_every=7", "--data.quarantine_budget=0.5", batch=2)
    with pytest.raises(ConfigError, match=r"other settings \(train_batch_size: 2 -> 4\)"):
        run(folder, *flags, batch=4)
    with pytest.raises(ConfigError, match=r"gate.token_budget: 16 -> 12"):
        run(folder, *flags, "--gate.token_budget=12", batch=2)


def test_a_run_whose_selector_cannot_be_written_is_not_a_finished_one(
    alone, folder, tmp_path, monkeypatch, empty_store
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    output = tmp_path / "run"
    (output / "selector").mkdir(parents=True)
    (output / "selector" / "config.json").mkdir()  # in the way of the file
    with pytest.raises(OSError, match="config.json"):
        run(
            folder,
            *(f"--output={output}", "--tracking=true", "--steps=1", "--gate.calibration_images=2"),
            batch=2,
        )
    tracked = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = json.loads((output / "tracking.json").read_text())["train"]["runs"]["train"]
    assert tracked.get_run(run_id).info.status == "FAILED"


@pytest.mark.parametrize(
    ("error", "told", "code"),
    [
        (RankLostError("rank 1 is dead"), "rank 1 is dead", EXIT_RANK_LOST),
        (
            RuntimeError("[gloo] Connection closed by peer"),
            "the other ranks were lost: [gloo] Connection closed by peer",
            EXIT_RANK_LOST,
        ),
        (RuntimeError("CUDA out of memory"), "", 1),
        (PermissionError(errno.EACCES, "no"), "", 1),
    ],
)
def test_lost_ranks_are_told_and_other_errors_keep_their_traceback(error, told, code):
    assert cause_of_end(error) == (told, code)


def test_skipped_updates_in_a_row_are_counted_over_a_restart(alone, folder, tmp_path, monkeypatch):
    """Else a run that is often preempted would skip updates without end."""
    flags = (f"--output={tmp_path / 'run'}", "--steps=9", "--save_every=1", "--max_skipped_steps=3")
    save = Trainer.save

    def preempted_after_two(trainer):
        save(trainer)
        if trainer.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(UpdateGuard, "_take_names", lambda guard: ["loss"])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "save", preempted_after_two)
        run(folder, *flags, "--gate.calibration_images=2", batch=2)
    with pytest.raises(NumbersError, match=r"3 updates in a row .* \(last: update 2, rank 0: loss"):
        run(folder, *flags, "--gate.calibration_images=2", batch=2)
