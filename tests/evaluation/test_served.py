"""What a vLLM engine cannot evaluate is refused by name, before anything is loaded."""

import dataclasses

import pytest

from autoselect.config import ConfigError
from autoselect.evaluation.answers import served
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.loading import load_pair
from autoselect.evaluation.samples import EvaluationSet
from autoselect.evaluation.settings import EvalSettings

SETTINGS = EvalSettings("m", "s", "shards", "8", "out", methods="none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engine": "sglang"}, "engine='sglang' is unknown; choose one of transformers, vllm"),
        ({"methods": "random,norm"}, r"engine=vllm.*\(random, norm\); use methods=none"),
        ({"methods": "all"}, "methods=all cannot run in engine=vllm.*use methods=none"),
        ({"scoring": "likelihood"}, "scoring=likelihood needs likelihoods"),
        ({"audit": 3}, "audit=3 needs likelihoods"),
    ],
)
def test_settings_that_the_engine_cannot_serve_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SETTINGS, **{"engine": "vllm", **change})


def test_transformers_needs_none_of_this():
    dataclasses.replace(SETTINGS, methods="all", scoring="likelihood", audit=3)


def test_several_selectors_sites_and_processes_are_refused(
    model_folder, selector_folder, shards, monkeypatch
):
    monkeypatch.setattr(served, "check_installation", lambda: None)
    vlm, selector = load_pair(model_folder, selector_folder, "cpu")
    asked, sample = AskedVLM(vlm), EvaluationSet.open(shards)[0]
    served.check_served({"autoselect": selector}, asked, sample, 1)
    with pytest.raises(ConfigError, match="one process, here are 2"):
        served.check_served({"autoselect": selector}, asked, sample, 2)
    with pytest.raises(ConfigError, match="here are autoselect, autoselect:b"):
        served.check_served({"autoselect": selector, "autoselect:b": selector}, asked, sample, 1)
    selector.site = "before_encoder"
    with pytest.raises(ConfigError, match="before_encoder cannot prune .* engine=transf"):
        served.check_served({"autoselect": selector}, asked, sample, 1)
