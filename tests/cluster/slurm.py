"""Run a real Slurm on one host: munged, slurmctld and two slurmd, in a separate folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
NODES = ("n1", "n2")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdTimeout=15
SlurmctldTimeout=60
KillWait=15
MinJobAge=3600
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=1,sched_interval=2
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=DEFAULT Nodes=n1,n2 MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=main Default=YES PriorityTier=2 PreemptMode=OFF
PartitionName=preemptible PriorityTier=1 GraceTime=120
"""


def missing_programs() -> list[str]:
    """Return the Slurm programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Slurm:
    """A Slurm cluster of two nodes on this host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": _path(),
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        host = socket.gethostname().split(".")[0]
        controller, *ports = _free_ports(3)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1"
            for node, port in zip(NODES, ports, strict=True)
        )
        text = CONFIGURATION.format(host=host, port=controller, folder=self.folder, nodes=nodes)
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        own = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={self.folder}/munge.{name}" for option, name in own.items()]
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files
        )
        self._wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self._wait_for(lambda: self._idle() == 2, "two idle nodes", limit_s=120)

    def _daemon(self, program: str, *arguments: str, name: str | None = None) -> None:
        with (self.folder / f"{name or program}.out").open("ab") as output:
            self.daemons[name or program] = subprocess.Popen(
                [program, *arguments],
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-D", "-N", node, name=f"slurmd.{node}")

    def kill_node(self, node: str) -> None:
        """Send SIGKILL to the node's slurmd, as if the machine had failed."""
        daemon = self.daemons.pop(f"slurmd.{node}")
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()

    def stop(self) -> None:
        """Cancel all jobs and end the daemons that were started here."""
        if "slurmctld" in self.daemons:
            self.run("scancel", "--user=root", check=False)
            self.run("scancel", "--user=root", "--signal=KILL", check=False)
            time.sleep(2)
        for daemon in reversed(list(self.daemons.values())):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        done = subprocess.run(
            command,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or not check, (command, done.stdout, done.stderr)
        return done.stdout

    def submit(self, *command: str, **environment: str) -> str:
        """Submit a job with `sbatch --parsable` and return its id."""
        return self.run("sbatch", "--parsable", *command, **environment).strip().split(";")[0]

    def field(self, job: str, name: str) -> str:
        """Return one field of `scontrol show job`, such as JobState, Restarts or ExitCode."""
        found = re.search(rf"\b{name}=(\S+)", self.run("scontrol", "show", "job", job))
        assert found is not None, name
        return found[1]

    def wait_for_end(self, job: str, limit_s: float = 900) -> str:
        """Wait for the final state of a job, which may be requeued before."""
        self._wait_for(
            lambda: self.field(job, "JobState") in FINAL_STATES, f"end of job {job}", limit_s
        )
        return self.field(job, "JobState")

    def _idle(self) -> int:
        states = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False)
        return states.split().count("idle")

    def wait_until_down(self, node: str) -> None:
        def is_down() -> bool:
            return "down" in self.run("sinfo", "-h", "-n", node, "-o", "%T")

        self._wait_for(is_down, f"{node} down", limit_s=120)

    def wait_until_idle(self) -> None:
        self._wait_for(lambda: self._idle() == 2, "two idle nodes", limit_s=180)

    def wait_until_all_is_told(self) -> None:
        """Wait until no message of the controller is on its way to a node or will be sent again."""
        pending = re.compile(r"^Agent (?:queue size|count):\s*(\d+)$", re.MULTILINE)
        self._wait_for(
            lambda: pending.findall(self.run("sdiag")) == ["0", "0"],
            "delivery of all messages of the controller",
            limit_s=300,  # it sends again a minute after the first try
        )

    def _wait_for(self, happened, what: str, limit_s: float = 60) -> None:
        deadline = time.monotonic() + limit_s
        while not happened():
            if time.monotonic() > deadline:
                logs = [f"{p}:\n{p.read_text()[-1500:]}" for p in self.folder.glob("slurm*.log")]
                raise TimeoutError(f"{what} not within {limit_s:.0f} s\n" + "\n".join(logs))
            time.sleep(0.5)
