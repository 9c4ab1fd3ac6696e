"""Run several small programs after one import of the slow libraries that they need.

Each program is forked from a new process that has made these imports; its environment, output and
exit code are those of a program of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Program:
    """Python code, and the variables that it finds beside those of its parent."""

    code: str
    variables: Mapping[str, str] = field(default_factory=dict)


def run_after(
    first: str, programs: Sequence[Program], folder: Path, variables: Mapping[str, str]
) -> list[subprocess.CompletedProcess[str]]:
    """Run `first` in a new process, and each program in a fork of it; return how they ended.

    Args:
        first: Python code, such as imports.
        programs: one after the other; none sees what another did.
        folder: where they run; the first place in which they look for modules.
        variables: the environment of the new process.
    """
    with tempfile.TemporaryDirectory() as logs:
        told = [[program.code, dict(program.variables)] for program in programs]
        done = subprocess.run(
            [sys.executable, __file__, logs],
            input=json.dumps([first, told]),
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        return [
            subprocess.CompletedProcess(
                program.code,
                int(Path(logs, f"{number}.code").read_text()),
                Path(logs, f"{number}.out").read_text(),
                Path(logs, f"{number}.err").read_text(),
            )
            for number, program in enumerate(programs)
        ]


def _status(code: str) -> int:
    """Run a program and return the exit code that Python would end with."""
    try:
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _main(logs: Path) -> None:
    first, programs = json.load(sys.stdin)
    sys.path[0] = ""
    scope: dict[str, Any] = {}
    exec(first, scope)
    for number, (code, variables) in enumerate(programs):
        child = os.fork()
        if child == 0:
            for descriptor, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(logs / f"{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
            os.environ.update(variables)
            status = _status(code)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, ended = os.waitpid(child, 0)
        (logs / f"{number}.code").write_text(str(os.waitstatus_to_exitcode(ended)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
