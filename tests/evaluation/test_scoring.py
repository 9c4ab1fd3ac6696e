import pytest
from PIL import Image

from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scoring import score_answers, task_details

IMAGE = Image.new("RGB", (8, 8))
OPTIONS = "Which ?\nA. a cat\nB. a dog"


def sample(key, *rounds):
    """Rounds are (task, question, accepted answers)."""
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
    assert details["mmbench_en_dev"] == {"circular_accuracy": 0.5}
