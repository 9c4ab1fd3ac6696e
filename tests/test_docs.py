"""The pages build as a site without the network, and no link in them is broken."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from autoselect.cli.main import COMMANDS
from autoselect.config.programs import EXIT_INTERRUPTED, EXIT_READER_LEFT
from autoselect.evaluation.methods.context import SelectionContext
from autoselect.ranks.judge import EXIT_RANK_FAILED, EXIT_RANK_LOST
from autoselect.ranks.processes import EXIT_PREEMPTED
from autoselect.tracking.ending import TERMINATED
from autoselect.vlm.families import Family
from autoselect.vlm.release import OLDEST_TRANSFORMERS
from tests.vlm.stock import model_of
from tests.vlm.tiny import batch

ROOT = Path(__file__).parents[1]
REMOTE = r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)'
CHROMIUM = shutil.which("chromium")
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the built site."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_with_tables_figures_and_the_reference(site):
    start = (site / "index.html").read_text()
    assert "<table>" in start and 'src="images/first.png"' in start
    assert (site / "images" / "first.png").is_file()
    assert 'id="autoselect.pruning.attachment.attach"' in (site / "api.html").read_text()
    assert "gate.token_budget" in (site / "settings.html").read_text()
    reference = (site / "commands.html").read_text()
    for name in COMMANDS:
        assert f">autoselect {name}<" in reference
    assert "--max-rejected FRACTION" in reference and "default one per core" in reference
    assert "gate.token_budget" not in reference, "settings have a page of their own"
    for page in site.rglob("*.html"):
        loaded = re.findall(REMOTE, page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"


MEASURE = """<script>addEventListener("load", () => setInterval(() => {
  const edge = document.querySelector(".rst-content .section").getBoundingClientRect().right
  const all = [...document.querySelectorAll(".section table, .section img")]
  const seen = all.filter(e => e.getBoundingClientRect().width > 20)
  const past = e => e.getBoundingClientRect().right > edge + 1
  const wide = seen.filter(e => past(e) || e.scrollWidth > e.clientWidth + 1)
  const cut = wide.map(e => e.textContent.slice(0, 40) || e.src)
  parent.postMessage({page: PAGE, all: all.length, seen: seen.length, cut}, "*")
}, 500))</script>"""
"""Measures repeatedly: scripts wrap tables and pictures arrive late. The last measure counts."""
COLLECT = """<script>addEventListener("message", e => {
  document.querySelector("pre").textContent += JSON.stringify(e.data) + "\\n"
})</script><pre></pre>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_tables_and_figures_fit_into_the_pages(site, tmp_path):
    """All pages beside each other in one browser, each with a script that measures it."""
    folder = shutil.copytree(site, tmp_path / "site")
    names = sorted(
        page.name for page in folder.glob("*.html") if page.stem not in ("404", "search")
    )
    frames = ""
    for name in names:
        page = folder / name
        script = MEASURE.replace("PAGE", json.dumps(name))
        page.write_text(page.read_text().replace("</body>", f"{script}</body>"))
        frames += f'<iframe src="{name}" width="1280" height="900"></iframe>'
    (folder / "frames.html").write_text(COLLECT + frames)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", "--virtual-time-budget=5000", (folder / "frames.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    lines = dom[dom.index("<pre>") + 5 : dom.index("</pre>")].strip().splitlines()
    found = {one["page"]: one for one in map(json.loads, map(html.unescape, lines))}
    assert sorted(found) == names
    for name, one in found.items():
        assert one["seen"] == one["all"] and not one["cut"], f"{name}: {one['cut']}"
    assert found["index.html"]["all"] >= 3 and found["evidence.html"]["all"] >= 5


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[a-z-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert {page.name for page in PAGES} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for address in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not address.startswith(("http://", "https://")):
            assert (page.parent / address).exists(), address


def test_the_pages_name_the_oldest_releases():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = dict(re.findall(r"(\w+)>=([\d.]+)", " ".join(project["dependencies"])))
    install = (ROOT / "docs" / "install.md").read_text()
    assert f"torch ({lowest['torch']} or newer)" in install
    assert f"transformers from {lowest['transformers']} on" in install
    assert f"`attach` is tested from {OLDEST_TRANSFORMERS} on" in install
    backbones = (ROOT / "docs" / "backbones.md").read_text()
    assert f"transformers model ({OLDEST_TRANSFORMERS} to " in backbones


def example(page: str, number: int = 0) -> str:
    """Return a code block of Python of a page."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[number]


@pytest.mark.parametrize("family", ["llava", "kimi_k25"], ids=["entry", "no entry"])
def test_the_trial_of_a_family_runs(family, capsys):
    exec(example("add-family.md"), {"vlm": model_of(family), "inputs": batch(family, [["s"]])})
    assert capsys.readouterr().out.count("kept=") == 1


def test_every_field_of_a_family_is_explained():
    page = (ROOT / "docs" / "add-family.md").read_text()
    for field in dataclasses.fields(Family):
        assert f"`{field.name}" in page, field.name


def test_the_example_of_a_baseline_keeps_the_smallest_norms():
    names = {}
    exec(example("add-baseline.md"), names)
    tokens = torch.tensor([[[3.0], [-1.0], [2.0], [0.0]]])
    kept = names["smallest_norm"](SelectionContext(tokens, ("a",)), 2)
    assert kept.positions.tolist() == [[1, 3]]


def test_exit_codes_are_those_of_the_programs():
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    first = page[: page.index("## By command")]
    own = {EXIT_RANK_FAILED, EXIT_RANK_LOST, EXIT_PREEMPTED, EXIT_INTERRUPTED, TERMINATED}
    assert (
        set(map(int, re.findall(r"^\| (\d+) \|", first, re.MULTILINE)))
        == {0, 2, EXIT_READER_LEFT} | own
    )
    script = (ROOT / "slurm" / "train.sh").read_text()
    again = map(int, re.findall(r"^(?:PREEMPTED|TERMINATED|LOST|KILLED)=(\d+)", script, re.M))
    requeued = re.findall(r"^\| ([\d, ]+)[^|]* \| goes back to the queue", page, re.MULTILINE)
    assert sorted(again) == sorted(int(code) for cell in requeued for code in cell.split(","))


def test_symptoms_of_failures_are_messages_of_the_programs():
    files = [*(ROOT / "autoselect").rglob("*.py"), *(ROOT / "slurm").glob("*.sh")]
    sources = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))
    page = (ROOT / "docs" / "cluster.md").read_text()
    table = page[page.index("| symptom | cause | fix |") : page.index("### Broken samples")]
    shown = [
        said for line in table.splitlines() for said in re.findall("`(.*?)`", line.split(" | ")[0])
    ]
    messages = [said for said in shown if " " in said]
    assert len(messages) >= 12
    for message in messages:
        for part in message.split("..."):
            assert part.strip(" =") in sources, message
