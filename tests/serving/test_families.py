"""Tiny models of every family in the list equal `attach()` on the same pictures."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")

from autoselect.serving.families import BEFORE_PROJECTOR, FAMILIES  # noqa: E402
from tests.serving import tiny  # noqa: E402
from tests.serving.cases import ROOT, equal_answers, largest_difference, load  # noqa: E402
from tests.serving.engine import engine, generate, stop  # noqa: E402

EXACT = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the models, the selector, and what `attach()` gives for each."""
    own = tmp_path_factory.mktemp("tiny")
    names = sorted(tiny.BUILDERS)
    words = [sys.executable, "-m", "tests.serving.tiny_truth", str(own), *names]
    subprocess.run(words, cwd=ROOT, check=True)
    return own


def test_every_family_in_the_list_is_tested():
    assert set(FAMILIES.values()) == {"llava", *tiny.BUILDERS}
    before = {FAMILIES[architecture] for architecture in BEFORE_PROJECTOR}
    assert before == {"llava", *tiny.BEFORE_PROJECTOR}


@pytest.mark.parametrize(
    ("name", "selector"),
    [(name, "selector") for name in sorted(tiny.BUILDERS)]
    + [(f"{name}{tiny.BEFORE}", "before") for name in tiny.BEFORE_PROJECTOR],
)
def test_a_family_equals_attach(folder, name, selector):
    error = folder / name.removesuffix(tiny.BEFORE) / "error.txt"
    assert not error.exists(), error.read_text()
    llm = engine(folder / name, {"selector": str(folder / selector), "budget": 1.0})
    try:
        budgets = json.loads((folder / name / "budgets.json").read_text())
        prompts = [
            {
                "prompt": tiny.text(name.removesuffix(tiny.BEFORE), images),
                "multi_modal_data": {"image": [tiny.image(number) for number in images]},
                "mm_processor_kwargs": {"visual_token_budget": budget},
            }
            for images, budget in zip(tiny.PROMPTS, budgets, strict=True)
        ]
        found = generate(llm, prompts)
    finally:
        stop(llm)
    truth = load(folder / name / "pruned")
    assert largest_difference(found, truth) < EXACT
    assert equal_answers(found, truth) == len(truth)
    assert largest_difference(load(folder / name / "full"), truth) > 0.1, "pruning changes nothing"
