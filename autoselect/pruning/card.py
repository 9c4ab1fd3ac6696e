"""The model card of a selector: README.md as the hub shows it, from its training metadata.

Facts that the metadata lacks are left out or called unknown.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from autoselect.config import ConfigError
from autoselect.config.measured import unusual_settings
from autoselect.config.row_names import OWN, SELECTOR, diversity_row, diversity_text
from autoselect.files.markdown import table_row
from autoselect.pruning.diversity import Diversity, stored_diversity
from autoselect.pruning.hub import is_hub_name, is_logged_model

CARD_FILE = "README.md"
LICENCE = "apache-2.0"
REFERENCE = ("autoselect", "reference", "model")


def scores_of(report: Mapping[str, Any], diversity: Diversity) -> dict[str, Any]:
    """Return the scores that a card shows.

    Args:
        report: `report.json` of an evaluation whose first selector is this one.
        diversity: the selector's own; its rows may stand beside those of others.

    Raises:
        ConfigError: the report does not have rows of this diversity.
    """
    own = _row_of(report, diversity)
    rows = [
        {name: row[name] for name in ("budget", "mean", "retention", "retention_ci95")}
        for row in report["rows"]
        if row["method"] == own
    ]
    return {
        "model": report["model"],
        "num_tokens": report["num_tokens"],
        "full_mean": report["full"]["mean"],
        "tasks": sorted(report["full"]["tasks"]),
        "data_digest": report.get("digests", {}).get("data"),
        "measured": ", ".join(unusual_settings(report.get("settings", {}))),
        "rows": rows,
    }


def _row_of(report: Mapping[str, Any], diversity: Diversity) -> str:
    """Return the method of a report's rows that select as the selector itself does."""
    given = report.get("settings", {}).get("diversity") or OWN
    now = stored_diversity(diversity)
    own = report.get("selector_diversity", now)
    values = [value.strip() for value in given.split(",")]
    for place, value in enumerate(values):
        if (own == now) if value == OWN else (float(value) == diversity):
            return SELECTOR if place == 0 else diversity_row(SELECTOR, diversity_text(value))
    if OWN in values:
        raise ConfigError(
            f"report is of diversity={own}, and the selector's own is {now} now; evaluate it again"
        )
    raise ConfigError(
        f"report has diversity={given} and no row of the selector's own, {diversity}; evaluate it "
        f"without --diversity, or with --diversity {given},{OWN}"
    )


def card_text(config: Mapping[str, Any], name: str) -> str:
    """Return the card as Markdown with its YAML head.

    Args:
        config: JSON value of the selector's `config.json`.
        name: name of the selector, used as title and as the argument of `from_pretrained`.
    """
    training = config["training"]
    head = {
        "license": training.get("licence", LICENCE),
        "library_name": "autoselect",
        "pipeline_tag": "image-text-to-text",
        "tags": ["visual-token-selection", "token-pruning", "autoselect"],
    }
    if is_hub_name(training.get("model")):
        head["base_model"] = training["model"]
    base = _base(training)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}: which visual tokens of {base} matter",
        "A visual token selector, trained with "
        "[AutoSelect](https://arxiv.org/abs/2603.07135)'s noise gating around a frozen "
        "vision-language model. It ranks the visual tokens of an image; the model then sees the K "
        "best of them, at their original positions. The model's own weights are not in here and "
        "are not changed.",
        _example(training, name),
        "## Training\n\n" + _facts(config),
        "## Scores\n\n" + _scores(training.get("scores")),
    ]
    return "\n\n".join(parts) + "\n"


def without_folders(model: str) -> str:
    """Return a hub name as it is, and of a local folder only what names the model."""
    last = Path(model).parts[-len(REFERENCE) :]
    if is_hub_name(model) or last == REFERENCE:
        return str(Path(*last))
    return Path(model).name


def _base(training: Mapping[str, Any]) -> str:
    """Return the card's name for the model: its hub name, or the last part of a local folder."""
    model = training.get("model")
    if is_hub_name(model):
        return str(model)
    if model and without_folders(model) == str(Path(*REFERENCE)):
        return "the reference VLM"
    return str(training.get("model_name") or (Path(model).name if model else "an unnamed model"))


def _example(training: Mapping[str, Any], name: str) -> str:
    """Return the usage example; paths of this machine are replaced by capitals to fill in."""
    budget = training.get("token_budget", 64)
    model = training["model"] if is_hub_name(training.get("model")) else "PATH_OF_THE_MODEL"
    selector = name if is_hub_name(name) or is_logged_model(name) else "PATH_OF_THIS_FOLDER"
    return f"""```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from autoselect import Selector, attach

model = AutoModelForImageTextToText.from_pretrained({model!r})
processor = AutoProcessor.from_pretrained({model!r})
selector = Selector.from_pretrained({selector!r})
model = attach(model, selector, budget={budget})  # then processor and generate() as always
```"""


def _facts(config: Mapping[str, Any]) -> str:
    training = config["training"]
    highest, lowest = training.get("token_budget"), training.get("min_token_budget")
    budget = "unknown"
    if highest is not None:
        budget = f"{lowest} to {highest} tokens" if lowest else f"{highest} tokens"
    rows = {
        "base model": _base(training),
        "its revision or digest": training.get("model_digest") or "unknown",
        "data digest": training.get("data_digest") or "unknown",
        "budgets in training": f"{budget}; any other may be asked for",
        "steps": training.get("steps", "unknown"),
        "seed": training.get("seed", "unknown"),
        "polarisation of the gates at the end": _rounded(training.get("polarisation")),
        "width of the visual tokens": config["width"],
        "scorer": json.dumps(config["scorer"]),
        "autoselect": config["version"],
        "licence of these weights": training.get("licence", LICENCE),
    }
    return "\n".join(["| | |", "|---|---|", *map(table_row, rows.items())])


def _rounded(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "unknown"


def _scores(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return (
            "Not evaluated yet: `autoselect eval`, then "
            "`selector.record_scores(json.load(open('OUT/report.json')))` and "
            "`selector.save_config(FOLDER)`."
        )
    lines = [
        f"On {scores['model']} ({scores['num_tokens']} visual tokens); tasks: "
        f"{', '.join(scores['tasks'])}; data {scores['data_digest'] or 'unknown'}. "
        + (f"Measured with {scores['measured']}. " if scores.get("measured") else "")
        + "Retention is the mean over the tasks of score / full score, with its 95 % bootstrap "
        "interval.",
        "",
        "| tokens | accuracy in % | retention in % | 95 % interval |",
        "|---:|---:|---:|---|",
        table_row(
            [f"{scores['num_tokens']} (all)", f"{100 * scores['full_mean']:.1f}", "100.0", ""]
        ),
    ]
    for row in scores["rows"]:
        low, high = row["retention_ci95"]
        cells = [row["budget"], f"{100 * row['mean']:.1f}", _percent(row["retention"])]
        lines.append(table_row([*cells, f"{_percent(low)} to {_percent(high)}"]))
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}"
