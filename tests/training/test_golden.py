"""The first 20 steps of the reference run give the committed curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launching import Worker, environment

SCRIPT = Path(__file__).parents[1] / "golden" / "reference_run.py"
COMMAND = "python tests/golden/reference_run.py --write"

EARLY = 10
TOLERANCE = {
    "train/loss": (1e-3, 3e-2),
    "train/gradient_norm": (5e-3, 1e-1),
    "train/polarisation": (1e-3, 1e-2),
    "train/token_budget": (0.0, 0.0),
}
"""Relative, in the first `EARLY` steps and after them: rounding grows from step to step.

With torch, oneDNN and MKL held to older instruction sets (SSE4.1, AVX2) the losses differed by at
most 6e-5 and 5e-3, the norms by 1e-3 and 3e-2.
"""


def differences(taken: dict[str, list[float]], golden: dict[str, list[float]]) -> list[str]:
    """Return what differs by more than its tolerance, as text."""
    assert taken.keys() == golden.keys() == TOLERANCE.keys()
    return [
        f"{name} of step {step}: {now}, was {before}"
        for name, tolerances in TOLERANCE.items()
        for step, (now, before) in enumerate(zip(taken[name], golden[name], strict=True))
        if abs(now - before) > tolerances[step >= EARLY] * abs(before)
    ]


@pytest.mark.slow
def test_the_reference_run_follows_its_golden_curve() -> None:
    golden = json.loads(SCRIPT.with_suffix(".json").read_text())
    code, log = Worker(SCRIPT, (), environment()).wait(600)
    assert code == 0, log
    taken = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
    found = differences(taken, golden)
    assert not found, f"if the numbers were meant to change, run `{COMMAND}`:\n" + "\n".join(found)
    wrong = {**taken, "train/loss": taken["train/loss"][1:] + taken["train/loss"][:1]}
    assert differences(wrong, golden)
