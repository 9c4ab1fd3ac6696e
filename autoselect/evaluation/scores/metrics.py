"""Score answers with the metric of each benchmark.

| function            | benchmark                  | source                                       |
|---------------------|----------------------------|----------------------------------------------|
| `exact_match`       | GQA and the reference data | trimmed strings, ignoring case               |
| `vqa_soft_accuracy` | VQAv2, TextVQA, VizWiz     | Antol et al. 2015, official evaluation       |
| `yes_no_statistics` | POPE                       | Li et al. 2023                               |
| `choose_option`     | ScienceQA, MMBench         | Lu et al. 2022; Liu et al. 2023              |
| `circular_accuracy` | MMBench                    | Liu et al. 2023: right in every rotation     |
| `mme_scores`        | MME                        | Fu et al. 2023: 100 (accuracy + accuracy+)   |
| `anls`              | DocVQA, ST-VQA             | Biten et al. 2019                            |
"""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from string import ascii_uppercase

from autoselect.data.benchmarks.mme import COGNITION, PERCEPTION
from autoselect.evaluation.scores.vqa_text import normalise_vqa_answer

ANLS_THRESHOLD = 0.5
VQA_AGREEING = 3
"""Other annotators that must give an answer for it to be fully right."""
NEITHER = "other"
"""What a yes/no answer is read as if it is neither."""


def exact_match(prediction: str, answer: str) -> float:
    """Return 1 if the trimmed strings agree, ignoring case and a final full stop, else 0."""
    return float(_plain(prediction) == _plain(answer))


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").lower()


def vqa_soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the mean over annotators i of min(1, matches among the other annotators / 3).

    Prediction and answers are always normalised, as in the TextVQA evaluator; the first VQA script
    skips that if all annotators agree. Of fewer than four answers no prediction could reach 1, so
    they are alternatives.

    Args:
        answers: one answer per annotator, normally ten.
    """
    given = normalise_vqa_answer(prediction)
    matches = [given == normalise_vqa_answer(answer) for answer in answers]
    if len(matches) <= VQA_AGREEING:
        return float(any(matches))
    total = sum(matches)
    return sum(min(1.0, (total - match) / VQA_AGREEING) for match in matches) / len(matches)


def parse_yes_no(text: str) -> str:
    """Return "no" if the first sentence contains "no" or "not", else "yes" (POPE rule)."""
    words = text.split(".")[0].replace(",", " ").lower().split()
    return "no" if "no" in words or "not" in words else "yes"


def parse_mme(text: str) -> str:
    """Return "yes" or "no" if the first four characters contain it, else "other" (MME rule)."""
    start = text.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), NEITHER)


def parse_exact(text: str) -> str:
    """Return "yes" or "no" if that is the whole answer to `exact_match`, else "other"."""
    word = _plain(text)
    return word if word in ("yes", "no") else NEITHER


def yes_no_accuracy(prediction: str, answer: str, parse: Callable[[str], str]) -> float:
    """Return 1 if `parse` reads the same word in prediction and answer, else 0.

    An answer that is neither yes nor no, such as the full model's own as the reference, is compared
    as text.
    """
    wanted = parse(answer)
    if wanted == NEITHER:
        return exact_match(prediction, answer)
    return float(parse(prediction) == wanted)


def first_word_match(prediction: str, answer: str) -> float:
    """Return 1 if the first words agree, ignoring case and punctuation around them, else 0."""
    return float(_first_word(prediction) == _first_word(answer))


def _first_word(text: str) -> str:
    words = text.lower().split()
    return words[0].strip(".,;:!?\"'()") if words else ""


def yes_no_statistics(
    predictions: Sequence[str],
    answers: Sequence[str],
    parse: Callable[[str], str] = parse_yes_no,
) -> dict[str, float]:
    """Return accuracy, precision, recall and F1 of "yes", and the share of "yes" answers.

    Precision and recall are 0 if their denominator is 0.
    """
    said, truth = [parse(p) == "yes" for p in predictions], [parse(a) == "yes" for a in answers]
    hits = sum(s and t for s, t in zip(said, truth, strict=True))
    right = sum(parse(p) == parse(a) for p, a in zip(predictions, answers, strict=True))
    precision = hits / sum(said) if any(said) else 0.0
    recall = hits / sum(truth) if any(truth) else 0.0
    both = precision + recall
    return {
        "accuracy": right / len(truth),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "yes_ratio": sum(said) / len(said),
    }


def parse_options(question: str) -> tuple[str, ...]:
    """Return the options of a question that lists them as lines `A. text`, `B. text`, ..."""
    found = re.findall(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$", question, re.MULTILINE)
    expected = ascii_uppercase[: len(found)]
    in_order = "".join(letter for letter, _ in found) == expected
    return tuple(text for _, text in found) if in_order and len(found) > 1 else ()


def option_accuracy(prediction: str, question: str, answer: str) -> float:
    """Return 1 if prediction and answer name the same option, else 0.

    An answer that names none, such as the full model's own as the reference, is compared as text.
    """
    options = parse_options(question)
    wanted = choose_option(answer, options)
    if wanted is None:
        return exact_match(prediction, answer)
    return float(choose_option(prediction, options) == wanted)


def choose_option(prediction: str, options: Sequence[str]) -> int | None:
    """Return the index of the option that an answer names; None for none or several.

    A leading or stated letter counts first (`B`, `(B)`, `B.`, `B is right`, `the answer is B`, but
    not the article in `A dog is ...`), then the whole text of an option within the answer.

    Args:
        options: texts of the options, at most 26.
    """
    letters = ascii_uppercase[: len(options)]
    text = prediction.strip()
    for pattern in (
        rf"^\(?([{letters}])(?:[).,:;]|$)",
        rf"^(?![AI]\s+(?!is\b)[a-z])([{letters}])\s",
        rf"\((?=[{letters}]\))([{letters}])\)",
        rf"(?i:answer|option|choice)(?:\s+(?i:is))?\s*:?\s*\(?([{letters}])\b",
    ):
        found = re.search(pattern, text)
        if found:
            return letters.index(found.group(1))
    named = [i for i, option in enumerate(options) if _plain(option) == _plain(text)]
    if not named:
        named = [
            i
            for i, option in enumerate(options)
            if option and re.search(rf"\b{re.escape(_plain(option))}\b", _plain(text))
        ]
    return named[0] if len(named) == 1 else None


def circular_accuracy(question_ids: Sequence[Hashable], right: Sequence[bool]) -> float:
    """Return the share of questions answered correctly in every rotation of the options."""
    every: dict[Hashable, bool] = defaultdict(lambda: True)
    for question, is_right in zip(question_ids, right, strict=True):
        every[question] = every[question] and is_right
    return sum(every.values()) / len(every)


def mme_subtask_score(image_ids: Sequence[Hashable], right: Sequence[bool]) -> float:
    """Return 100 (accuracy + accuracy+): over questions, and over images fully correct."""
    accuracy = sum(right) / len(right)
    return 100 * (accuracy + circular_accuracy(image_ids, right))


def mme_scores(subtasks: dict[str, float]) -> dict[str, float]:
    """Return the sums over the evaluated perception (0..2000) and cognition (0..800) subtasks."""
    return {
        "perception": sum(subtasks.get(name, 0.0) for name in PERCEPTION),
        "cognition": sum(subtasks.get(name, 0.0) for name in COGNITION),
    }


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance: insertions, deletions and substitutions."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Return the best over answers of 1 - distance / longer length; below 0.5 it counts as 0."""
    best = 0.0
    for answer in answers:
        given, wanted = _spaced(prediction), _spaced(answer)
        longer = max(len(given), len(wanted))
        similarity = 1.0 if longer == 0 else 1 - edit_distance(given, wanted) / longer
        best = max(best, similarity)
    return best if best >= ANLS_THRESHOLD else 0.0


def _spaced(text: str) -> str:
    return " ".join(text.split()).lower()
