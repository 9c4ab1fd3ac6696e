"""The evidence page: tables are replaced, prose is kept, unmeasured rows are marked."""

import json
import re

import pytest

from autoselect.ablation.evidence import BLOCK, EMPTY, fill, write_page
from autoselect.ablation.run import write
from autoselect.ablation.tables import markdown
from autoselect.cli.main import main
from autoselect.config import ConfigError
from autoselect.config.programs import checkout

PAGE = """# Evidence
By hand.
<!-- ablation: retention reference later -->
old table
<!-- end -->
More by hand.
<!-- ablation: leak -->
<!-- end -->
<!-- ablation: seeds reference -->
<!-- end -->
"""


def test_tables_are_replaced_and_prose_is_not(plan, programs, run_all, tmp_path):
    found = run_all(plan, tmp_path / "out")
    (tmp_path / "ablation.json").write_text(json.dumps(found))
    page = tmp_path / "evidence.md"
    page.write_text(PAGE)
    flags = ["--ablation", str(tmp_path / "ablation.json"), "--page", str(page)]
    assert main(["evidence", *flags]) == 0
    text = page.read_text()
    assert "old table" not in text and "By hand." in text and "More by hand." in text
    assert "| **reference** | 3 |" in text and "| later | not measured |" in text
    assert "| channel |" in text.split("<!-- ablation: leak -->")[1]
    (row,) = (row for row in found["variants"] if row["name"] == "reference")
    cells = [
        ", ".join(f"{100 * value:.1f}" for value in row["retention"][str(budget)]["seeds"])
        for budget in found["budgets"]
    ]
    assert f"| reference | {' | '.join(cells)} |" in text and cells[0].count(",") == 2
    assert fill(text, found) == text, "writing twice changes nothing"
    assert fill(text, None).count(EMPTY) == 3


def test_a_full_disk_leaves_page_and_tables_as_they_were(
    plan, programs, run_all, tmp_path, monkeypatch
):
    found = run_all(plan, tmp_path)
    page = tmp_path / "evidence.md"
    page.write_text(PAGE)
    write(tmp_path, found)
    before = (tmp_path / "ablation.json").read_text()

    def full(_handle):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_page(page, found)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, {**found, "name": "another"})
    assert page.read_text() == PAGE
    assert (tmp_path / "ablation.json").read_text() == before


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- ablation: retention -->\nno end", "has no `<!-- end -->`"),
        ("<!-- ablation: nothing -->\n<!-- end -->", "does not name a known table; choose one of"),
        ("no block", "has no block"),
    ],
)
def test_broken_pages_are_refused(tmp_path, page, message):
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(ConfigError, match=message):
        write_page(path, None)
    assert path.read_text() == page


def test_the_shipped_page_has_these_blocks_only():
    page = (checkout() / "docs" / "evidence.md").read_text()
    kinds = [block["what"].split()[0] for block in BLOCK.finditer(page)]
    assert kinds == ["protocol", "settings", "retention", "baselines"]
    assert fill(page, None).count(EMPTY) == len(kinds)


RESULTS = checkout() / "benchmarks" / "results"


def test_shipped_tables_are_those_of_the_stored_results():
    found = json.loads((RESULTS / "ablation" / "ablation.json").read_text())
    page = (checkout() / "docs" / "evidence.md").read_text()
    assert fill(page, found) == page, "run: autoselect evidence --ablation .../ablation.json"


@pytest.mark.parametrize(
    "folder",
    sorted(path.parent for path in RESULTS.glob("*/ablation.json")),
    ids=lambda folder: folder.name,
)
def test_the_tables_of_each_folder_are_those_of_its_results(folder):
    found = json.loads((folder / "ablation.json").read_text())
    assert (folder / "ablation.md").read_text() == markdown(found)


def test_the_evidence_page_stays_short():
    lines = (checkout() / "docs" / "evidence.md").read_text().splitlines()
    assert len(lines) <= 250, "findings first, each table once; the rest is in ablation.md"


BOTH = {
    "default training, tuned diversity": ["tuned"],
    "the same, hard top-K of the score": ["reference"],
    "`gate.coverage: 0.5`": ["coverage_tuned", "coverage"],
    "DivPrune": ["divprune"],
    "FastV": ["fastv"],
    "random": ["random"],
    "oracle by boxes": ["oracle"],
}
SCENES = BOTH | {
    "the same, one weight (0.4)": ["one_weight"],
    "`gate.coverage: 0.25`": ["coverage_light"],
    "the paper's settings": ["paper_tuned", "paper"],
    "default training with the paper's site": ["site"],
}
PAGES = BOTH | {"SCoRe": ["score"], "PruneSID": ["prunesid"]}
SECOND_VLM = [("ablation-siglip-qwen2", 0, row, names) for row, names in SCENES.items()]
SECOND_VLM += [("ablation-pages", 1, row, names) for row, names in PAGES.items()]
SECOND_VLM += [("ablation-pages-paper", 1, "[the paper's settings]", ["paper_tuned", "paper"])]


@pytest.mark.parametrize("results, part, row, names", SECOND_VLM)
def test_the_tables_of_the_second_vlm_are_those_of_their_cells(results, part, row, names):
    found = json.loads((RESULTS / results / "ablation.json").read_text())
    means = {
        (one["name"], int(budget)): value["mean"]
        for one in found["variants"]
        for budget, value in one["retention"].items()
    }
    means |= {
        (one["method"], one["budget"]): one["retention"]["mean"] for one in found["baselines"]
    }
    page = (checkout() / "docs" / "evidence.md").read_text().split("## The second VLM")[1]
    lines = page.split("### Pages")[part].splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {row}"))
    shown = [re.findall(r"\d+\.\d", cell) for cell in line.split("|")[2:-1]]
    for budget, numbers in zip(found["budgets"], shown, strict=True):
        assert numbers == [f"{100 * means[name, budget]:.1f}" for name in names]


PAPERS_ABLATION = {
    "the paper's settings": "paper",
    "straight-through Gumbel gate": "gumbel",
    "gate that scales tokens": "scale_gate",
    "Denoiser with attention over all tokens": "global_denoiser",
}


@pytest.mark.parametrize("row", PAPERS_ABLATION)
def test_the_table_of_the_papers_ablation_is_that_of_its_cells(row):
    found = json.loads((RESULTS / "ablation-paper" / "ablation.json").read_text())
    (variant,) = (one for one in found["variants"] if one["name"] == PAPERS_ABLATION[row])
    page = (checkout() / "docs" / "method.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {row} |"))
    shown = [cell.strip() for cell in line.split("|")[2:6]]
    means = [variant["retention"][str(budget)]["mean"] for budget in found["budgets"]]
    leak = variant["leak"]["excess"]["with_denoiser"]
    leak = "–" if leak is None else f"{100 * leak['mean']:.1f}"
    assert shown == [*(f"{100 * mean:.1f}" for mean in means), leak]
