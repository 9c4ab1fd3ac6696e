"""Freed memory is used again instead of being asked for anew."""

import platform
import subprocess
import sys

import pytest

from tests.launching import ROOT, environment

FAULTS = """
import resource, torch
from autoselect.ranks import host_memory
{first}

def work():
    tensors = [torch.ones(16 * 2**20) for _ in range(3)]
    del tensors

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(10):  # blocks of the right sizes come about
    work()
before = faults()
for _ in range(5):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_tensors_cause_no_page_faults_again() -> None:
    found = {}
    for first in ("", "host_memory.keep_freed()"):
        command = [sys.executable, "-c", FAULTS.format(first=first)]
        run = subprocess.run(
            command, env=environment(), cwd=ROOT, check=True, capture_output=True, text=True
        )
        found[first] = int(run.stdout)
    assert found["host_memory.keep_freed()"] < found[""] / 4, found
