"""Markdown tables of an ablation; a variant without finished cells is a row that says so."""

from collections.abc import Callable, Sequence
from typing import Any

from autoselect.evaluation.report.tables import percent, with_interval
from autoselect.files.markdown import table_row

Row = dict[str, Any]
Table = Callable[[dict[str, Any], Sequence[str]], list[str]]
NOT_MEASURED = "not measured"


def retention_table(found: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Tabulate retention at every budget, polarisation, final loss and leak measure."""
    budgets = found["budgets"]

    def cells(row: Row) -> list[list[str]]:
        name, leak = row["name"], row["leak"]["excess"]
        cells = [f"**{name}**" if name == found["reference"] else name]
        cells += [str(len(row["seeds"])), str(row["steps"])]
        cells += [_estimate(row["retention"][str(b)]) for b in budgets]
        cells += [_number(row["polarisation"], 2), _number(row["final_loss"], 3)]
        cells += [_share(leak["without_denoiser"]), _share(leak["with_denoiser"])]
        return [cells]

    head = ["variant", "seeds", "steps", *(f"K={b}" for b in budgets)]
    head += ["polarisation", "final loss", *_leak_heads(found)]
    return _table(head, _rows(found, names, cells))


def seed_table(found: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Tabulate the retention of every training seed, because a mean hides a failed seed."""

    def cells(row: Row) -> list[list[str]]:
        seeds = [row["retention"][str(b)]["seeds"] for b in found["budgets"]]
        return [[row["name"], *(", ".join(map(percent, values)) for values in seeds)]]

    head = ["variant", *(f"K={b}" for b in found["budgets"])]
    return _table(head, _rows(found, names, cells))


def difference_table(found: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Tabulate retention minus that of the reference variant with the same seeds, in points."""

    def cells(row: Row) -> list[list[str]]:
        if not row["against_reference"]:
            return []
        gaps = [row["against_reference"][str(b)] for b in found["budgets"]]
        return [[row["name"], str(len(gaps[0]["seeds"])), *map(_estimate, gaps)]]

    head = ["variant", "seeds", *(f"K={b}" for b in found["budgets"])]
    others = [name for name in names if name != found["reference"]]
    return _table(head, _rows(found, others, cells))


def baseline_table(found: dict[str, Any], names: Sequence[str]) -> list[str]:
    def cells(row: Row) -> list[list[str]]:
        lines = []
        for method, gaps in (row["against"] or {}).items():
            known = [gaps.get(str(b)) for b in found["budgets"]]
            shown = ("–" if gap is None else _estimate(gap) for gap in known)
            lines.append([row["name"], method, *shown])
        return lines

    head = ["variant", "against", *(f"K={b}" for b in found["budgets"])]
    return _table(head, _rows(found, names, cells))


def family_table(found: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Tabulate retention per task family at every budget, variants before baselines."""

    def cells(row: Row) -> list[list[str]]:
        lines = []
        for budget in found["budgets"]:
            families = row["families"][str(budget)]
            shown = (_estimate(families[family]) for family in found["families"])
            lines.append([row["name"], str(budget), *shown])
        return lines

    rows = _rows(found, names, cells)
    for baseline in found["baselines"]:
        shares = [percent(baseline["families"].get(name)) for name in found["families"]]
        rows.append([baseline["method"], str(baseline["budget"]), *shares])
    return _table(["variant", "tokens", *found["families"]], rows)


def leak_table(found: dict[str, Any], names: Sequence[str]) -> list[str]:
    def cells(row: Row) -> list[list[str]]:
        keys = ("blind", "without_denoiser", "with_denoiser", "full")
        return [[row["name"], *(_share(row["leak"][key]) for key in keys)]]

    head = ["variant", "blind", "gates K/N", "gates K/N and Denoiser", "all tokens"]
    return _table(head, _rows(found, names, cells))


def setting_table(found: dict[str, Any], names: Sequence[str]) -> list[str]:
    def cells(row: Row) -> list[list[str]]:
        changed = {**row["train"], **row["eval"]}
        text = ", ".join(f"`{key}={value}`" for key, value in changed.items()) or "–"
        return [[row["name"], row["asks"], text, str(row["steps"])]]

    return _table(["variant", "question", "settings", "steps"], _rows(found, names, cells))


def protocol(found: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Describe what was measured, on which machine, and what the intervals cover."""
    seeds = sorted({len(row["seeds"]) for row in found["variants"]})
    counted = " or ".join(str(count) for count in seeds)
    machines: dict[str, list[str]] = {}
    for own in found["environments"]:
        machine = f"{own['processor']}, {own['threads']} thread(s), torch {own['torch']}"
        commits = machines.setdefault(machine, [])
        if own["git_commit"] not in commits:
            commits.append(own["git_commit"])
    lines = [
        f"{found['images']} test images with {found['questions']} questions, "
        f"{found['num_tokens']} visual tokens; the full model answers "
        f"{percent(found['full']['mean'])} % (blind {percent(found['blind'])} %).",
        f"Every row is the mean over {counted} training seed(s). Intervals are 95 %, over seeds "
        "(Student's t) and images (paired bootstrap) in quadrature; differences are paired by "
        "seed and image. A star marks a row of one seed, whose interval covers the images only.",
        "Evaluated on "
        + "; ".join(f"{name} (commit {', '.join(own)})" for name, own in machines.items())
        + ".",
    ]
    if found["missing"]:
        listed = ", ".join(f"{name} ({seeds})" for name, seeds in found["missing"].items())
        lines.append(f"Not finished, by variant and seeds: {listed}.")
    return ["\n\n".join(lines)]


TABLES: dict[str, Table] = {
    "protocol": protocol,
    "settings": setting_table,
    "retention": retention_table,
    "seeds": seed_table,
    "differences": difference_table,
    "baselines": baseline_table,
    "families": family_table,
    "leak": leak_table,
}
TITLES = {
    "settings": "Variants",
    "retention": "Retention in per cent",
    "seeds": "Retention seed by seed, in per cent",
    "differences": "Retention minus the reference variant, in points",
    "baselines": "Retention minus each baseline, in points",
    "families": "Retention per family, in per cent",
    "leak": "Leak: accuracy behind uniform gates, in per cent",
}


def markdown(found: dict[str, Any]) -> str:
    names = [row["name"] for row in found["variants"]]
    lines = [f"# Ablation {found['name']} on {found['model']}", ""]
    lines += [*protocol(found, names), ""]
    for kind, title in TITLES.items():
        if kind == "differences" and names == [found["reference"]]:
            continue
        lines += [f"## {title}", "", *TABLES[kind](found, names), ""]
    return "\n".join(lines)


def _rows(
    found: dict[str, Any], names: Sequence[str], cells: Callable[[Row], list[list[str]]]
) -> list[list[str]]:
    """Return the rows of each variant; one row that says so for a variant without any."""
    known = {row["name"]: row for row in found["variants"]}
    rows = []
    for name in names:
        own = cells(known[name]) if name in known else []
        rows += own or [[name, NOT_MEASURED]]
    return rows


def _leak_heads(found: dict[str, Any]) -> list[str]:
    leaks = [row["leak"]["budget"] for row in found["variants"]]
    where = f"gates {leaks[0]}/{found['num_tokens']}"
    return [f"leak, {where}", f"leak, {where}, Denoiser"]


def _estimate(value: dict[str, Any]) -> str:
    star = "" if value["mean"] is None or len(value["seeds"]) > 1 else " \\*"
    return f"{with_interval(value['mean'], value['ci95'])}{star}"


def _share(value: dict[str, Any] | None) -> str:
    return "–" if value is None else percent(value["mean"])


def _number(value: dict[str, Any] | None, digits: int) -> str:
    return "–" if value is None else f"{value['mean']:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a Markdown table; rows shorter than the head are filled with empty cells."""
    filled = ([*row, *[""] * (len(head) - len(row))] for row in rows)
    return [table_row(head), "|---" * len(head) + "|", *map(table_row, filled)]
