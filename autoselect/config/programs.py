"""The project's own programs, started as a user would start them: training and evaluation."""

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

DEFAULT_PORT = 29500
"""TCP port where ranks meet unless the user names one; DeepSpeed and torch use it, too."""


def checkout() -> Path:
    """The source tree: launcher scripts and configurations are not part of an installed package.

    Raises:
        ConfigError: the package does not lie in a checkout.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "configs" / "deepspeed" / "zero2.json").is_file():
        raise ConfigError(
            f"configs/deepspeed is not beside {folder}; run this from a checkout of the project"
        )
    return folder


def call(
    command: Sequence[str], again: str, folder: Path | None = None, log: Path | None = None
) -> None:
    """Run one program and wait for it; its output goes where this process's goes, or into a file.

    Args:
        command: as typed.
        again: what to run again once the cause is mended, for the message.
        folder: where it runs; the current folder by default.
        log: file that its output is appended to, for programs that run side by side.

    Raises:
        ConfigError: it failed; its own message stands above, or in `log`.
    """
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment.setdefault("DS_ACCELERATOR", "cuda" if _has_gpu() else "cpu")
    with log.open("a") if log else nullcontext(sys.stdout) as output:
        print(f"$ {shlex.join(command)}", file=output, flush=True)
        streams: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT} if log else {}
        code = subprocess.run(
            command, cwd=folder, env=environment, check=False, **streams
        ).returncode
    if code != 0:
        place = f"in {log}" if log else "above"
        raise ConfigError(
            f"the step {place} ended with code {code}; mend what it says and run {again}"
        )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def train_command(
    output: Path | str,
    ranks: int,
    port: int,
    script: Path | str = "autoselect/train.py",
    deepspeed: Path | str = "configs/deepspeed/zero2.json",
    settings: Mapping[str, object] | None = None,
) -> list[str]:
    """Training on this machine under the `deepspeed` launcher.

    Args:
        output: run folder.
        ranks: processes.
        port: where they meet.
        script: `autoselect/train.py`.
        deepspeed: its JSON.
        settings: dotted names and values, as in `TrainConfig`.
    """
    launcher = ["deepspeed", f"--num_gpus={ranks}", f"--master_port={port}"]
    arguments = [str(script), "--deepspeed", str(deepspeed), "--output", str(output)]
    return [*launcher, *arguments, *setting_flags(settings or {})]


def setting_flags(settings: Mapping[str, object]) -> list[str]:
    """`{"gate.noise": "channel"}` as `["--gate.noise=channel"]`; values as YAML writes them."""
    return [f"--{name}={_as_yaml(value)}" for name, value in settings.items()]


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def eval_command(settings: Mapping[str, object]) -> list[str]:
    """`autoselect eval` with settings named as the fields of `EvalSettings`."""
    command = ["autoselect", "eval"]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            command += [f"--{flag}", str(value)]
    return command
