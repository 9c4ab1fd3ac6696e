"""The reference LLaVA in vLLM gives the answers of `attach()`, in every mode of the engine."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")

from autoselect.serving.blocks import with_offsets  # noqa: E402
from autoselect.serving.model import PrunedModel  # noqa: E402
from tests.serving.cases import (  # noqa: E402
    Case,
    equal_answers,
    largest_difference,
    one_image,
    several_images,
    truths,
)
from tests.serving.engine import answers, engine, stop  # noqa: E402

K = 16
SCENES = 40
EXACT = 1e-4
END = 2


BUDGETS = (8, K, 0.25, 1.0)
CASES = one_image(SCENES, K) + several_images(10, 2, K)
TEXT = [Case((), case.question, "", K) for case in CASES[:10]]
MIXED = [
    case
    for number, one in enumerate(CASES[::3])
    for case in (replace(one, budget=BUDGETS[number % 4]), TEXT[number % len(TEXT)])
]
"""Budgets 8, 16, a share, all tokens, and text alone, next to each other."""

THREE = several_images(20, 3, K)
GROWING = several_images(20, 3, 17)
"""Prompts of 60 and 61 tokens: those generated need a block of the cache more."""
SMALL = [replace(case, budget=1000) for case in CASES[:10]]


@pytest.fixture(scope="module")
def truth(selector, tmp_path_factory):
    """Return what `attach()` gives for a list of cases."""
    every = [*CASES, *MIXED, *THREE, *GROWING, *SMALL]
    found = truths(tmp_path_factory.mktemp("truth"), selector, every)
    known = dict(zip(every, found, strict=True))
    return lambda cases: [known[case] for case in cases]


@pytest.fixture(scope="module")
def served(native, selector):
    """Return a function that gives the answers of an engine with some settings."""

    def serve(cases, by_request=False, budget=K, **settings):
        llm = engine(native, {"selector": str(selector), "budget": budget}, **settings)
        try:
            return answers(llm, cases, by_request)
        finally:
            stop(llm)

    return serve


def answer_of(ids):
    """Return the tokens before the end of the answer; what follows it means nothing."""
    return ids[: ids.index(END)] if END in ids else ids


def assert_equal(found, truth):
    assert equal_answers(found, truth) == len(truth)
    assert largest_difference(found, truth) < EXACT


def test_answers_and_logprobs_equal_those_of_attach(served, truth):
    assert_equal(served(CASES), truth(CASES))


def test_with_consecutive_positions_the_answers_differ(served, truth, monkeypatch):
    """The control: what vLLM does by itself if only embeddings are removed."""

    def consecutive(_self, tokens, _features):
        return torch.arange(len(tokens)).expand(3, -1), 0

    monkeypatch.setattr(PrunedModel, "get_mrope_input_positions", consecutive)
    monkeypatch.setattr(
        "autoselect.serving.model.with_offsets",
        lambda rows, offsets: with_offsets(rows, torch.zeros_like(offsets)),
    )
    found = served(CASES)
    assert equal_answers(found, truth(CASES)) < len(CASES)
    assert largest_difference(found, truth(CASES)) > 0.5


def test_a_selector_before_the_projector(native, before_projector, tmp_path):
    """Compiled; images of a step are encoded in parts, and requests have their own budgets."""
    cases = [*MIXED[:40], *THREE[:8]]
    settings = {"enforce_eager": False, "max_num_batched_tokens": 450}
    llm = engine(native, {"selector": str(before_projector), "budget": K}, **settings)
    try:
        found = answers(llm, cases, by_request=True)
    finally:
        stop(llm)
    truth = truths(tmp_path / "truth", before_projector, cases)
    assert_equal(found, truth)


def test_compiled(served, truth):
    assert_equal(served(CASES, enforce_eager=False), truth(CASES))


def test_chunks_that_split_images(served, truth):
    found = served(CASES, max_num_batched_tokens=18, max_num_seqs=4)
    assert_equal(found, truth(CASES))


def test_budgets_by_request_and_text_in_one_batch(served, truth):
    assert_equal(served(MIXED, by_request=True), truth(MIXED))


@pytest.mark.parametrize("chunk", [2048, 40])
def test_three_images_behind_a_cached_prefix(served, truth, chunk):
    """Prompts share images, so prefixes end inside and behind them."""
    twice = THREE + THREE
    settings = {"enable_prefix_caching": True, "max_num_batched_tokens": chunk, "max_num_seqs": 4}
    assert_equal(served(twice, **settings), truth(twice))


def test_preempted_requests(native, selector, truth):
    """Eight prompts of two blocks fill the cache, and all want a third for what they generate."""
    llm = engine(
        native,
        {"selector": str(selector), "budget": GROWING[0].budget},
        num_gpu_blocks_override=16,
        max_model_len=128,
        max_num_seqs=40,
        disable_log_stats=False,
    )
    try:
        found = answers(llm, GROWING)
        (preemptions,) = (
            metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"
        )
    finally:
        stop(llm)
    assert preemptions > 0
    assert_equal(found, truth(GROWING))


def test_bfloat16_loses_no_position(served, truth, selector, tmp_path):
    """Rounding changes some answers, about as many as in `attach()` on the same CPU."""

    def changed(found):
        pairs = zip(found, truth(CASES), strict=True)
        return sum(answer_of(own.ids) != answer_of(exact.ids) for own, exact in pairs)

    rounded = changed(truths(tmp_path, selector, CASES, "bfloat16"))
    assert rounded < 0.1 * len(CASES)
    assert changed(served(CASES, dtype="bfloat16")) <= rounded + 0.05 * len(CASES)


def test_an_image_smaller_than_its_budget_keeps_all(served, truth):
    assert_equal(served(SMALL, budget=1000), truth(SMALL))
