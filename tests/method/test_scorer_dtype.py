"""The Scorer at inference: dtype of the tokens, float32 scores, no graph breaks."""

import copy

import pytest
import torch

from autoselect import Selector
from autoselect.config import ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.ops import checks


@pytest.fixture
def selector():
    torch.manual_seed(0)
    return Selector(Scorer(32, ScorerConfig(hidden_size=32, num_heads=2))).eval()


def tokens_of(dtype=torch.float32):
    return torch.randn(2, 96, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_scores_of_bfloat16_tokens_are_float32_and_near_those_of_float32(selector):
    exact, rounded = selector.score(tokens_of()), selector.score(tokens_of(torch.bfloat16))
    assert rounded.dtype == torch.float32
    assert len(rounded.unique()) > 0.98 * rounded.numel()
    assert len(rounded.bfloat16().unique()) < 0.98 * rounded.numel()
    assert float((exact - rounded).std()) < 0.03 * float(exact.std())


def test_weights_and_their_dtype_are_those_that_were_saved(selector, tmp_path):
    before = copy.deepcopy(selector.state_dict())
    selector.score(tokens_of(torch.bfloat16))
    after = selector.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    selector.save_pretrained(tmp_path)
    loaded = Selector.from_pretrained(tmp_path)
    assert torch.equal(loaded.score(tokens_of()), selector.score(tokens_of()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_scores_with_its_own_weights(selector, dtype):
    """A copy made after scores were given follows its weights, also if they change in place."""
    tokens = tokens_of(dtype)
    before = selector.score(tokens)
    other = copy.deepcopy(selector)
    with torch.no_grad():
        for weight in other.scorer.parameters():
            weight.mul_(0.5)
    fresh = Selector(Scorer(32, ScorerConfig(hidden_size=32, num_heads=2))).eval()
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(other.score(tokens), fresh.score(tokens))
    assert not torch.equal(other.score(tokens), before)
    assert torch.equal(selector.score(tokens), before)


def test_other_weights_give_other_scores_in_every_dtype(selector):
    tokens = tokens_of(torch.bfloat16)
    first = selector.score(tokens)
    assert torch.equal(selector.score(tokens), first)
    doubled = {name: 2 * value for name, value in selector.state_dict().items()}
    selector.load_state_dict(doubled)
    second = selector.score(tokens)
    assert not torch.allclose(first, second)
    selector.train()
    with torch.no_grad():
        selector.scorer.score.weight.zero_()
    assert float(selector.eval().score(tokens).std()) < 1e-6 < float(second.std())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_scorer_and_selection_are_one_graph(dtype, layers, masked):
    scorer = Scorer(32, ScorerConfig(hidden_size=32, num_layers=layers, num_heads=2))
    selector, tokens = Selector(scorer).eval(), tokens_of(dtype)
    mask = torch.arange(96) < torch.tensor([[96], [40]]) if masked else None
    kept, positions = selector.select(tokens, 8, mask)
    compiled = torch.compile(selector.select, fullgraph=True, dynamic=False, backend="eager")
    assert all(map(torch.equal, compiled(tokens, 8, mask), (kept, positions)))


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_inference_gives_what_the_modules_give_in_training(layers, masked):
    torch.manual_seed(0)
    scorer = Scorer(32, ScorerConfig(hidden_size=32, num_layers=layers, num_heads=2))
    mask = torch.arange(96) < torch.tensor([[96], [40]]) if masked else None
    expected = scorer(tokens_of(), mask)
    torch.testing.assert_close(scorer.infer(tokens_of(), mask), expected.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eval_of_a_selector_in_use_derives_nothing_again(selector, dtype):
    selector.score(tokens_of(dtype))
    derived = selector.scorer.fitted(tokens_of(dtype))
    assert selector.eval().scorer.fitted(tokens_of(dtype)) is derived
    selector.train()
    assert selector.eval().scorer.fitted(tokens_of(dtype)) is not derived


def trained_on(scorer):
    optimizer = torch.optim.SGD(scorer.parameters(), lr=0.1)
    scorer(tokens_of()).square().sum().backward()
    optimizer.step()


def loaded_in_part(scorer):
    state = scorer.score.state_dict()
    scorer.score.load_state_dict({name: 2 * value for name, value in state.items()})


@pytest.mark.parametrize("dtype", checks.FLOAT_DTYPES)
@pytest.mark.parametrize("write", [trained_on, loaded_in_part])
@pytest.mark.parametrize("inference_mode", [False, True])
def test_weights_written_in_place_are_seen(selector, dtype, write, inference_mode):
    scorer, tokens = selector.scorer, tokens_of(dtype)
    with torch.inference_mode(inference_mode):
        before = scorer.infer(tokens)
    write(scorer)
    with torch.inference_mode(inference_mode):
        after = scorer.infer(tokens)
    assert torch.equal(after, copy.deepcopy(scorer).infer(tokens))
    assert not torch.equal(after, before)


def test_compiled_scores_follow_weights_written_in_place(selector):
    tokens = tokens_of(torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(selector.scorer.infer, fullgraph=True, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(tokens), selector.scorer.infer(tokens))
        trained_on(selector.scorer)


@pytest.mark.parametrize("dtype", checks.FLOAT_DTYPES)
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_changes_no_score(selector, dtype, compiled):
    infer, tokens = selector.scorer.infer, tokens_of(dtype)
    if compiled:
        torch._dynamo.reset()
        infer = torch.compile(infer, fullgraph=True, backend="eager")
    expected = infer(tokens)
    for rounded in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", rounded):
            assert torch.equal(infer(tokens), expected)


def test_scores_in_training_are_float32_under_autocast(selector):
    with torch.autocast("cpu", torch.bfloat16):
        scores = selector.scorer(tokens_of())
    assert scores.dtype == torch.float32
    assert len(scores.unique()) > 0.98 * scores.numel()


def test_weights_made_in_inference_mode_give_scores():
    with torch.inference_mode():
        scorer = Scorer(32, ScorerConfig(hidden_size=32, num_heads=2))
        scorer.infer(tokens_of())
        for dtype in checks.FLOAT_DTYPES:
            found = scorer.infer(tokens_of(dtype))
            assert torch.equal(found, copy.deepcopy(scorer).infer(tokens_of(dtype)))


@pytest.mark.parametrize("shape", [(0, 5, 32), (2, 0, 32), (0, 0, 32)])
@pytest.mark.parametrize("layers", [0, 2])
def test_empty_tensors(shape, layers):
    scorer = Scorer(32, ScorerConfig(hidden_size=32, num_layers=layers, num_heads=2))
    for dtype in checks.FLOAT_DTYPES:
        assert scorer.infer(torch.zeros(shape, dtype=dtype)).shape == shape[:2]
    assert scorer(torch.zeros(shape)).shape == shape[:2]


def test_scores_survive_that_another_thread_forgets_derived_weights(selector):
    """Threads that score first at the same time all find other weights than before."""

    class Forgotten(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            self.clear()

    before = selector.score(tokens_of())
    selector.scorer._fitted = Forgotten()
    assert torch.equal(selector.score(tokens_of()), before)
