"""The pages build as a site without the network, and no link in them is broken."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(REMOTE, page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[a-z]+\.md", str(yaml.safe_load(text)["nav"])))
    assert {page.name for page in PAGES} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for address in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not address.startswith(("http://", "https://")):
            assert (page.parent / address).exists(), address
