"""Public tasks: which metric of lmms-eval is the score, and in which unit it is published."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoselect.config import ConfigError

NEEDS_JUDGE = "answers that name no option go to a language model through OPENAI_API_KEY"


@dataclass(frozen=True)
class PublicTask:
    """A task of lmms-eval.

    Attributes:
        name: name in lmms-eval.
        label: name in tables.
        metrics: metrics whose sum is the score.
        scale: factor from that sum to the published unit.
        note: remark on the score for readers of the report.
    """

    name: str
    label: str
    metrics: tuple[str, ...]
    scale: float
    note: str = ""


TASKS = {
    task.name: task
    for task in (
        PublicTask(
            "vqav2_val",
            "VQAv2",
            ("exact_match",),
            100,
            "validation split; published numbers are often test-dev, scored on EvalAI",
        ),
        PublicTask("gqa", "GQA", ("exact_match",), 100, "test-dev balanced"),
        PublicTask(
            "vizwiz_vqa_val",
            "VizWiz",
            ("exact_match",),
            100,
            "validation split; published numbers are often test, scored on EvalAI",
        ),
        PublicTask("scienceqa_img", "SQA-IMG", ("exact_match",), 100),
        PublicTask("textvqa_val", "TextVQA", ("exact_match",), 100, "no OCR tokens in the prompt"),
        PublicTask("pope", "POPE", ("pope_f1_score",), 100, "F1 over the three categories"),
        PublicTask(
            "mme",
            "MME",
            ("mme_perception_score", "mme_cognition_score"),
            1,
            "perception + cognition, at most 2800",
        ),
        PublicTask("mmbench_en_dev", "MMB", ("gpt_eval_score",), 1, NEEDS_JUDGE),
        PublicTask("mmbench_cn_dev", "MMB-CN", ("gpt_eval_score",), 1, NEEDS_JUDGE),
        PublicTask(
            "mmvet", "MM-Vet", ("gpt_eval_score",), 1, "graded by a language model: OPENAI_API_KEY"
        ),
        PublicTask("seedbench", "SEED-I", ("seed_image",), 100, "questions about images"),
    )
}
TEN = tuple(name for name in TASKS if name != "seedbench")


def task_score(task: str, results: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """Return the score of a task in its published unit, and all metrics that lmms-eval gave.

    A task outside `TASKS` scores 100 times the mean of its metrics.

    Args:
        results: output of lmms-eval for this task, with keys such as `exact_match,none`.

    Raises:
        ConfigError: a metric of the score is missing.
    """
    numbers = {
        key.partition(",")[0]: float(value)
        for key, value in results.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and "," in key
        and "_stderr" not in key
    }
    if task not in TASKS:
        if not numbers:
            raise ConfigError(f"task={task} gave no metric: {dict(results)}")
        return 100 * sum(numbers.values()) / len(numbers), numbers
    known = TASKS[task]
    missing = [name for name in known.metrics if name not in numbers]
    if missing:
        raise ConfigError(
            f"task={task} gave no {', '.join(missing)} (found: {', '.join(numbers) or 'nothing'}); "
            f"{known.note or 'is this lmms-eval 0.7?'}"
        )
    return known.scale * sum(numbers[name] for name in known.metrics), numbers


def label(task: str) -> str:
    return TASKS[task].label if task in TASKS else task
