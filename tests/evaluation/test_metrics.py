import pytest

from autoselect.evaluation.scores import metrics
from autoselect.evaluation.scores.vqa_text import normalise_vqa_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A red  Ball.", "red ball"),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("1,000", "1000"),
        ("blue/green", "blue green"),
        ("blue / green", "blue green"),
        ("well-known", "well known"),
        ("3.5", "3.5"),
        ("end. of", "end of"),
        ("the cat, the dog", "cat dog"),
        ("yes\n", "yes"),
    ],
)
def test_vqa_normalisation_by_hand(text, normal):
    assert normalise_vqa_answer(text) == normal


@pytest.mark.parametrize(
    ("matching", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_leaves_one_annotator_out(matching, score):
    """With m matches, m annotators see m - 1 others and 10 - m see m."""
    answers = ["Two"] * matching + [f"other {i}" for i in range(10 - matching)]
    assert metrics.vqa_soft_accuracy("2.", answers) == pytest.approx(score)


@pytest.mark.parametrize("answers", [["stop"], ["stop", "stop sign"], ["go", "stop", "halt"]])
def test_fewer_answers_than_annotators_can_agree_on_are_alternatives(answers):
    assert metrics.vqa_soft_accuracy("Stop.", answers) == 1.0
    assert metrics.vqa_soft_accuracy("no", answers) == 0.0


def test_exact_match_ignores_case_spaces_and_final_stop():
    assert metrics.exact_match(" A7. ", "a7") == 1.0
    assert metrics.exact_match("A", "A7") == 0.0


def test_yes_no_statistics_by_hand():
    predictions = ["Yes", "yes, it is", "no", "No.", "It is not."]
    answers = ["yes", "no", "yes", "no", "no"]
    assert metrics.yes_no_statistics(predictions, answers) == pytest.approx(
        {"accuracy": 0.6, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.4}
    )


def test_yes_no_statistics_without_any_yes_are_zero():
    found = metrics.yes_no_statistics(["no"], ["no"])
    assert found == {"accuracy": 1, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}


def test_yes_no_statistics_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    predictions = ["yes", "no", "no", "yes", "yes", "no", "yes"] * 3
    answers = ["yes", "yes", "no", "no", "yes", "no", "yes"] * 3
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(
        answers, predictions, pos_label="yes", average="binary"
    )
    found = metrics.yes_no_statistics(predictions, answers)
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(
        (precision, recall, f1)
    )


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", 1),
        ("(C)", 2),
        ("A.", 0),
        ("B. a dog", 1),
        ("B) a dog and a cat", 1),
        ("B: a dog, I think", 1),
        ("B is right", 1),
        ("A is right", 0),
        ("A bird is on the mat", 2),
        ("B a dog", 1),
        ("The answer is C", 2),
        ("Answer: (b)", None),
        ("I think it is (B) here", 1),
        ("a dog", 1),
        ("It shows a cat on a mat", 0),
        ("a cat and a dog", None),
        ("D", None),
        ("", None),
    ],
)
def test_option_parsing(text, option):
    assert metrics.choose_option(text, ["a cat", "a dog", "a bird"]) == option


def test_circular_evaluation_wants_every_rotation_right():
    ids = ["q1", "q1", "q2", "q2"]
    assert metrics.circular_accuracy(ids, [True, True, True, False]) == 0.5


def test_mme_scores_by_hand():
    """Three of four questions right, one of two images wholly right: 75 + 50."""
    score = metrics.mme_subtask_score(["a", "a", "b", "b"], [True, True, True, False])
    assert score == pytest.approx(125)
    totals = metrics.mme_scores({"existence": 125, "OCR": 100, "code_reasoning": 60})
    assert totals == {"perception": 225, "cognition": 60}


def test_edit_distance_by_hand():
    assert metrics.edit_distance("kitten", "sitting") == 3
    assert metrics.edit_distance("", "abc") == 3
    assert metrics.edit_distance("same", "same") == 0


def test_anls_by_hand():
    assert metrics.anls("Hello  World", ["hello world"]) == 1.0
    assert metrics.anls("helo", ["hello", "other"]) == pytest.approx(0.8)
    assert metrics.anls("abcd", ["wxyz"]) == 0.0
    assert metrics.anls("ab", ["abcd"]) == 0.5
    assert metrics.anls("ab", ["abcde"]) == 0.0


QUESTION = "What is shown ?\nA. a cat\nB. a dog\nC. a bird\nAnswer with the letter."


def test_options_are_read_from_the_question():
    assert metrics.parse_options(QUESTION) == ("a cat", "a dog", "a bird")
    assert metrics.parse_options("(A) one\n(B) two") == ("one", "two")
    assert metrics.parse_options("Is it A. or B. ?") == ()
    assert metrics.parse_options("B. second\nA. first") == ()


def test_option_accuracy_compares_options_not_strings():
    assert metrics.option_accuracy("The answer is B", QUESTION, "B") == 1.0
    assert metrics.option_accuracy("a dog", QUESTION, "B") == 1.0
    assert metrics.option_accuracy("A", QUESTION, "B") == 0.0
    assert metrics.option_accuracy("none of them", QUESTION, "B") == 0.0


def test_an_answer_that_names_no_option_agrees_with_itself_alone():
    """The full model's own answer, which may name none, can be the reference."""
    assert metrics.option_accuracy("I cannot tell.", QUESTION, "I cannot tell") == 1.0
    assert metrics.option_accuracy("A", QUESTION, "I cannot tell") == 0.0
    assert metrics.option_accuracy("no idea", QUESTION, "I cannot tell") == 0.0
