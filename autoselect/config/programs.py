"""Commands that start training and evaluation as a user would."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from autoselect.config import ConfigError

DEFAULT_DEEPSPEED = "configs/deepspeed/zero2.json"
"""DeepSpeed file of the reference run, in a checkout."""
EXIT_INTERRUPTED = 130
"""Exit code of our programs after Ctrl-C."""
EXIT_READER_LEFT = 141
"""Exit code of a command whose output is read no further, as after SIGPIPE."""
DEFAULT_PORT = 29500
"""TCP port at which ranks meet by default; DeepSpeed and torch use the same."""


def checkout() -> Path:
    """Return the folder of the source tree, which has what an installed package lacks.

    Raises:
        ConfigError: the package was not installed from a checkout (`pip install -e .`).
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / DEFAULT_DEEPSPEED).is_file():
        raise ConfigError(
            f"configs/deepspeed is not beside {folder}; run this from a checkout of the project"
        )
    return folder


def call(
    command: Sequence[str], again: str, folder: Path | None = None, log: Path | None = None
) -> None:
    """Run one program and wait until it ends, after Ctrl-C too, which reaches it as well.

    Args:
        command: program and arguments.
        again: what the user should run again after a failure, for the message.
        folder: working folder of the program; the current folder by default.
        log: file to which its output is appended; by default it is printed.

    Raises:
        ConfigError: the program failed; its own message is printed above, or in `log`.
    """
    environment = launch_environment()
    with log.open("a") if log else nullcontext(sys.stdout) as output:
        print(f"$ {shlex.join(command)}", file=output, flush=True)
        streams: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT} if log else {}
        with subprocess.Popen(patient(command), cwd=folder, env=environment, **streams) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.wait()
                raise
    if code != 0:
        place = f"in {log}" if log else "above"
        raise ConfigError(
            f"the step {place} ended with code {code}; mend what it says and run {again}"
        )


def launch_environment() -> dict[str, str]:
    """Return the environment for programs of this Python, with DeepSpeed's accelerator set."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment.setdefault("DS_ACCELERATOR", "cuda" if visible_gpus() else "cpu")
    environment.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return environment


def visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def train_command(
    output: Path | str,
    ranks: int,
    port: int,
    script: Path | str = "autoselect/train.py",
    deepspeed: Path | str = DEFAULT_DEEPSPEED,
    settings: Mapping[str, object] | None = None,
) -> list[str]:
    """Return the command that trains on this machine under the `deepspeed` launcher.

    Args:
        output: run folder.
        ranks: number of processes.
        port: TCP port at which they meet.
        script: path of `autoselect/train.py`.
        deepspeed: path of the DeepSpeed JSON.
        settings: values of `TrainConfig` by dotted name.
    """
    arguments = [str(script), "--deepspeed", str(deepspeed), "--output", str(output)]
    return [*launcher(ranks, port), *arguments, *setting_flags(settings or {})]


def launcher(ranks: int, port: int) -> list[str]:
    """Return the beginning of a command that starts `ranks` processes on this machine."""
    return ["deepspeed", "--quiet", f"--num_gpus={ranks}", f"--master_port={port}"]


def patient(command: Sequence[str]) -> list[str]:
    """Return a command of the `deepspeed` launcher that waits for its ranks after Ctrl-C.

    The launcher has two processes. The inner one passes Ctrl-C on to the ranks and waits for them;
    the outer one would end at once, with a traceback, unless Ctrl-C is ignored when it starts.
    """
    if command[0] != "deepspeed":
        return list(command)
    return ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]


def setting_flags(settings: Mapping[str, object]) -> list[str]:
    """Return `{"gate.noise": "channel"}` as `["--gate.noise=channel"]`, values in YAML."""
    return [f"--{name}={_as_yaml(value)}" for name, value in settings.items()]


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def eval_command(settings: Mapping[str, object], ranks: int = 1) -> list[str]:
    """Return the command that evaluates with some fields of `EvalSettings`.

    It is `autoselect eval`, or `autoselect/eval.py` under `torchrun` if there are several ranks,
    which share the images. `torchrun` starts seconds sooner than the launcher of DeepSpeed, which
    evaluation does not need, and finds a free port itself.
    """
    command = ["autoselect", "eval"]
    if ranks > 1:
        command = ["torchrun", "--standalone", "--local-addr=127.0.0.1"]
        command += [f"--nproc-per-node={ranks}", "autoselect/eval.py"]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            command += [f"--{flag}", str(value)]
    return command
