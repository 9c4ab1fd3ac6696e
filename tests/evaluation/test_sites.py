"""Evaluation of selectors at earlier sites: what is answered, and what is timed."""

import pytest
import torch

from autoselect import ConfigError, Selector, attach, detach
from autoselect.config import ScorerConfig
from autoselect.evaluation.analyses.fidelity import learned_positions
from autoselect.evaluation.answers.answering import FULL, Column, Plan, answer_part
from autoselect.evaluation.answers.asking import AskedVLM
from autoselect.evaluation.latency.bench import fixed_image
from autoselect.evaluation.latency.protocol import LatencyPlan, latency_report
from autoselect.evaluation.methods.registry import METHODS, selector_method
from autoselect.evaluation.report.latency import latency_notes, latency_table
from autoselect.evaluation.samples import EvaluationSet
from autoselect.method.scorer import Scorer
from autoselect.vlm import FrozenVLM

SITES = ("before_projector", "before_encoder")


@pytest.fixture(scope="module")
def vlm(model_folder):
    return FrozenVLM.from_pretrained(model_folder)


def selector_at(vlm, site):
    torch.manual_seed(1)
    scorer = Scorer(vlm.width_at(site), ScorerConfig(hidden_size=16, num_heads=2))
    return Selector(scorer, {"model": "test"}, site=site).eval()


@pytest.mark.parametrize("site", SITES)
def test_the_evaluator_answers_as_the_attached_model_does(vlm, shards, site):
    selector, asked = selector_at(vlm, site), AskedVLM(vlm)
    samples = list(EvaluationSet.open(shards))[:2]
    plan = Plan((selector_method(selector),), (6, 144), 144)
    answers = answer_part(asked, samples, plan)
    assert answers[str(Column("autoselect", 144))] == answers[str(Column(FULL, 0))]
    texts = [asked.prompt(1, sample.asked(0)) for sample in samples]
    inputs = vlm.inputs([sample.images for sample in samples], texts)
    attach(vlm.model, selector, 6)
    try:
        given = asked.generate(inputs, None, {"max_new_tokens": 16, "do_sample": False})
    finally:
        detach(vlm.model)
    assert given == [own[0].text for own in answers[str(Column("autoselect", 6))]]


def test_the_oracle_can_stand_before_the_encoder(vlm, shards):
    samples = list(EvaluationSet.open(shards))[:2]
    plan = Plan((METHODS["oracle"], METHODS["oracle_before_encoder"]), (144,), 144)
    answers = answer_part(AskedVLM(vlm), samples, plan)
    full = answers[str(Column(FULL, 0))]
    assert answers[str(Column("oracle_before_encoder", 144))] == full


def test_encoder_selection_and_prefill_are_timed_apart(vlm):
    plan = LatencyPlan((4, 16), 2, repeats=2, warmup=0)
    report = latency_report(vlm, selector_at(vlm, "before_encoder"), fixed_image(), "a ?", plan)
    assert report["site"] == "before_encoder"
    rows = [report["full"], *report["pruned"]]
    for row in rows:
        assert min(row[f"{part}_ms"] for part in ("vision", "prefill", "first_token")) > 0
    for row in report["pruned"]:
        kept = report["timings"][f"vision@{row['budget']}"]["median_ms"]
        assert row["vision_ms"] == pytest.approx(report["timings"]["patches"]["median_ms"] + kept)
        assert row["selector_ms"] > 0
    head, cells = latency_table({"latency": report, "num_tokens": 144})
    assert head[1:4] == ["vision ms", "selector ms", "prefill ms"] and len(cells) == 3
    assert "kept patches only" in latency_notes(report)[0]
    other = latency_report(vlm, selector_at(vlm, "before_projector"), fixed_image(), "a ?", plan)
    assert (
        "vision_ms" not in other["full"]
        and "selector ms (in prefill)" in latency_table({"latency": other, "num_tokens": 144})[0]
    )


def test_an_analysis_of_projector_outputs_refuses_a_selector_of_another_site(vlm):
    with pytest.raises(ConfigError, match="selector.site=before_encoder"):
        learned_positions(selector_at(vlm, "before_encoder"))
