"""The Slurm scripts with fakes of Slurm's commands; test_slurm.py runs a real Slurm."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))

SRUN = """#!/bin/bash
echo "srun $*" >> "$LOG"
env | grep -E '^SLURM_(PTY|CPU_BIND|OVERLAP|MEM)' >> "$LOG"
export_env="${SLURM_EXPORT_ENV:-ALL}"
while [[ "$1" == --* ]]; do
    [[ "$1" != --export=* ]] || export_env="${1#--export=}"
    shift
done
start=(env)
if [[ "$export_env" != ALL* ]]; then  # as Slurm, give the task its own variables only
    start=(env -i "LOG=$LOG" "PATH=$PATH" "CODE=${CODE:-0}" "RUN_S=${RUN_S:-}")
    while IFS= read -r one; do start+=("$one"); done < <(env | grep '^SLURM_')
fi
set -m  # as Slurm, signal the whole process group of the task
"${start[@]}" SLURM_PROCID=0 "$@" &
task=$!
trap 'kill -s USR1 -- "-$task"' USR1
trap 'kill -s TERM -- "-$task"' TERM
wait "$task"; code=$?
while kill -0 "$task" 2>/dev/null; do wait "$task"; code=$?; done
exit "$code"
"""

PYTHON = """#!/bin/bash
echo "$(basename "$0") $*" >> "$LOG"
echo "meeting ${MASTER_ADDR:-}:${MASTER_PORT:-} threads ${OMP_NUM_THREADS:-}" >> "$LOG"
echo "site ${HF_HOME:-}" >> "$LOG"
env | grep -E '^(RANK|WORLD_SIZE|LOCAL_RANK)=' >> "$LOG"
trap 'echo "task got USR1" >> "$LOG"; sleep 0.3; exit ${ON_SIGNAL:-75}' USR1
trap 'echo "task got TERM" >> "$LOG"; sleep 0.3; exit ${ON_SIGNAL:-75}' TERM
echo "running" >> "$LOG"
if [ -n "${RUN_S:-}" ]; then for _ in $(seq "$RUN_S"); do sleep 0.1; done; fi
exit "${CODE:-0}"
"""

SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$LOG"
case "$1 $2" in
    "show hostnames") printf 'n7\\nn8\\n' ;;
    "show job")
        echo "   JobState=${JOB_STATE:-RUNNING} Reason=None"
        echo "   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=${PREEMPT_TIME:-None}"
        ;;
    "show node") echo "   NodeAddr=10.0.0.7 NodeHostName=n7 Version=22" ;;
    requeue*) exit "${REQUEUE_CODE:-0}" ;;
esac
"""


class Cluster:
    """Fakes of Slurm's commands in a folder at the front of PATH, and the record of their calls."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.folder = folder
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        (folder / "slurm").symlink_to(ROOT / "slurm")
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "PYTHON": "python",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "40123",
            "SLURM_JOB_NODELIST": "n[7-8]",
            "SLURM_NTASKS": "2",
        }

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(ROOT / "slurm" / script), *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(script, *arguments, **environment)
        output, _ = process.communicate(timeout=30)
        return process.returncode, output

    def calls(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def signalled(self, number: signal.Signals, **environment: str) -> tuple[int, str]:
        """Run train.sh, send a signal during its step, and return exit code and calls."""
        process = self.start("train.sh", RUN_S="300", **environment)
        deadline = time.monotonic() + 20
        while "running" not in self.calls():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=30)
        return process.returncode, self.calls()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash_without_paths_of_a_site(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert not re.search(r"(?<![\w.$}])/(home|work|scratch|opt|mnt|tmp|data)/", text)
    assert "--open-mode=append" in text and "--requeue" in text
    assert not re.search(r"#SBATCH --(partition|account|qos|mail)", text)


def test_the_three_scripts_are_there() -> None:
    assert [path.name for path in SCRIPTS] == ["eval.sh", "sweep.sh", "train.sh"]


def test_train_starts_one_task_per_rank_and_passes_the_arguments_on(cluster: Cluster) -> None:
    code, output = cluster.run("train.sh", "--steps", "5", "--gate.token_budget", "8")
    assert code == 0, output
    assert "srun --kill-on-bad-exit=1 " in cluster.calls()
    assert "python -u autoselect/train.py --deepspeed configs/" in cluster.calls()
    assert "zero2.json --steps 5 --gate.token_budget 8" in cluster.calls()
    assert "meeting 10.0.0.7:20123 threads 1" in cluster.calls()
    assert "requeue" not in cluster.calls()


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 143])
def test_the_exit_code_is_that_of_the_step(cluster: Cluster, code: int) -> None:
    assert cluster.run("train.sh", CODE=str(code))[0] == code
    assert "requeue" not in cluster.calls()


def test_usr1_reaches_the_tasks_and_the_job_is_requeued_after_the_checkpoint(
    cluster: Cluster,
) -> None:
    code, calls = cluster.signalled(signal.SIGUSR1)
    assert code == 0
    assert calls.count("task got USR1") == 1
    assert calls.index("task got USR1") < calls.index("scontrol requeue 40123")


def test_a_run_that_fails_while_it_saves_is_not_requeued(cluster: Cluster) -> None:
    code, calls = cluster.signalled(signal.SIGUSR1, ON_SIGNAL="1")
    assert code == 1 and "requeue" not in calls


def test_a_run_that_finishes_at_the_signal_is_not_requeued(cluster: Cluster) -> None:
    code, calls = cluster.signalled(signal.SIGUSR1, ON_SIGNAL="0")
    assert code == 0 and "requeue" not in calls


def test_a_cancelled_job_saves_but_is_not_requeued(cluster: Cluster) -> None:
    code, calls = cluster.signalled(signal.SIGTERM)
    assert code == 75 and "task got TERM" in calls and "requeue" not in calls


PREEMPTED_NOW = {"PREEMPT_TIME": "2026-01-01T00:05:00"}


def test_a_preempted_job_saves_and_is_requeued(cluster: Cluster) -> None:
    """Slurm sends TERM to the tasks and waits for GraceTime, like for a cancelled job."""
    code, calls = cluster.signalled(signal.SIGTERM, **PREEMPTED_NOW)
    assert code == 0
    assert calls.index("task got TERM") < calls.index("scontrol requeue 40123")


def test_a_job_that_is_preempted_before_its_ranks_have_met_is_requeued(cluster: Cluster) -> None:
    assert cluster.run("train.sh", CODE="143", **PREEMPTED_NOW)[0] == 0
    assert "scontrol requeue 40123" in cluster.calls()


@pytest.mark.parametrize("array", [{}, {"SLURM_ARRAY_JOB_ID": "40120", "SLURM_ARRAY_TASK_ID": "3"}])
def test_a_job_asks_for_itself_alone(cluster: Cluster, array: dict[str, str]) -> None:
    assert cluster.run("train.sh", CODE="143", **PREEMPTED_NOW, **array)[0] == 0
    assert set(re.findall(r"(?:show job|requeue) (\S+)", cluster.calls())) == {"40123"}


def test_the_task_that_has_the_number_of_its_array_leaves_the_others_alone(
    cluster: Cluster,
) -> None:
    """`scontrol requeue 40123` would kill and requeue every task of the array 40123."""
    array = {"SLURM_ARRAY_JOB_ID": "40123", "SLURM_ARRAY_TASK_ID": "3"}
    assert cluster.run("train.sh", CODE="143", **PREEMPTED_NOW, **array)[0] == 0
    named = re.findall(r"(show job|requeue) (\S+)", cluster.calls())
    assert set(named) == {("show job", "40123_3"), ("requeue", "40123_3")}


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_preempted_job_that_finishes_or_fails_is_not_requeued(
    cluster: Cluster, code: int
) -> None:
    assert cluster.run("train.sh", CODE=str(code), **PREEMPTED_NOW)[0] == code
    assert "requeue" not in cluster.calls()


def test_a_job_that_cannot_be_requeued_keeps_its_code(cluster: Cluster) -> None:
    code, calls = cluster.signalled(signal.SIGUSR1, REQUEUE_CODE="1")
    assert code == 75 and "scontrol requeue" in calls


@pytest.mark.parametrize("code", ["70", "137"])
def test_a_job_that_lost_a_rank_goes_on_a_limited_number_of_times(
    cluster: Cluster, code: str
) -> None:
    """Requeues for other reasons, which Slurm counts too, do not count as crashes."""
    ends, texts = zip(
        *(
            cluster.run("train.sh", CODE=code, CRASHES="2", SLURM_RESTART_COUNT=restarts)
            for restarts in ("7", "90", "91")
        ),
        strict=True,
    )
    assert ends == (0, 0, int(code))
    assert "CRASHES=2" not in texts[1] and "CRASHES=2 and is not requeued" in texts[2]
    assert f"start 90 ended with code {code},start 91 ended" in texts[2]
    assert cluster.calls().count("scontrol requeue 40123") == 2


def test_lost_ranks_are_counted_per_job_and_forgotten_at_its_end(cluster: Cluster) -> None:
    once = {"CODE": "70", "CRASHES": "1"}
    assert cluster.run("train.sh", **once)[0] == 0
    assert cluster.run("train.sh", **once, SLURM_JOB_ID="40124")[0] == 0
    assert cluster.run("train.sh", CODE="0", SLURM_RESTART_COUNT="1")[0] == 0
    assert cluster.run("train.sh", **once, SLURM_RESTART_COUNT="2")[0] == 0
    assert cluster.run("train.sh", **once, SLURM_RESTART_COUNT="3")[0] == 70


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "TIMEOUT"])
def test_a_job_that_slurm_is_ending_is_not_requeued(cluster: Cluster, state: str) -> None:
    assert cluster.run("train.sh", CODE="137", JOB_STATE=state)[0] == 137
    assert "requeue" not in cluster.calls()


EXPORTS = [None, "NONE", "NIL", "HF_HOME=/site,CODE=0", "ALL,A=b"]


@pytest.mark.parametrize("value", EXPORTS)
@pytest.mark.parametrize("script", ["train.sh", "eval.sh"])
def test_tasks_get_what_the_batch_shell_has_whatever_sbatch_exported(
    cluster: Cluster, script: str, value: str | None
) -> None:
    more = {} if value is None else {"SLURM_EXPORT_ENV": value}
    code, output = cluster.run(script, HF_HOME="/site/hub", **more)
    assert code == 0, output
    assert "threads 1\nsite /site/hub" in cluster.calls()
    assert ("meeting 10.0.0.7:20123" in cluster.calls()) == (script == "train.sh")


@pytest.mark.parametrize("value", ["NONE", "NIL", "HF_HOME=/site"])
def test_a_preempted_job_is_requeued_whatever_sbatch_exported(cluster: Cluster, value: str) -> None:
    code, calls = cluster.signalled(signal.SIGUSR1, SLURM_EXPORT_ENV=value)
    assert code == 0 and "scontrol requeue 40123" in calls


@pytest.mark.parametrize("value", ["NONE", "PYTHON=python"])
def test_a_sweep_whose_variables_sbatch_kept_back_is_refused(cluster: Cluster, value: str) -> None:
    code, output = cluster.run("sweep.sh", SLURM_EXPORT_ENV=value, SLURM_ARRAY_JOB_ID="1")
    assert code == 1 and f"--export={value} keeps SWEEP_KEY" in output
    assert "srun" not in cluster.calls()


@pytest.mark.parametrize("script", ["train.sh", "eval.sh"])
def test_what_describes_the_shell_of_the_user_is_left_behind(cluster: Cluster, script: str) -> None:
    """`sbatch` typed inside `srun --pty`, or inside `salloc --mem-per-cpu`."""
    leaked = {"SLURM_PTY_PORT": "4000", "SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_STEP_ID": "0"}
    memory = {"SLURM_MEM_PER_CPU": "4096", "SLURM_MEM_PER_NODE": "8192"}
    assert cluster.run(script, **leaked, **memory)[0] == 0
    assert "SLURM_OVERLAP=1" in cluster.calls()
    assert not re.search("SLURM_(PTY|CPU_BIND|MEM)", cluster.calls())
    cluster.log.unlink()
    own = {"SLURM_CPU_BIND": "none", "SLURM_MEM_PER_NODE": "8192"}
    assert cluster.run(script, **own)[0] == 0
    assert "SLURM_CPU_BIND=none\n" in cluster.calls() and "MEM_PER_NODE=8192" in cluster.calls()
    assert "OVERLAP" not in cluster.calls()


def test_ranks_of_another_launcher_do_not_reach_the_tasks(cluster: Cluster) -> None:
    """`sbatch` typed in a shell of torchrun: every task would be rank 0 of a run of its own."""
    leaked = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert cluster.run("train.sh", **leaked)[0] == 0
    assert not re.search("^(RANK|WORLD_SIZE|LOCAL_RANK)=", cluster.calls(), re.MULTILINE)


def test_an_allocation_without_a_number_of_tasks_starts(cluster: Cluster) -> None:
    """`salloc --nodes=2`, then `bash slurm/train.sh` in its shell."""
    del cluster.environment["SLURM_NTASKS"]
    code, output = cluster.run("train.sh")
    assert code == 0 and "one per node as tasks on n[7-8]" in output


def test_a_job_of_several_components_does_not_train_on_the_first_alone(cluster: Cluster) -> None:
    code, output = cluster.run("train.sh", SLURM_HET_SIZE="2")
    assert code == 1 and "SLURM_HET_SIZE=2 components" in output
    assert "srun" not in cluster.calls()


def test_a_folder_with_any_name_works(tmp_path: Path) -> None:
    folder = tmp_path / 'o\'dd [x] "ü" {a,b} $v'
    folder.mkdir()
    cluster = Cluster(folder)
    for script in ("train.sh", "eval.sh"):
        code, output = cluster.run(script, "--out", "a 'b' [c]")
        assert code == 0, output
        assert "--out a 'b' [c]\n" in cluster.calls()
    cluster.log.unlink()
    assert cluster.signalled(signal.SIGUSR1)[0] == 0


@pytest.mark.parametrize("script", ["train.sh", "eval.sh"])
def test_a_missing_environment_is_named(cluster: Cluster, script: str) -> None:
    code, output = cluster.run(script, PYTHON="/no/such/python")
    assert code == 1 and "PYTHON=/no/such/python does not exist" in output
    assert "srun" not in cluster.calls()


def test_outside_slurm_the_scripts_say_so() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / "train.sh")],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "submit this script with sbatch" in done.stderr


def test_eval_passes_its_arguments_and_exit_code_on(cluster: Cluster) -> None:
    code, _ = cluster.run("eval.sh", "--selector", "runs/x", CODE="2")
    assert code == 2
    assert "python -u -m autoselect.cli eval --selector runs/x" in cluster.calls()


def test_a_sweep_keeps_values_and_outputs_apart(cluster: Cluster) -> None:
    outputs = set()
    for index, value in enumerate(("8", "16", "32")):
        cluster.log.unlink(missing_ok=True)
        code, _ = cluster.run(
            "sweep.sh",
            "--steps",
            "5",
            SWEEP_KEY="gate.token_budget",
            SWEEP_VALUES="8 16 32",
            SLURM_ARRAY_JOB_ID="40120",
            SLURM_ARRAY_TASK_ID=str(index),
        )
        assert code == 0
        found = re.search(r"--steps 5 --gate\.token_budget (\S+) --output (\S+)", cluster.calls())
        assert found is not None and found[1] == value
        outputs.add(found[2])
    assert len(outputs) == 3
    assert all(output.startswith("runs/sweep-40120/") for output in outputs)


@pytest.mark.parametrize("flag", ["--seed", "--output"])
def test_no_flag_takes_the_value_or_the_folder_of_a_sweep_task(cluster: Cluster, flag: str) -> None:
    """The last flag of a name counts; four equal runs would stand for four values."""
    array = {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "1"}
    code, output = cluster.run("sweep.sh", flag, "7", SWEEP_KEY="seed", SWEEP_VALUES="1 2", **array)
    assert code == 0, output
    words = re.search(r"^python .*", cluster.calls(), re.MULTILINE)[0].split()  # type: ignore[index]
    last = dict(zip(words, words[1:], strict=False))
    assert (last["--seed"], last["--output"]) == ("2", "runs/sweep-1/seed-2")


def test_a_setting_of_a_sweep_does_not_take_the_values_of_another_one(cluster: Cluster) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0"}
    code, output = cluster.run("sweep.sh", SWEEP_KEY="seed", **array)
    assert code != 0 and "SWEEP_KEY=seed has no values; set SWEEP_VALUES" in output
    assert "srun" not in cluster.calls()


def test_an_array_longer_than_the_values_is_refused(cluster: Cluster) -> None:
    code, output = cluster.run(
        "sweep.sh", SWEEP_VALUES="8 16", SLURM_ARRAY_JOB_ID="1", SLURM_ARRAY_TASK_ID="2"
    )
    assert code == 1 and "--array=0-1" in output
    assert "srun" not in cluster.calls()
