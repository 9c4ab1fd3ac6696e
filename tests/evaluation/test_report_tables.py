"""What the tables of a report say, on a small report written by hand."""

import copy

import pytest
from PIL import Image

from autoselect.evaluation.analyses.classifier import OWN_PREDICTION
from autoselect.evaluation.analyses.line_figures import classifier_figure, fidelity_figure
from autoselect.evaluation.figures.curves import retention_curves
from autoselect.evaluation.report.html import caption_of, html_report
from autoselect.evaluation.report.latency_table import latency_table
from autoselect.evaluation.report.markdown import markdown
from autoselect.evaluation.report.tables import (
    BEST,
    BETTER,
    WORSE,
    accuracy_table,
    answer_line,
    difference_table,
    task_table,
    terminal_table,
)


def row(method, budget, colour, count):
    """Return a row of a report whose full model has 80 % and 50 %."""
    kept = {"colour": colour / 0.8, "count": count / 0.5}
    mean = sum(kept.values()) / 2
    return {
        "method": method,
        "budget": budget,
        "mean": (colour + count) / 2,
        "tasks": {"colour": colour, "count": count},
        "retention": mean,
        "retention_ci95": [mean - 0.05, mean + 0.05],
        "retention_tasks": kept,
        "retention_tasks_ci95": {task: [v - 0.1, v + 0.1] for task, v in kept.items()},
    }


def gap(against, budget, difference, low, high):
    return {
        "against": against,
        "budget": budget,
        "difference": difference,
        "ci95": [low, high],
        "better": low > 0,
    }


@pytest.fixture
def report():
    return {
        "model": "tiny",
        "num_tokens": 64,
        "images": 10,
        "questions": 20,
        "full": {"mean": 0.65, "tasks": {"colour": 0.8, "count": 0.5}, "details": {}},
        "blind": {
            "mean": 0.15,
            "tasks": {"colour": 0.2, "count": 0.1},
            "details": {},
            "retention": 0.225,
            "retention_ci95": [0.2, 0.3],
        },
        "rows": [
            row("autoselect", 8, 0.8, 0.4),
            row("grid", 8, 0.4, 0.4),
            row("oracle", 8, 0.8, 0.5),
            row("autoselect", 16, 0.8, 0.4),
            row("grid", 16, 0.8, 0.45),
            row("oracle", 16, 0.8, 0.5),
        ],
        "intervals": [
            gap("grid", 8, 0.25, 0.1, 0.4),
            gap("oracle", 8, -0.1, -0.2, -0.01),
            gap("grid", 16, -0.05, -0.1, 0.02),
            gap("oracle", 16, -0.1, -0.2, 0.0),
        ],
        "latency": {
            "full_prefill_ms": 4.0,
            "pruned": [
                {
                    "budget": budget,
                    "prefill_ms": 1.0,
                    "selector_ms": 1.0,
                    "speedup": 2.0,
                    "speedup_with_vision": 1.5,
                }
                for budget in (8, 16)
            ],
        },
    }


def texts(table):
    return [[cell.text for cell in line.cells] for line in table.rows]


def test_both_bounds_stand_on_top_and_the_best_of_each_band_is_marked(report):
    table = accuracy_table(report)
    assert [line[0] for line in texts(table)] == [
        "upper bound",
        "lower bound (blind)",
        "16 of 64 tokens (25.0 %)",
        "oracle",
        "grid",
        "autoselect",
        "8 of 64 tokens (12.5 %)",
        "oracle",
        "autoselect",
        "grid",
    ]
    assert texts(table)[0][-2:] == ["100.0", "–"]
    assert texts(table)[1][-2:] == ["22.5", "20.0 to 30.0"]
    marked = [line.cells[0].text for line in table.rows if line.cells[-2:][0].mark == BEST]
    assert marked == ["grid", "autoselect"], "oracles do not compete"


def test_an_oracle_of_patches_does_not_compete_either(report):
    report["rows"] += [row("oracle_before_encoder", budget, 0.8, 0.5) for budget in (8, 16)]
    tables = (accuracy_table(report), task_table(report))
    marked = {
        line.cells[0].text
        for table in tables
        for line in table.rows
        for cell in line.cells
        if cell.mark == BEST
    }
    assert marked == {"grid", "autoselect"}
    assert "oracle" not in answer_line(report)


def test_retention_per_task_has_its_interval(report):
    table = task_table(report)
    assert ["autoselect", "100.0 (90.0 to 110.0)", "80.0 (70.0 to 90.0)"] in texts(table)
    assert "100.0 (90.0 to 110.0)" in markdown(report)


def test_differences_are_one_row_per_method_and_marked_where_they_exclude_0(report):
    table = difference_table(report)
    assert table.head == ["against", "8 tokens", "16 tokens"]
    assert texts(table) == [
        ["grid", "+25.0 (10.0 to 40.0)", "-5.0 (-10.0 to 2.0)"],
        ["oracle", "-10.0 (-20.0 to -1.0)", "-10.0 (-20.0 to 0.0)"],
    ]
    assert [[cell.mark for cell in line.cells] for line in table.rows] == [
        ["", BETTER, ""],
        ["", WORSE, ""],
    ]
    text = markdown(report)
    assert "| grid | **+25.0 (10.0 to 40.0)** | -5.0 (-10.0 to 2.0) |" in text
    assert "those that exclude 0 are bold" in text


def test_the_answer_names_a_better_method(report):
    assert answer_line(report) == (
        "K=8 keeps 90.0 % (85.0 to 95.0), prefill 2.00 x as fast; "
        "K=16 keeps 90.0 % (85.0 to 95.0), prefill 2.00 x as fast (best: grid 95.0 %)"
    )


def test_the_terminal_gets_an_aligned_table_that_fits(report):
    lines = terminal_table(report).splitlines()
    assert lines[0].split() == ["retention", "in", "%", "8", "tokens", "16", "tokens"]
    assert any(line.startswith("prefill speedup") and "2.00 x" in line for line in lines)
    assert any(line.startswith("with vision tower") and "1.50 x" in line for line in lines)
    starred = [line.split()[0] for line in lines[1:-1] if "*" in line]
    assert sorted(starred) == ["autoselect", "grid"]
    assert max(map(len, lines)) <= 118
    report["rows"] = [
        row(r["method"], r["budget"] + 100 * i, 0.8, 0.4) for i in range(3) for r in report["rows"]
    ]
    assert max(map(len, terminal_table(report).splitlines())) <= 118, "without intervals"
    assert "(" not in terminal_table(report).splitlines()[1]


def test_a_task_without_score_has_no_retention(report):
    report["full"]["tasks"]["count"] = 0.0
    for line in report["rows"]:
        line["retention_tasks"].pop("count")
        line["retention_tasks_ci95"].pop("count")
    assert ["grid", "50.0 (40.0 to 60.0)", "–"] in texts(task_table(report))
    assert "the full model scores nothing there: count." in markdown(report)
    nothing = copy.deepcopy(report)
    nothing["full"]["tasks"]["colour"] = 0.0
    assert texts(accuracy_table(nothing))[0][-2:] == ["–", "–"]


def test_methods_left_out_stand_below_the_table_with_the_reason(report):
    assert "left out of the table" not in markdown(report) + html_report(report, {})
    report["left_out"] = [{"method": "fastv", "reason": "no attention <map>"}]
    table, _, rest = markdown(report).partition("Methods left out of the table:")
    assert "upper bound" in table and "* **fastv**: no attention <map>" in rest
    page = html_report(report, {})
    assert "<b>fastv</b>: no attention &lt;map&gt;" in page
    assert page.index("fastv") < page.index("Retention per task")


def texts_of(table):
    """Return the head of a table and the texts of its rows."""
    return table.head, [[cell.text for cell in row.cells] for row in table.rows]


def test_the_latency_table_shows_only_columns_that_were_measured(report):
    head, rows = texts_of(latency_table(report))
    assert head == ["tokens", "selector ms (in prefill)", "prefill ms", "speedup", "with vision"]
    assert rows[0] == ["64 (full)", "–", "4.00", "1.00", "1.00"]
    for times in report["latency"]["pruned"]:
        times |= {"first_token_ms": 6.0, "kv_cache_bytes": 2**21}
    report["latency"]["full"] = {"first_token_ms": 9.0, "kv_cache_bytes": 2**22}
    head, rows = texts_of(latency_table(report))
    assert head[:4] == ["tokens", "selector ms (in prefill)", "prefill ms", "first token ms"]
    assert rows[0][3:5] == ["9.00", "4.00"] and rows[1] == [
        *("8", "1.00", "1.00", "6.00", "2.00", "2.00", "1.50")
    ]
    page = markdown(report)
    assert "Speedup is full prefill / pruned prefill" in page
    assert f"|{'---:|' * 7}\n| 64 (full) | – | 4.00 | 9.00 | 4.00 | 1.00 | 1.00 |\n" in page
    assert "<tr class='bound'><td>64 (full)</td><td>–</td>" in html_report(report, {})
    columns = latency_table(report).columns()
    assert list(columns) == head and columns["tokens"] == [row[0] for row in rows]


def test_each_timed_selector_has_rows_of_its_own_in_the_latency_table(report):
    timed = report["latency"]["pruned"]
    name = "autoselect:diversity-0"
    timed += [{**row, "method": name, "prefill_ms": 0.5, "speedup": 8.0} for row in timed]
    head, rows = texts_of(latency_table(report))
    assert head[:2] == ["method", "tokens"] and rows[0][:2] == ["", "64 (full)"]
    assert [row[:2] for row in rows[1:]] == [
        [method, budget] for method in ("autoselect", name) for budget in ("8", "16")
    ]
    lines = terminal_table(report).splitlines()
    speeds = lines.index("prefill speedup")
    assert lines[speeds + 1].split() == ["autoselect", *["2.00", "x"] * 2]
    assert lines[speeds + 2].split() == [name, *["8.00", "x"] * 2]
    assert lines[speeds + 3] == "with vision tower"


def test_figures_of_the_html_report_have_one_scale(report, tmp_path):
    for name, width in (("retention", 1600), ("gates", 800)):
        Image.new("RGB", (width, 40)).save(tmp_path / f"{name}.png")
    page = html_report(report, {n: tmp_path / f"{n}.png" for n in ("retention", "gates")})
    assert "width='1050'" in page and "width='525'" in page
    assert "class='better'" in page and "class='worse'" in page


def test_the_caption_of_the_gates_speaks_of_training_only_where_it_was_logged(report):
    assert "training" not in caption_of("gates", report)
    report["analyses"] = {"gates": {"course": [(1, 0.5)]}}
    assert caption_of("gates", report).endswith("and their polarisation over training.")


def test_every_row_has_a_colour_of_its_own(report):
    names = [f"autoselect:diversity-0.{number}" for number in range(12)]
    report["rows"] += [dict(one, method=name) for name in names for one in report["rows"][:1]]
    figure = retention_curves(report)
    lines = figure.legends[0].get_lines()[:-2]
    assert len({line.get_color() for line in lines}) == len(lines) == len(names) + 3
    drawn = [line.get_color() for line in figure.axes[0].lines]
    assert drawn[: len(lines)] == [line.get_color() for line in reversed(lines)]


def test_bars_and_line_breaks_in_names_keep_the_tables_whole(report):
    name = "autoselect:a|b\nc"
    report["rows"] += [dict(one, method=name) for one in report["rows"] if one["method"] == "grid"]
    rows = [line for line in markdown(report).splitlines() if line.startswith("| autoselect:a")]
    assert len(rows) == 4 and all("autoselect:a\\|b c |" in line for line in rows)


def test_panels_say_what_their_axes_and_lines_are(report):
    figure = retention_curves(report)
    _, *panels = figure.axes
    assert [axes.get_ylabel() for axes in panels] == ["accuracy in %", "accuracy in %"]
    assert [axes.get_xlabel() for axes in panels] == ["", "tokens kept"]
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["autoselect", "oracle", "grid", "all tokens", "blind"]
    found = {"curves": {"hard removal": [0.5]}, "budgets": [8], "mean_gap": 0.012}
    (axes,) = fidelity_figure(found).axes
    assert "mean absolute gap 1.2 points" in axes.get_title(loc="left")
    assert axes.get_ylabel() == "accuracy, mean over tasks"
    top = {**found, "top5": {}, "labels": "the records"}
    (axes,) = fidelity_figure(top).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("patches kept", "top-1 accuracy")
    own = {"labels": OWN_PREDICTION}
    unchanged = "unchanged predictions of the classifier"
    assert fidelity_figure({**top, **own}).axes[0].get_ylabel() == unchanged
    found = {"selected": [0.5], "random": [0.4], "budgets": [8], "full": 1.0, "labels": "records"}
    found["grids"] = {"classifier": [3, 3]}
    assert classifier_figure(found).axes[0].get_ylabel() == "accuracy of the classifier"
    assert classifier_figure({**found, **own}).axes[0].get_ylabel() == unchanged
