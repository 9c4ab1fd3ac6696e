"""The README is short, in short sentences, and every number in it comes from a results file."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
DEMO = json.loads((RESULTS / "demo.json").read_text())
PREFILL = json.loads((RESULTS / "prefill_diversity_cpu.json").read_text())
PAPER = json.loads((RESULTS / "paper_preset.json").read_text())
ABLATION = json.loads((RESULTS / "ablation" / "ablation.json").read_text())
FLAGSHIP = json.loads((RESULTS / "gpu_h200.json").read_text())["stages"]["flagship"]["result"]
VARIANTS = {
    "**AutoSelect**, tuned diversity": "tuned",
    "**AutoSelect**, the paper's top-K": "reference",
}
BASELINES = {"SCoRe": "score", "SCOPE": "scope", "CDPruner": "cdpruner"}
MOST_LINES, MOST_WORDS = 150, 30
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?![\w])")


def prose() -> str:
    """Return the text without code blocks, addresses and code spans."""
    text = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"`[^`]*`", "X", text)


def table() -> dict[str, list[str]]:
    """Return the cells of the table of results by the text of their first column."""
    rows = re.findall(r"^\| (.+) \|$", TEXT, re.MULTILINE)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    return {first: rest for first, *rest in cells if len(rest) == 3}


def budgets() -> list[int]:
    return [int(cell) for cell in table()["tokens kept"]]


def speedups(batch: int) -> list[str]:
    (run,) = [run for run in PREFILL["runs"] if run["batch_size"] == batch]
    return [f"{row['speedup']:.2f}x" for row in run["pruned"]]


def test_it_is_short():
    assert len(TEXT.splitlines()) <= MOST_LINES


def test_no_sentence_is_long():
    blocks = re.split(r"\n\s*\n|\n(?=[*|#])|\|", prose())
    for block in blocks:
        for sentence in re.split(r"(?<=[.!?:])\s+", " ".join(block.split())):
            assert len(sentence.split()) <= MOST_WORDS, sentence


@pytest.mark.parametrize("name", VARIANTS)
def test_retentions_are_those_of_the_ablation(name):
    shown = [cell.strip("*") for cell in table()[f"{name}: retention in %"]]
    (found,) = [row for row in ABLATION["variants"] if row["name"] == VARIANTS[name]]
    assert len(found["seeds"]) == 3
    assert shown == [f"{100 * found['retention'][str(b)]['mean']:.1f}" for b in budgets()]


def baselines() -> dict[str, list[float]]:
    """Return the retention in % of every baseline at each budget; oracles do not compete."""
    assert ABLATION["images"] == DEMO["images"]
    found: dict[str, dict[int, float]] = {}
    for row in ABLATION["baselines"]:
        found.setdefault(row["method"], {})[row["budget"]] = 100 * row["retention"]["mean"]
    return {
        method: [kept[budget] for budget in budgets()]
        for method, kept in found.items()
        if method != "oracle"
    }


@pytest.mark.parametrize("name", BASELINES)
def test_retentions_of_baselines_are_those_of_the_ablation(name):
    shown = table()[f"{name}: retention in %"]
    assert shown == [f"{kept:.1f}" for kept in baselines()[BASELINES[name]]]


def test_the_baselines_are_the_best_three():
    found = baselines()
    assert "The baselines are the best three of fifteen." in TEXT and len(found) == 15
    best = sorted(found, key=lambda method: -sum(found[method]))[:3]
    assert set(best) == set(BASELINES.values())


def test_the_row_of_the_papers_settings_is_the_mean_of_its_seeds():
    assert PAPER["images"] == DEMO["images"]
    shown = table()["the paper's settings: retention in %"]
    for cell, budget in zip(shown, budgets(), strict=True):
        seeds = [
            row["retention"]
            for row in PAPER["rows"]
            if row["budget"] == budget and row["method"] != "autoselect:ours"
        ]
        assert len(seeds) == 3
        assert cell == f"{100 * sum(seeds) / 3:.1f}"


def test_the_best_of_each_budget_is_bold_if_it_is_ours():
    own = table()["**AutoSelect**, tuned diversity: retention in %"]
    for place, budget in enumerate(budgets()):
        shown = [kept[place] for kept in baselines().values()]
        shown += [
            100 * row["retention"][str(budget)]["mean"]
            for row in ABLATION["variants"]
            if row["name"] in VARIANTS.values()
        ]
        mine = float(own[place].strip("*"))
        assert own[place].startswith("**") == (mine >= max(round(x, 1) for x in shown))


@pytest.mark.parametrize("batch", [1, 8])
def test_speedups_are_those_of_the_benchmark(batch):
    assert PREFILL["budgets"] == budgets()
    assert table()[f"prefill speedup, batch {batch}, tuned diversity"] == speedups(batch)


def gpu_speedup(budget: int) -> str:
    """Return the speedup of the prefill of eight prompts on a GPU."""
    found = FLAGSHIP["models"]["llava-1.5-7b"]["prefill, batch 8"]
    return f"{found['full']['median_ms'] / found[f'prefill@{budget}']['median_ms']:.2f}"


def test_every_other_number_is_known():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {
        str(DEMO["num_tokens"]),
        str(DEMO["images"]),
        f"{DEMO['cpu_seconds'] / 60:.0f}",
        project["requires-python"].removeprefix(">="),
        *map(str, budgets()),
        "2603.07135",
        *("64", "576", gpu_speedup(64)),
    }
    text = "\n".join(line for line in prose().splitlines() if not line.startswith("|"))
    assert set(NUMBER.findall(text)) <= known


def test_where_it_leads_exists():
    for address in re.findall(r"\]\(([^)#]+)", TEXT):
        if not address.startswith("https://"):
            assert (ROOT / address).exists(), address
