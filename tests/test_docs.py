"""The pages build as a site without the network, and no link in them is broken."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from autoselect.cli.main import COMMANDS
from autoselect.evaluation.methods.context import SelectionContext
from autoselect.ranks.judge import EXIT_RANK_FAILED, EXIT_RANK_LOST
from autoselect.ranks.processes import EXIT_PREEMPTED
from autoselect.tracking.ending import TERMINATED
from tests.vlm.stock import model_of
from tests.vlm.tiny import batch

ROOT = Path(__file__).parents[1]
REMOTE = r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)'
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_site_builds_with_tables_figures_and_the_reference(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "index.html").read_text()
    assert "<table>" in start and 'src="images/first.png"' in start
    assert (tmp_path / "images" / "first.png").is_file()
    assert 'id="autoselect.pruning.attachment.attach"' in (tmp_path / "api.html").read_text()
    assert "gate.token_budget" in (tmp_path / "settings.html").read_text()
    reference = (tmp_path / "commands.html").read_text()
    for name in COMMANDS:
        assert f">autoselect {name}<" in reference
    assert "--max-rejected FRACTION" in reference and "default: one per core" in reference
    assert "gate.token_budget" not in reference, "settings have a page of their own"
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(REMOTE, page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[a-z-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert {page.name for page in PAGES} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for address in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not address.startswith(("http://", "https://")):
            assert (page.parent / address).exists(), address


def example(page: str, number: int = 0) -> str:
    """Return a code block of Python of a page."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[number]


@pytest.mark.parametrize("family", ["llava", "kimi_k25"], ids=["entry", "no entry"])
def test_the_trial_of_a_family_runs(family, capsys):
    exec(example("add-family.md"), {"vlm": model_of(family), "inputs": batch(family, [["s"]])})
    assert capsys.readouterr().out.count("kept=") == 1


def test_the_example_of_a_baseline_keeps_the_smallest_norms():
    names = {}
    exec(example("add-baseline.md"), names)
    tokens = torch.tensor([[[3.0], [-1.0], [2.0], [0.0]]])
    kept = names["smallest_norm"](SelectionContext(tokens, ("a",)), 2)
    assert kept.positions.tolist() == [[1, 3]]


def test_exit_codes_are_those_of_the_programs():
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    first = page[: page.index("## By command")]
    own = {EXIT_RANK_FAILED, EXIT_RANK_LOST, EXIT_PREEMPTED, TERMINATED}
    assert set(map(int, re.findall(r"^\| (\d+) \|", first, re.MULTILINE))) == {0, 2, 130} | own
    script = (ROOT / "slurm" / "train.sh").read_text()
    again = map(int, re.findall(r"^(?:PREEMPTED|TERMINATED|LOST|KILLED)=(\d+)", script, re.M))
    requeued = re.findall(r"^\| ([\d, ]+)[^|]* \| goes back to the queue", page, re.MULTILINE)
    assert sorted(again) == sorted(int(code) for cell in requeued for code in cell.split(","))
