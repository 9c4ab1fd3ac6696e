"""Official benchmark files become evaluation shards, and official metrics come out by hand."""

import hashlib
import json
from pathlib import Path

import pytest

from autoselect.cli.main import main
from autoselect.config import ConfigError
from autoselect.data.benchmarks.driver import convert_public
from autoselect.data.benchmarks.table import BENCHMARKS
from autoselect.data.convert import convert_llava
from autoselect.data.shards import ShardSet
from autoselect.evaluation.samples import EvaluationSet
from autoselect.evaluation.scores.metrics import parse_options
from autoselect.evaluation.scores.scoring import score_answers, task_details
from tests.data.official_files import MAKERS, MME_SUBTASKS, mmbench, picture, put


def converted(name: str, root: Path, **settings):
    """Convert a tiny benchmark; return the report and the samples that the evaluator reads."""
    files = MAKERS[name](root / "official")
    report = convert_public(BENCHMARKS[name], files, root / "shards", **settings)
    samples = EvaluationSet.open(str(root / "shards" / "*.tar"))
    return report, list(samples)


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


EXPECTED = {  # rows, questions, tasks
    "vqav2": (2, 3, {"vqav2_val"}),
    "gqa": (1, 2, {"gqa"}),
    "vizwiz": (1, 1, {"vizwiz_vqa_val"}),
    "textvqa": (1, 1, {"textvqa_val"}),
    "scienceqa": (1, 1, {"scienceqa_img"}),
    "pope": (1, 6, {"pope_random", "pope_popular", "pope_adversarial"}),
    "mme": (28, 56, {f"mme_{subtask}" for subtask in MME_SUBTASKS}),
    "mmbench": (2, 5, {"mmbench_en_dev"}),
    "mmbench-cn": (2, 5, {"mmbench_cn_dev"}),
    "seedbench": (1, 1, {"seedbench"}),
    "mmvet": (1, 1, {"mmvet"}),
}


def test_every_benchmark_of_the_table_has_a_fixture():
    assert set(EXPECTED) == set(BENCHMARKS) == set(MAKERS)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_question_arrives(name, tmp_path):
    report, samples = converted(name, tmp_path)
    rows, questions, tasks = EXPECTED[name]
    assert (report.conversion.rows, report.questions, report.lost_questions) == (rows, questions, 0)
    assert len(samples) == report.conversion.samples == rows
    assert sum(len(sample.questions) for sample in samples) == questions
    assert {task for sample in samples for task in sample.tasks} == tasks


@pytest.mark.parametrize("name", ["vqav2", "mme", "mmbench"])
def test_workers_and_repetition_do_not_change_the_bytes(name, tmp_path):
    files = MAKERS[name](tmp_path / "official")
    benchmark = BENCHMARKS[name]
    for workers in (1, 2):
        convert_public(
            benchmark, files, tmp_path / f"out{workers}", samples_per_shard=1, workers=workers
        )
    once = content(tmp_path / "out1")
    names = {n: h for n, h in once.items() if not n.startswith(".convert/plan")}
    other = content(tmp_path / "out2")
    if benchmark.store_pictures is None:  # the plan names the folder of the images
        assert once == other
    assert names == {n: h for n, h in other.items() if not n.startswith(".convert/plan")}
    first = tmp_path / "out1" / "shard-000000.tar"
    first.unlink()
    convert_public(benchmark, files, tmp_path / "out1", samples_per_shard=1)
    assert content(tmp_path / "out1") == once


def test_missing_and_broken_images_are_listed_with_their_questions(tmp_path):
    files = MAKERS["vqav2"](tmp_path)
    (files["images"] / "COCO_val2014_000000000042.jpg").unlink()
    report = convert_public(BENCHMARKS["vqav2"], files, tmp_path / "a")
    assert (report.conversion.samples, report.lost_questions) == (1, 2)
    assert report.conversion.rejected[0].id == "COCO_val2014_000000000042.jpg"
    files = MAKERS["mmbench"](tmp_path)
    text = files["questions"].read_text().splitlines()
    cells = text[2].split("\t")
    cells[9] = "not base64!" + "x" * 80
    put(files["questions"], "\n".join([text[0], text[1], "\t".join(cells)]) + "\n")
    report = convert_public(BENCHMARKS["mmbench"], files, tmp_path / "b")
    assert [(one.id, one.kind) for one in report.conversion.rejected] == [("252", "undecodable")]


def test_the_command_says_what_became_of_every_question(tmp_path, capsys):
    files = MAKERS["pope"](tmp_path)
    (files["images"] / "COCO_val2014_000000310196.jpg").write_bytes(b"<html>")
    flags = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    command = ["shards", "convert-pope", *flags, "--output", str(tmp_path / "out")]
    assert main([*command, "--workers", "1"]) == 1
    said, error = capsys.readouterr()
    assert error.startswith("autoselect: max_rejected=0.001 is exceeded: 1 of 1 rows cannot be")
    assert error.endswith("rejected.jsonl lists, then convert into an empty folder\n")
    assert "6 questions in 1 rows; 0 samples in 0 shards; 1 rows with 6 questions rejected" in said
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["kind"] == "undecodable"


def test_files_that_are_not_the_official_ones_are_refused(tmp_path):
    files = MAKERS["gqa"](tmp_path)
    put(files["questions"], {"1": {"question": "Is it?", "imageId": "n161313"}})
    with pytest.raises(ConfigError, match="no 'answer'.*take the validation split"):
        convert_public(BENCHMARKS["gqa"], files, tmp_path / "out")
    put(files["questions"], "<html>")
    with pytest.raises(ConfigError, match="is not JSON"):
        convert_public(BENCHMARKS["gqa"], files, tmp_path / "out")
    with pytest.raises(ConfigError, match="images=.* is not a folder"):
        convert_public(BENCHMARKS["gqa"], files | {"images": tmp_path / "no"}, tmp_path / "out")
    (tmp_path / "mme" / "existence").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no texts for the subtask existence"):
        convert_public(BENCHMARKS["mme"], {"images": tmp_path / "mme"}, tmp_path / "out")
    files = MAKERS["mmbench"](tmp_path)
    put(files["questions"], files["questions"].read_text().replace("\tB\t", "\tnan\t"))
    with pytest.raises(ConfigError, match="none of its options; the test split"):
        convert_public(BENCHMARKS["mmbench"], files, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.tar"))


def test_a_conversion_that_is_refused_changes_nothing_of_the_one_in_the_folder(tmp_path):
    files = MAKERS["vqav2"](tmp_path / "official")
    convert_public(BENCHMARKS["vqav2"], files, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(ConfigError, match="holds a conversion with other settings"):
        convert_public(BENCHMARKS["gqa"], MAKERS["gqa"](tmp_path / "gqa"), tmp_path / "out")
    pictured = MAKERS["mmbench"](tmp_path / "mmbench")
    with pytest.raises(ConfigError, match="holds a conversion with other settings"):
        convert_public(BENCHMARKS["mmbench"], pictured, tmp_path / "out")
    for name, official in (("vqav2", files), ("mmbench", pictured)):
        with pytest.raises(ConfigError, match="samples_per_shard=0 is below 1"):
            convert_public(BENCHMARKS[name], official, tmp_path / "new", samples_per_shard=0)
    assert content(tmp_path / "out") == before and not (tmp_path / "new").exists()


def test_vqa_soft_accuracy_leaves_each_annotator_out_once(tmp_path):
    _, samples = converted("vqav2", tmp_path)
    assert samples[0].questions[0] == (
        "Where is he?\nAnswer the question using a single word or phrase."
    )
    # "down": 9 of 10 agree. "Two dogs." is the answer of two annotators: for each of them one
    # other agrees (1/3), for the eight others two do (2/3): (2 * 1/3 + 8 * 2/3) / 10 = 0.6.
    table = score_answers(samples, [["Down.", "no"], ["the 2 dogs"]])
    assert table.sums.tolist() == [[1.0], [pytest.approx(0.6)]]
    # One of ten said "at table": for nine others 1/3, for that one 0.
    assert score_answers(samples, [["at table", ""], [""]]).sums[0, 0] == pytest.approx(0.3)


def test_text_is_prompted_and_scored_as_published(tmp_path):
    _, (sample,) = converted("textvqa", tmp_path)
    assert sample.questions == (
        "What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL\n"
        "Answer the question using a single word or phrase.",
    )
    assert score_answers([sample], [["Dakota"]]).sums[0, 0] == 1.0
    # Said by one of ten.
    assert score_answers([sample], [["dakota digital"]]).sums[0, 0] == pytest.approx(0.3)
    _, (sample,) = converted("vizwiz", tmp_path / "vizwiz")
    assert "respond with 'Unanswerable'." in sample.questions[0]
    assert score_answers([sample], [["unanswerable"]]).sums[0, 0] == 1.0
    # Two of ten: (2 * 1/3 + 8 * 2/3) / 10.
    assert score_answers([sample], [["blurry"]]).sums[0, 0] == pytest.approx(0.6)


def test_gqa_is_exact_match(tmp_path):
    _, (sample,) = converted("gqa", tmp_path)
    assert score_answers([sample], [["No", "the woman"]]).task_means() == {"gqa": 0.5}


def test_science_options_are_found_in_the_question(tmp_path):
    _, (sample,) = converted("scienceqa", tmp_path)
    assert sample.questions[0].startswith("Context: Look at\nthe map.\nWhat is the capital")
    assert parse_options(sample.questions[0]) == ("Phoenix", "Baton Rouge", "Honolulu", "Cheyenne")
    for said, right in (("D", 1), ("D. Cheyenne", 1), ("Cheyenne", 1), ("A", 0), ("Dakota", 0)):
        assert score_answers([sample], [[said]]).sums[0, 0] == right, said


def test_pope_reports_f1_and_yes_ratio_per_category(tmp_path):
    _, (sample,) = converted("pope", tmp_path)
    details = task_details([sample], [["Yes", "No", "yes", "yes", "no", "no"]])
    assert sample.tasks[::2] == ("pope_random", "pope_popular", "pope_adversarial")
    everything = {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0, "yes_ratio": 0.5}
    assert details["pope_random"] == everything
    # Yes to both: precision 1/2, recall 1, F1 = 2/3.
    assert details["pope_popular"]["f1"] == pytest.approx(2 / 3)
    assert details["pope_popular"]["yes_ratio"] == 1.0
    assert details["pope_adversarial"]["f1"] == 0.0


def test_mme_adds_accuracy_and_accuracy_plus(tmp_path):
    _, samples = converted("mme", tmp_path)
    answers = [["Yes", "No"] for _ in samples]
    details = task_details(samples, answers)["mme"]
    assert (details["perception"], details["cognition"]) == (2000.0, 800.0)
    # One of four questions of `existence` wrong: accuracy 3/4; one of two images: accuracy+ 1/2.
    answers[0] = ["Yes", "Yes"]
    details = task_details(samples, answers)["mme"]
    assert details["existence"] == pytest.approx(125.0)
    assert details["perception"] == pytest.approx(1925.0)


def test_mmbench_counts_a_question_only_when_every_rotation_is_right(tmp_path):
    _, samples = converted("mmbench", tmp_path)
    first, second = samples
    assert [parse_options(text) for text in second.questions] == [
        ("cat", "dog", "cow"),
        ("dog", "cow", "cat"),
        ("cow", "cat", "dog"),
    ]
    assert second.questions[0].startswith("The passage.\nWhat is it?\nA. cat")
    assert [answers[0] for answers in second.answers] == ["C", "B", "A"]
    assert [answers[0] for answers in first.answers] == ["B", "A"]
    details = task_details(samples, [["B", "A"], ["C", "C", "A"]])
    assert details["mmbench_en_dev"]["circular_accuracy"] == 0.5
    assert details["mmbench_en_dev"]["accuracy"] == pytest.approx(4 / 5)
    assert score_answers(samples, [["B", "A"], ["C", "C", "A"]]).mean() == 0.5


def test_mmbench_rotations_of_the_file_are_used_as_they_are(tmp_path):
    files = mmbench(tmp_path, rotated=True)
    convert_public(BENCHMARKS["mmbench"], files, tmp_path / "out")
    samples = EvaluationSet.open(str(tmp_path / "out" / "*.tar"))
    assert [answers[0] for answers in samples[1].answers] == ["C", "B"]
    assert samples.read(1).record["question_ids"] == ["252", "1000252"]
    assert samples.read(1).images == (picture(6),)


def test_llava_665k_in_its_folder_layout(tmp_path):
    images = [
        "coco/train2017/000000033471.jpg",
        "gqa/images/2354786.jpg",
        "ocr_vqa/images/140031996.jpg",
        "textvqa/train_images/011e7e629fb9ae7b.jpg",
        "vg/VG_100K/2.jpg",
        "vg/VG_100K_2/1.jpg",
    ]
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    rows = [{"id": name, "image": name, "conversations": turns} for name in images]
    for number, name in enumerate(images):
        put(tmp_path / "data" / name, picture(number))
    text_only = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    rows.append({"id": "wgByO4Y_0", "model": "", "conversations": text_only})
    source = put(tmp_path / "llava_v1_5_mix665k.json", rows)
    report = convert_llava(source, [tmp_path / "data"], tmp_path / "out")
    assert (report.samples, report.rejected) == (7, [])
    shards = ShardSet.open(str(tmp_path / "out"))
    assert [len(shards[number].images) for number in range(7)] == [1] * 6 + [0]
