"""Turn answers into one score per question, task means and further numbers of single tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autoselect.evaluation.scores import metrics

QuestionScore = Callable[[str, Sequence[str]], float]
ANLS_TASKS = ("docvqa", "infographicvqa", "stvqa")
VQA_TASKS = ("vqav2", "textvqa", "vizwiz", "okvqa")
VQA_ANNOTATORS = 10
MME, POPE, MMBENCH = "mme_", "pope_", "mmbench"
YES_NO_TASKS = {"pope": metrics.parse_yes_no, "mme": metrics.parse_mme}
PART = "::"


class Answered(Protocol):
    """What scoring reads of a sample: questions, accepted answers and tasks."""

    @property
    def key(self) -> str: ...

    @property
    def questions(self) -> Sequence[str]: ...

    @property
    def answers(self) -> Sequence[Sequence[str]]: ...

    @property
    def tasks(self) -> Sequence[str]: ...

    @property
    def image_digest(self) -> str: ...


Place = tuple[int, int]
"""A question: number of its sample, and its round."""


def places_of(samples: Sequence[Answered]) -> list[Place]:
    """Return all questions of some samples, in order."""
    return [(i, r) for i, sample in enumerate(samples) for r in range(len(sample.questions))]


def pictures_of(samples: Sequence[Answered]) -> list[str]:
    """Return what each sample shows; one without a digest shows what no other does."""
    return [sample.image_digest or f"sample {place}" for place, sample in enumerate(samples)]


@dataclass(frozen=True)
class AnsweredSample:
    """One sample's rounds with their accepted answers, as scoring reads them.

    `image_digest` is equal for samples that show the same; empty if unknown.
    """

    key: str
    questions: list[str]
    answers: list[list[str]]
    tasks: list[str]
    image_digest: str = ""


def question_score(task: str, question: str, answers: Sequence[str]) -> QuestionScore:
    """Choose the metric: options, ANLS, yes/no, VQA soft accuracy, else exact match.

    Args:
        task: name of the task, as in lmms-eval or the reference data.
        question: its text; lines `A. text` make it multiple choice.
        answers: accepted answers; ten of them, or a VQA task, select VQA soft accuracy.
    """
    if metrics.parse_options(question):
        return _best(lambda text, accepted: metrics.option_accuracy(text, question, accepted))
    if task.startswith(ANLS_TASKS):
        return metrics.anls
    if task.startswith(tuple(YES_NO_TASKS)):
        parse = yes_no_parser(task)
        return _best(lambda text, accepted: metrics.yes_no_accuracy(text, accepted, parse))
    if task.startswith(VQA_TASKS) or len(answers) >= VQA_ANNOTATORS:
        return metrics.vqa_soft_accuracy
    return _best(metrics.exact_match)


def _best(score: Callable[[str, str], float]) -> QuestionScore:
    """Return the best score over all accepted answers."""
    return lambda text, given: max(score(text, accepted) for accepted in given)


def yes_no_parser(task: str) -> Callable[[str], str]:
    """Return how yes/no answers of a task are read, for its score and its statistics alike.

    POPE and MME read as their papers do; every other task reads whole answers, so an answer that
    repeats the right word without an end is wrong in both places.
    """
    found = (parse for prefix, parse in YES_NO_TASKS.items() if task.startswith(prefix))
    return next(found, metrics.parse_exact)


def exact_score(sample: Answered, turn: int, text: str) -> float:
    """Return 1 if an answer is one of the accepted ones, whatever the task's metric."""
    return _best(metrics.exact_match)(text, sample.answers[turn])


def first_word_score(sample: Answered, turn: int, text: str) -> float:
    """Return 1 if an answer begins with the first word of an accepted one, however it goes on."""
    return _best(metrics.first_word_match)(text, sample.answers[turn])


def answer_score(sample: Answered, turn: int, text: str) -> float:
    """Return the score, 0..1, of an answer to one of a sample's questions."""
    accepted = sample.answers[turn]
    score = question_score(sample.tasks[turn], sample.questions[turn], accepted)
    return score(text, accepted)


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one method, kept per image so that images can be resampled.

    Attributes:
        parts: what is averaged over questions or images: a task, or `TASK::PART` if the score of a
            task is the mean of several averages (MME: accuracy and accuracy+ of each subtask; POPE:
            its three categories).
        sums: sum of each image's scores per part, [images, parts].
        counts: number of those scores, [images, parts].
    """

    parts: tuple[str, ...]
    sums: np.ndarray
    counts: np.ndarray

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(_owner, self.parts)))

    def by_task(self, means: np.ndarray) -> np.ndarray:
        """Average known means of parts, [..., parts], into scores of tasks, [..., tasks]."""
        owners = list(map(_owner, self.parts))
        columns = [[i for i, own in enumerate(owners) if own == task] for task in self.tasks]
        found = np.stack([known_mean(means[..., own]) for own in columns], axis=-1)
        return found.astype(means.dtype)

    def task_means(self) -> dict[str, float]:
        """Return the score of each task, 0..1."""
        means = self.by_task(self.sums.sum(axis=0) / self.counts.sum(axis=0))
        return dict(zip(self.tasks, means.tolist(), strict=True))

    def mean(self) -> float:
        """Return the mean over the tasks, each with the same weight."""
        return float(np.mean(list(self.task_means().values())))


def known_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean along the last axis without NaN values; NaN where all values are NaN."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=-1) / known.sum(axis=-1)


def score_answers(
    samples: Sequence[Answered],
    answers: Sequence[Sequence[str]],
    score: Callable[[Answered, int, str], float] = answer_score,
) -> ScoreTable:
    """Score answer texts, by image and round, against the accepted answers.

    `score` returns 0..1 of an answer to a round; by default the metric of its task.
    """
    scores = [
        [(sample.tasks[i], score(sample, i, text)) for i, text in enumerate(texts)]
        for sample, texts in zip(samples, answers, strict=True)
    ]
    found: dict[str, dict[int, list[float]]] = {}
    for row, own in enumerate(scores):
        for task, value in own:
            if task.startswith(MMBENCH):
                continue
            name = _part(task)
            found.setdefault(name, {}).setdefault(row, []).append(value)
            if task.startswith(MME):
                every = found.setdefault(f"{name}+", {}).setdefault(row, [1.0])
                every[0] = min(every[0], value)
    for (task, _), (row, right) in _rotations(samples, scores).items():
        found.setdefault(task, {}).setdefault(row, []).append(float(right))
    parts = tuple(sorted(found))
    sums, counts = np.zeros((2, len(samples), len(parts)))
    for column, part in enumerate(parts):
        for row, values in found[part].items():
            sums[row, column], counts[row, column] = sum(values), len(values)
    return ScoreTable(parts, sums, counts)


def _part(task: str) -> str:
    """Return the part of a score table to which a question of this task belongs."""
    for prefix in (MME, POPE):
        if task.startswith(prefix):
            return f"{prefix.rstrip('_')}{PART}{task.removeprefix(prefix)}"
    return task


def _owner(part: str) -> str:
    """Return the task of a part; a task of the user may hold `::` in its name."""
    task = part.split(PART)[0]
    return task if f"{task}_" in (MME, POPE) else part


def _rotations(
    samples: Sequence[Answered], scores: Sequence[Sequence[tuple[str, float]]]
) -> dict[tuple[str, str | int], tuple[int, bool]]:
    """Return for each MMBench question whether all its rotations are right.

    Rotations of a question are rounds of one sample, or of samples whose keys agree up to `#`.
    """
    found: dict[tuple[str, str | int], tuple[int, bool]] = {}
    for row, (sample, own) in enumerate(zip(samples, scores, strict=True)):
        for task, score in own:
            if task.startswith(MMBENCH):
                question = (task, _question_of(row, sample))
                first, right = found.get(question, (row, True))
                found[question] = (first, right and score > 0)
    return found


def _question_of(row: int, sample: Answered) -> str | int:
    """Return what the rotations of a question share: their row, or its key up to `#`.

    A key without `#` may come again in the shards of another conversion.
    """
    name, rotated, _ = sample.key.partition("#")
    return name if rotated else row


def average(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Average the tables of several seeds."""
    return ScoreTable(
        tables[0].parts, np.mean([table.sums for table in tables], axis=0), tables[0].counts
    )


def task_details(
    samples: Sequence[Answered], answers: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Return further numbers of single tasks.

    These are POPE's statistics of every yes/no task and of its three categories together, read as
    the task's score reads them, MME's scores as in its paper, and MMBench's accuracy over all
    rotations beside its circular accuracy.
    """
    by_task: dict[str, list[tuple[int, str, str, float]]] = {}
    for row, (sample, texts) in enumerate(zip(samples, answers, strict=True)):
        for turn, (task, text) in enumerate(zip(sample.tasks, texts, strict=True)):
            score = answer_score(sample, turn, text)
            own = (row, text, sample.answers[turn][0], score)
            by_task.setdefault(task, []).append(own)
    details: dict[str, dict[str, float]] = {}
    subtasks = {}
    for task, rows in by_task.items():
        places, texts, accepted, scores = zip(*rows, strict=True)
        if {answer.strip().lower() for answer in accepted} <= {"yes", "no"}:
            details[task] = metrics.yes_no_statistics(texts, accepted, yes_no_parser(task))
        if task.startswith(MME):
            right = [score > 0 for score in scores]
            subtasks[task.removeprefix(MME)] = metrics.mme_subtask_score(places, right)
        if task.startswith(MMBENCH):
            right = [score > 0 for score in scores]
            questions = [_question_of(place, samples[place]) for place in places]
            circular = metrics.circular_accuracy(questions, right)
            accuracy = sum(scores) / len(scores)
            details[task] = {"accuracy": accuracy, "circular_accuracy": circular}
    polled = [row for task, rows in by_task.items() if task.startswith(POPE) for row in rows]
    if polled:
        _, texts, accepted, _ = zip(*polled, strict=True)
        details[POPE.rstrip("_")] = metrics.yes_no_statistics(texts, accepted, metrics.parse_yes_no)
    if subtasks:
        details["mme"] = {**subtasks, **metrics.mme_scores(subtasks)}
    return details
