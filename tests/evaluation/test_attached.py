"""Evaluation through `attach`: equal to the common path where both go, open to other families."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from autoselect.cli import main as cli
from autoselect.config import ConfigError, ScorerConfig
from autoselect.data.shards import ShardWriter
from autoselect.evaluation import commands, run
from autoselect.evaluation.answers import attached
from autoselect.evaluation.answers.answering import Plan, answer_part
from autoselect.evaluation.answers.attached import answer_attached
from autoselect.evaluation.latency import attached as attached_latency
from autoselect.evaluation.latency.protocol import LatencyPlan
from autoselect.evaluation.latency.timing import Timing
from autoselect.evaluation.loading import LoadedSelector, load_pair
from autoselect.evaluation.methods.registry import METHODS, selector_method
from autoselect.evaluation.report.check import check_report
from autoselect.evaluation.run import evaluate
from autoselect.evaluation.samples import EvaluationSet
from autoselect.evaluation.settings import EvalSettings
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.reference.corpus import to_jpeg
from autoselect.reference.scenes import make_scene
from autoselect.vlm import FrozenVLM
from tests.vlm import tiny_processors
from tests.vlm.stock import model_of
from tests.vlm.tiny_prompts import WIDTH


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(LatencyPlan, "rounds", lambda plan, device: (2, 0))


def test_it_gives_the_answers_of_the_common_path(model_folder, selector_folder, shards):
    vlm, selector = load_pair(model_folder, selector_folder, "cpu")
    selector.diversity = 0.4
    methods = (selector_method(selector), METHODS["divprune"], METHODS["norm"])
    plan = Plan(methods, (8, 40), rows_per_batch=7, max_new_tokens=3)
    samples = list(EvaluationSet.open(shards))
    expected, found = answer_part(vlm, samples, plan), answer_attached(vlm, samples, plan, 144)
    assert set(found) == set(expected)
    assert {c: t for c, t in found.items() if "blind" not in c} == {
        c: t for c, t in expected.items() if "blind" not in c
    }
    assert getattr(vlm.model, "autoselect", None) is None, "the model is what it was"


@pytest.mark.parametrize("name", ["idefics3", "qwen2_5_vl", "qwen3_vl"])
def test_the_full_prefill_is_the_untouched_model(name, monkeypatch):
    """What pruning alone needs is not counted on its side."""
    vlm = FrozenVLM(model_of(name), getattr(tiny_processors, name)(), name)
    selector = Selector(Scorer(WIDTH, ScorerConfig(hidden_size=16, num_heads=2))).eval()
    calls = {}

    def measure(given, *rest):
        calls.update(given)
        return {call: Timing((1.0,)) for call in given}

    monkeypatch.setattr(attached_latency, "measure", measure)
    image, question = make_scene(0, "test", 0).image, "what ?"
    asked = attached_latency.AskedVLM(vlm)
    inputs = asked.inputs([[image]], [asked.prompt(1, question)])
    with torch.inference_mode():
        attached_latency.attached_latency(vlm, selector, image, question, LatencyPlan((2,)))
        stock = vlm.model(**inputs).logits[:, -1]
        pruned = calls["prefill@2"]().logits[:, -1]
        assert calls["selector@2"]().sum() < inputs["input_ids"].numel()
        monkeypatch.delattr(attached_latency, "prune_call")
        full = calls["full_prefill"]().logits[:, -1]
    torch.testing.assert_close(full, stock)
    assert not torch.allclose(pruned, stock)


@pytest.fixture(params=["idefics3", "qwen2_5_vl", "qwen3_vl"])
def other_family(request, monkeypatch, shards, tmp_path):
    """Settings that evaluate a tiny model of another family."""
    name = request.param
    torch.manual_seed(0)
    selector = Selector(Scorer(WIDTH, ScorerConfig(hidden_size=16, num_heads=2))).eval()
    vlm = FrozenVLM(model_of(name), getattr(tiny_processors, name)(), name)
    loaded = {"autoselect": LoadedSelector(selector, "0")}
    monkeypatch.setattr(run, "load_selectors", lambda *_: (vlm, loaded))
    settings = EvalSettings(name, "s", shards, "25%,100%", str(tmp_path / "out"), tracking=False)
    return dataclasses.replace(settings, methods="random,grid,divprune", random_seeds=1)


def test_families_with_prompts_of_their_own_are_evaluated(other_family):
    assert evaluate(other_family) is not None
    out = Path(other_family.out)
    report = json.loads((out / "report.json").read_text())
    check_report(report)
    count = report["num_tokens"]
    assert {row["budget"] for row in report["rows"]} == {round(0.25 * count), count}
    assert {row["method"] for row in report["rows"]} == {"autoselect", "random", "grid", "divprune"}
    for line in (out / "predictions.jsonl").read_text().splitlines():
        given = json.loads(line)["predictions"]
        assert given[f"autoselect@{count}#0"] == given["full@0#0"], "K = N is the untouched model"
    for row in report["latency"]["pruned"]:
        assert row["prefill_ms"] > 0 and row["selector_ms"] > 0 and row["speedup"] > 0
    few, full = report["latency"]["pruned"][0], report["latency"]["full"]
    assert few["kv_cache_bytes"] < full["kv_cache_bytes"]
    assert (out / "figures" / "retention.png").is_file() and (out / "report.html").is_file()


def test_what_cannot_be_attached_is_refused_by_name(other_family):
    with pytest.raises(ConfigError, match="methods=visionzip: the model's own processor"):
        evaluate(dataclasses.replace(other_family, methods="visionzip"))
    with pytest.raises(ConfigError, match="scoring=likelihood needs a model whose images"):
        evaluate(dataclasses.replace(other_family, scoring="likelihood"))


def test_analyses_of_rasters_are_refused_by_name(other_family, monkeypatch, tmp_path):
    vlm, loaded = run.load_selectors()
    monkeypatch.setattr(commands, "load_pair", lambda *_: (vlm, loaded["autoselect"].selector))
    words = ["analyse", "frequency", "--model", "m", "--selector", "s", "--budgets", "25%"]
    words += ["--shards", other_family.shards, "--out", str(tmp_path)]
    arguments = cli.parser("analyse").parse_args(words)
    with pytest.raises(ConfigError, match="frequency needs a model whose images all have the same"):
        arguments.run(arguments)


@pytest.fixture
def pairs_and_singles(tmp_path):
    """Questions about two images beside questions about one."""
    with ShardWriter(str(tmp_path / "pairs")) as writer:
        for index, count in enumerate((1, 2, 2)):
            scenes = [make_scene(0, "test", 10 * index + place) for place in range(count)]
            turns = [
                {"from": "human", "value": " and ".join(["<image>"] * count) + " have a circle ?"},
                {"from": "gpt", "value": "yes"},
                {"from": "human", "value": "which colour ?"},
                {"from": "gpt", "value": "red"},
            ]
            record = {"id": str(index), "conversations": turns}
            writer.write(f"{index:04d}", record, [to_jpeg(scene.image) for scene in scenes])
    return str(tmp_path / "pairs")


def test_questions_about_several_images(
    model_folder, selector_folder, pairs_and_singles, tmp_path, monkeypatch
):
    """A budget holds for each image, and all of them reach the model."""
    seen = []
    real = attached.AskedVLM.inputs

    def inputs(asked, images, texts):
        encoded = real(asked, images, texts)
        counts = (encoded["input_ids"] == asked.vlm.image_token_id).sum(dim=1).tolist()
        seen.append((sorted(len(row) for row in images), sorted(counts)))
        return encoded

    monkeypatch.setattr(attached.AskedVLM, "inputs", inputs)
    out = tmp_path / "out"
    settings = EvalSettings(
        model_folder, selector_folder, pairs_and_singles, "8,144", str(out), tracking=False
    )
    settings = dataclasses.replace(settings, methods="random,divprune", random_seeds=1)
    assert evaluate(settings) is not None
    asked_together = [counts for rows, counts in seen if rows == [1, 1, 2, 2, 2, 2]]
    assert asked_together and all(c == [144, 144, 288, 288, 288, 288] for c in asked_together)
    single, pair, _ = EvaluationSet.open(pairs_and_singles)
    assert pair.questions[0] == "and  have a circle ?", "as reports show it"
    assert pair.asked(0) == "<image> and <image> have a circle ?", "as the model is asked it"
    assert single.asked(0) == single.questions[0] == "have a circle ?"
    check_report(json.loads((out / "report.json").read_text()))
    for line in (out / "predictions.jsonl").read_text().splitlines():
        given = json.loads(line)["predictions"]
        for method in ("autoselect", "random", "divprune"):
            assert given[f"{method}@144#0"] == given["full@0#0"], "K = N is the untouched model"
    with pytest.raises(ConfigError, match="scoring=likelihood needs .* one image per sample"):
        evaluate(dataclasses.replace(settings, scoring="likelihood"))
    words = ("--model", model_folder, "--selector", selector_folder, "--budgets", "8")
    words = ("analyse", "similarity", *words, "--shards", pairs_and_singles, "--out", str(out))
    arguments = cli.parser("analyse").parse_args(list(words))
    with pytest.raises(ConfigError, match="samples of several images; this analysis looks at"):
        arguments.run(arguments)
