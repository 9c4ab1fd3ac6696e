"""From answers to scores: one number per question, and what a task reports beside its mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autoselect.evaluation import metrics

QuestionScore = Callable[[str, Sequence[str]], float]
ANLS_TASKS = ("docvqa", "infographicvqa", "stvqa")
YES_NO_TASKS = ("pope", "mme")


class Answered(Protocol):
    """What scoring reads of a sample: an `EvaluationSample`, or one of stored predictions."""

    @property
    def key(self) -> str: ...

    @property
    def questions(self) -> Sequence[str]: ...

    @property
    def answers(self) -> Sequence[Sequence[str]]: ...

    @property
    def tasks(self) -> Sequence[str]: ...


def question_score(task: str, question: str, answers: Sequence[str]) -> QuestionScore:
    """The score of one answer: options, ANLS, yes/no, VQA soft accuracy, else exact match.

    Args:
        task: name of the task, as in lmms-eval or the reference data.
        question: its text; lines `A. text` make it multiple choice.
        answers: accepted answers; several mean VQA soft accuracy.
    """
    if metrics.parse_options(question):
        return lambda text, given: metrics.option_accuracy(text, question, given[0])
    if task.startswith(ANLS_TASKS):
        return metrics.anls
    if task.startswith(YES_NO_TASKS):
        return lambda text, given: float(
            metrics.parse_yes_no(text) == metrics.parse_yes_no(given[0])
        )
    if len(answers) > 1:
        return metrics.vqa_soft_accuracy
    return lambda text, given: metrics.exact_match(text, given[0])


def answer_score(sample: Answered, turn: int, text: str) -> float:
    """The score of one answer to one of a sample's questions, in 0..1."""
    accepted = sample.answers[turn]
    score = question_score(sample.tasks[turn], sample.questions[turn], accepted)
    return score(text, accepted)


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one column, kept per image so that images can be resampled.

    Attributes:
        tasks: names of the tasks, sorted.
        sums: sum of the scores of each image's questions per task, [images, tasks].
        counts: number of each image's questions per task, [images, tasks].
    """

    tasks: tuple[str, ...]
    sums: np.ndarray
    counts: np.ndarray

    def task_means(self) -> dict[str, float]:
        """Mean score over the questions of each task."""
        means = self.sums.sum(axis=0) / self.counts.sum(axis=0)
        return dict(zip(self.tasks, means.tolist(), strict=True))

    def mean(self) -> float:
        """Mean over the tasks, each task with the same weight."""
        return float(np.mean(list(self.task_means().values())))


def score_answers(samples: Sequence[Answered], answers: Sequence[Sequence[str]]) -> ScoreTable:
    """Score `answers` (image -> round -> text) against the samples' accepted answers."""
    tasks = tuple(sorted({task for sample in samples for task in sample.tasks}))
    place = {task: i for i, task in enumerate(tasks)}
    sums = np.zeros((len(samples), len(tasks)))
    counts = np.zeros((len(samples), len(tasks)))
    for row, (sample, texts) in enumerate(zip(samples, answers, strict=True)):
        for turn, task in enumerate(sample.tasks):
            sums[row, place[task]] += answer_score(sample, turn, texts[turn])
            counts[row, place[task]] += 1
    return ScoreTable(tasks, sums, counts)


def average(tables: Sequence[ScoreTable]) -> ScoreTable:
    """The mean of several seeds' tables."""
    return ScoreTable(
        tables[0].tasks, np.mean([table.sums for table in tables], axis=0), tables[0].counts
    )


def task_details(
    samples: Sequence[Answered], answers: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Further numbers of single tasks: POPE's statistics of every yes/no task, MME's scores."""
    by_task: dict[str, list[tuple[str, str, str]]] = {}
    for sample, texts in zip(samples, answers, strict=True):
        for task, accepted, text in zip(sample.tasks, sample.answers, texts, strict=True):
            by_task.setdefault(task, []).append((sample.key, text, accepted[0]))
    details: dict[str, dict[str, float]] = {}
    subtasks = {}
    for task, rows in by_task.items():
        keys, texts, accepted = zip(*rows, strict=True)
        if {answer.strip().lower() for answer in accepted} <= {"yes", "no"}:
            details[task] = metrics.yes_no_statistics(texts, accepted)
            if task.startswith("mme_"):
                right = [
                    metrics.parse_yes_no(t) == metrics.parse_yes_no(a)
                    for t, a in zip(texts, accepted, strict=True)
                ]
                subtasks[task.removeprefix("mme_")] = metrics.mme_subtask_score(keys, right)
    if subtasks:
        details["mme"] = {**subtasks, **metrics.mme_scores(subtasks)}
    details |= _circular_details(samples, answers)
    return details


def _circular_details(
    samples: Sequence[Answered], answers: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Circular accuracy of MMBench, whose rotations of one question share the key up to `#`."""
    rows: dict[str, list[tuple[str, bool]]] = {}
    for sample, texts in zip(samples, answers, strict=True):
        for turn, task in enumerate(sample.tasks):
            if task.startswith("mmbench"):
                right = answer_score(sample, turn, texts[turn]) > 0
                rows.setdefault(task, []).append((sample.key.split("#")[0], right))
    return {
        task: {"circular_accuracy": metrics.circular_accuracy(*zip(*found, strict=True))}
        for task, found in rows.items()
    }
