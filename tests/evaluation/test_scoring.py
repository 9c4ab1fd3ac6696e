import numpy as np
import pytest
from PIL import Image

from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scores.intervals import Resampling
from autoselect.evaluation.scores.scoring import (
    exact_score,
    first_word_score,
    score_answers,
    task_details,
)

IMAGE = Image.new("RGB", (8, 8))
OPTIONS = "Which ?\nA. a cat\nB. a dog"


def sample(key, *rounds):
    """Return a sample; rounds are (task, question, accepted answers)."""
    tasks, questions, answers = zip(*rounds, strict=True)
    return EvaluationSample(key, (IMAGE,), questions, answers, tasks, tuple(() for _ in rounds))


def test_each_task_has_its_own_metric():
    samples = [
        sample(
            "one",
            ("textvqa_val", "q", ("stop", "stop", "stop sign", "go", "go", "go")),
            ("pope", "q", ("no",)),
            ("docvqa_val", "q", ("hello",)),
            ("scienceqa_img", OPTIONS, ("B",)),
            ("gqa", "q", ("left",)),
        )
    ]
    table = score_answers(samples, [["Stop.", "No, there is not", "helo", "a dog", "right"]])
    assert table.task_means() == pytest.approx(
        {
            "textvqa_val": (2 * 1 / 3 + 4 * 2 / 3) / 6,
            "pope": 1.0,
            "docvqa_val": 0.8,
            "scienceqa_img": 1.0,
            "gqa": 0.0,
        }
    )
    assert table.mean() == pytest.approx(sum(table.task_means().values()) / 5)


def test_a_task_mean_weighs_questions_not_images():
    samples = [
        sample("a", ("gqa", "q", ("x",)), ("gqa", "r", ("x",)), ("gqa", "s", ("x",))),
        sample("b", ("gqa", "q", ("x",))),
    ]
    table = score_answers(samples, [["x", "x", "x"], ["y"]])
    assert table.task_means() == {"gqa": 0.75}


def test_yes_no_tasks_report_pope_statistics_and_mme_its_scores():
    samples = [
        sample("a", ("mme_existence", "q", ("Yes",)), ("mme_existence", "r", ("No",))),
        sample("b", ("mme_existence", "q", ("Yes",)), ("mme_existence", "r", ("No",))),
    ]
    details = task_details(samples, [["yes", "no"], ["yes", "yes"]])
    assert details["mme_existence"]["yes_ratio"] == 0.75
    assert details["mme"] == {"existence": 125.0, "perception": 125.0, "cognition": 0.0}


def test_mmbench_counts_a_question_only_when_every_rotation_is_right():
    samples = [
        sample("q1#0", ("mmbench_en_dev", OPTIONS, ("A",))),
        sample("q1#1", ("mmbench_en_dev", OPTIONS, ("B",))),
        sample("q2#0", ("mmbench_en_dev", OPTIONS, ("A",))),
        sample("q2#1", ("mmbench_en_dev", OPTIONS, ("B",))),
    ]
    details = task_details(samples, [["A"], ["B"], ["A"], ["A"]])
    assert details["mmbench_en_dev"] == {"accuracy": 0.75, "circular_accuracy": 0.5}
    table = score_answers(samples, [["A"], ["B"], ["A"], ["A"]])
    assert table.task_means() == {"mmbench_en_dev": 0.5}, "retention is of circular accuracy"
    rounds = [(("mmbench_en_dev", OPTIONS, ("A",)), ("mmbench_en_dev", OPTIONS, ("B",)))] * 2
    together = [sample(f"q{i}", *own) for i, own in enumerate(rounds)]
    assert score_answers(together, [["A", "B"], ["A", "A"]]).task_means() == table.task_means()


def test_a_key_that_comes_again_in_other_shards_is_another_question():
    turned = (("mmbench_en_dev", OPTIONS, ("A",)), ("mmbench_en_dev", OPTIONS, ("B",)))
    pair = (("mme_count", "q", ("Yes",)), ("mme_count", "r", ("No",)))
    samples = [sample("000", *turned), sample("000", *turned)]
    texts = [["A", "B"], ["A", "A"]]
    assert score_answers(samples, texts).task_means() == {"mmbench_en_dev": 0.5}
    details = task_details(samples, texts)["mmbench_en_dev"]
    assert details == {"accuracy": 0.75, "circular_accuracy": 0.5}
    samples = [sample("000", *pair), sample("000", *pair)]
    assert task_details(samples, [["Yes", "No"], ["Yes", "Yes"]])["mme"]["count"] == 125


def test_mme_counts_as_one_benchmark_of_accuracy_and_accuracy_plus():
    """Perception and cognition over 2800, beside one other task of the same weight."""
    pair = (("mme_existence", "q", ("Yes",)), ("mme_existence", "r", ("No",)))
    other = (("mme_OCR", "q", ("Yes",)), ("mme_OCR", "r", ("No",)))
    samples = [sample("a", *pair), sample("b", *pair), sample("c", *other)]
    samples.append(sample("d", ("gqa", "q", ("cat",))))
    answers = [["Yes", "No"], ["Yes", "yes, it is"], ["banana", ""], ["cat"]]
    table = score_answers(samples, answers)
    details = task_details(samples, answers)
    assert details["mme"]["existence"] == 125.0 and details["mme"]["OCR"] == 0.0
    assert table.tasks == ("gqa", "mme")
    assert table.task_means() == {"gqa": 1.0, "mme": pytest.approx(125 / 400)}
    drawn = Resampling.of(4, draws=200)
    means = drawn.task_means(table)
    assert means.shape == (200, 2)
    whole = drawn.weights.min(axis=1) > 0
    by_hand = [
        np.mean([(2 * a + b) / (2 * (a + b)), a / (a + b), 0.0, 0.0])
        for a, b in drawn.weights[whole][:, :2]
    ]
    np.testing.assert_allclose(means[whole, 1], by_hand, rtol=1e-6)


def test_pope_counts_as_one_benchmark_with_statistics_over_its_categories():
    kinds = ("random", "popular", "adversarial")
    samples = [sample("g", ("gqa", "q", ("red",)))]
    samples += [sample(k, (f"pope_{k}", "q", ("yes",)), (f"pope_{k}", "r", ("no",))) for k in kinds]
    answers = [["blue"], ["yes", "no"], ["yes", "yes"], ["yes", "yes"]]
    table = score_answers(samples, answers)
    assert table.tasks == ("gqa", "pope")
    assert table.task_means() == {"gqa": 0.0, "pope": pytest.approx(2 / 3)}
    assert table.mean() == pytest.approx(1 / 3), "not 1/2, as three tasks beside one would give"
    details = task_details(samples, answers)
    assert details["pope_random"]["f1"] == 1.0
    assert details["pope"]["f1"] == pytest.approx(2 * 0.6 / 1.6), "3 of 5 yes, all of 3 found"


def test_an_answer_that_is_neither_yes_nor_no_is_wrong_in_mme():
    samples = [sample("a", ("mme_existence", "q", ("Yes",)), ("mme_existence", "r", ("No",)))]
    for text in ("", "banana", "It is not clear, yes"):
        assert score_answers(samples, [[text, text]]).task_means() == {"mme": 0.0}
    assert score_answers(samples, [["YES.", "No, it is not"]]).task_means() == {"mme": 1.0}


def test_every_accepted_answer_counts_whatever_the_metric():
    samples = [
        sample(
            "a",
            ("scienceqa_img", OPTIONS, ("A", "B")),
            ("mme_color", "q", ("No", "Yes")),
            ("gqa", "q", ("left", "on the left")),
        )
    ]
    table = score_answers(samples, [["B", "Yes", "on the left"]])
    assert set(table.task_means().values()) == {1.0}


def test_a_reference_that_is_neither_yes_nor_no_is_compared_as_text():
    samples = [sample("a", ("mme_color", "q", ("It is blue.",)))]
    assert score_answers(samples, [["it is blue"]]).task_means() == {"mme": 1.0}
    assert score_answers(samples, [["it is red"]]).task_means() == {"mme": 0.0}


def test_colons_in_the_name_of_a_task_join_no_tasks():
    samples = [sample("a", ("mine::colour", "q", ("x",)), ("mine::count", "r", ("x",)))]
    table = score_answers(samples, [["x", "y"]])
    assert table.task_means() == {"mine::colour": 1.0, "mine::count": 0.0}


def test_a_few_accepted_answers_are_alternatives_and_ten_are_annotators():
    few = [sample("a", ("vqa", "q", ("cat", "kitten")))]
    assert score_answers(few, [["Kitten."]]).task_means() == {"vqa": 1.0}
    ten = [sample("a", ("vqa", "q", ("cat",) * 2 + ("kitten",) * 8))]
    assert score_answers(ten, [["cat"]]).task_means() == {"vqa": pytest.approx(0.6)}
    named = [sample("a", ("textvqa_val", "q", ("cat",) * 2 + ("kitten",) * 2))]
    assert score_answers(named, [["cat"]]).task_means()["textvqa_val"] < 1


@pytest.mark.parametrize("task", ["existence", "pope_random", "mme_existence"])
@pytest.mark.parametrize(
    "answers",
    [["yes", "no"], ["yes yes yes", "no no"], ["Yes.", "it is not"], ["banana", ""]],
)
def test_score_and_statistics_read_yes_and_no_alike(task, answers):
    """An answer that does not end was 0.0 by its score and 0.593 by its statistics."""
    samples = [sample("a", (task, "q", ("yes",)), (task, "r", ("no",)))]
    statistics = task_details(samples, [answers])[task]
    right = score_answers(samples, [answers])
    part = list(right.parts).index(next(p for p in right.parts if not p.endswith("+")))
    assert statistics["accuracy"] == right.sums[0, part] / right.counts[0, part]


def test_whole_answers_and_first_words_are_scored_apart():
    samples = [sample("a", ("text", "q", ("red box",)), ("text", "r", ("7", "seven")))]
    answers = [["Red, red red", "Seven."]]
    assert score_answers(samples, answers, exact_score).task_means() == {"text": 0.5}
    assert score_answers(samples, answers, first_word_score).task_means() == {"text": 1.0}
    assert score_answers(samples, [["", "8"]], first_word_score).task_means() == {"text": 0.0}
