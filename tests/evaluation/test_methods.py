import dataclasses

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.evaluation.methods.choice import context_of
from autoselect.evaluation.methods.context import PATCHES, SelectionContext
from autoselect.evaluation.methods.coverage import (
    greedy_determinant,
    grid_positions,
    oracle_positions,
    square_pieces,
)
from autoselect.evaluation.methods.names import METHOD_NAMES, ORACLES
from autoselect.evaluation.methods.registry import METHODS, choose_methods
from tests.evaluation.fakes import GRID, FakeAsked, make_samples

N = GRID * GRID
MERGING = {name for name, method in METHODS.items() if method.merges}


def context(seed: int = 0) -> SelectionContext:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(3, N, 5, generator=generator)
    return SelectionContext(
        tokens=tokens,
        keys=("a", "b", "c"),
        grid=(GRID, GRID),
        class_attention=torch.rand(3, N, generator=generator),
        llm_attention=torch.rand(3, N, generator=generator),
        question=torch.randn(3, 5, generator=generator),
        boxes=(
            ((0.1, 0.1, 0.3, 0.3),),
            ((0.5, 0.5, 1.0, 0.8), (0.0, 0.0, 0.2, 0.2)),
            ((0.4, 0.0, 0.5, 0.9),),
        ),
        at_site={PATCHES: tokens / 2},
        onward={"before_encoder": lambda patches: patches * 2},  # a tower that mixes no patches
    )


def test_help_texts_name_every_method():
    assert tuple(METHODS) == METHOD_NAMES
    assert {name for name, method in METHODS.items() if "boxes" in method.needs} == set(ORACLES)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 7, 16, N])
def test_every_method_keeps_exactly_the_budget_in_image_order(name, budget):
    kept = METHODS[name].keep(context(), budget)
    assert kept.tokens.shape == (3, budget, 5)
    assert kept.positions.shape == (3, budget)
    assert bool((kept.positions.diff(dim=1) > 0).all())
    assert 0 <= int(kept.positions.min()) and int(kept.positions.max()) < N
    if name not in MERGING:
        expected = context().tokens.gather(1, kept.positions[..., None].expand(-1, -1, 5))
        assert torch.equal(kept.tokens, expected)


@pytest.mark.parametrize("name", METHODS)
def test_keeping_all_tokens_changes_nothing(name):
    kept = METHODS[name].keep(context(), N)
    assert torch.equal(kept.positions, torch.arange(N).expand(3, -1))
    torch.testing.assert_close(kept.tokens, context().tokens)


@pytest.mark.parametrize("name", METHODS)
def test_rows_do_not_depend_on_their_neighbours(name):
    whole = METHODS[name].keep(context(), 9)
    order = torch.tensor([2, 0])
    rows = {
        name: [value[i] for i in order] if isinstance(value, tuple) and name != "grid" else value
        for name, value in vars(context()).items()
    }
    tensors = {name: v[order] for name, v in rows.items() if isinstance(v, torch.Tensor)}
    at_site = {site: features[order] for site, features in context().at_site.items()}
    rows = SelectionContext(**{**rows, **tensors, "at_site": at_site})
    part = METHODS[name].keep(rows, 9)
    assert torch.equal(part.positions, whole.positions[order])
    torch.testing.assert_close(part.tokens, whole.tokens[order])


def test_random_depends_on_seed_and_key_only():
    first = METHODS["random"].keep(context(), 6).positions
    again = METHODS["random"].keep(context(seed=9), 6).positions
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    other = METHODS["random"].keep(SelectionContext(**{**context().__dict__, "seed": 1}), 6)
    assert not torch.equal(first, other.positions)


def test_grid_positions_by_hand():
    assert grid_positions((4, 4), 16, 4).tolist() == [5, 7, 13, 15]
    assert grid_positions((12, 12), 144, 144).tolist() == list(range(144))
    assert grid_positions(None, 10, 2).tolist() == [2, 7]
    assert grid_positions((2, 6), 12, 12).tolist() == list(range(12))


@pytest.mark.parametrize("budget", range(1, 145))
def test_grid_positions_are_distinct_for_every_budget(budget):
    assert len(set(grid_positions((12, 12), 144, budget).tolist())) == budget
    assert len(set(grid_positions((3, 48), 144, budget).tolist())) == budget


def test_divprune_agrees_with_a_plain_loop():
    one = context()
    kept = METHODS["divprune"].keep(one, 10).positions
    for row in range(3):
        unit = torch.nn.functional.normalize(one.tokens[row], dim=-1)
        distance = 1 - unit @ unit.T
        nearest = [min(distance[i][j] for j in range(N) if j != i) for i in range(N)]
        chosen = [max(range(N), key=lambda i: nearest[i])]
        while len(chosen) < 10:
            rest = [i for i in range(N) if i not in chosen]
            chosen.append(max(rest, key=lambda i: min(distance[i][j] for j in chosen)))
        assert kept[row].tolist() == sorted(chosen)


def test_greedy_determinant_agrees_with_a_plain_loop():
    factors = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    kernel = factors @ factors.transpose(1, 2)
    chosen = greedy_determinant(kernel, 5)
    for row in range(2):
        kept: list[int] = []
        for _ in range(5):
            rest = [i for i in range(8) if i not in kept]

            def volume(i, kept=kept, row=row):
                index = torch.tensor([*kept, i])
                return torch.linalg.det(kernel[row][index][:, index])

            kept.append(max(rest, key=volume))
        assert chosen[row].tolist() == kept


def test_visionzip_keeps_the_dominant_tokens_as_they_are():
    one = context()
    kept = METHODS["visionzip"].keep(one, 13)
    dominant = one.class_attention.topk(11, dim=-1).indices
    for row in range(3):
        for position in dominant[row].tolist():
            where = kept.positions[row].tolist().index(position)
            assert torch.equal(kept.tokens[row, where], one.tokens[row, position])


def test_visionzip_merges_equal_tokens_without_losing_any():
    """Newline tokens and flat parts of a picture may be equal to the last bit."""
    one = dataclasses.replace(context(), tokens=torch.ones(3, N, 5))
    kept = METHODS["visionzip"].keep(one, 13)
    assert torch.allclose(kept.tokens, torch.ones(3, 13, 5))


def test_pooling_to_a_quarter_averages_blocks():
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    rows = SelectionContext(tokens=tokens, keys=("a",), grid=(4, 4))
    pooled = METHODS["pooling"].keep(rows, 1)
    assert float(pooled.tokens) == pytest.approx(7.5)


def test_oracle_takes_every_object_and_then_what_is_farthest():
    small, large = (0.0, 0.0, 1 / 6, 1 / 6), (0.5, 0.5, 1.0, 1.0)
    assert oracle_positions((large, small), (6, 6), 1).tolist() == [4 * 6 + 4]
    assert oracle_positions((large, small, large), (6, 6), 2).tolist() == [4 * 6 + 4, 0]
    assert set(oracle_positions((large, small), (6, 6), 4).tolist()) == {4 * 6 + 4, 0, 5, 5 * 6}
    assert sorted(oracle_positions((large, small), (6, 6), 36).tolist()) == list(range(36))


def test_oracle_cuts_a_line_of_text_into_characters():
    halves = [(0, 0, 0.25, 0.25), (0.25, 0, 0.5, 0.25)]
    assert square_pieces((0.0, 0.0, 0.5, 0.25), (4, 4)) == halves
    assert len(square_pieces((0.0, 0.0, 0.2, 0.2), (4, 4))) == 1


def test_boxes_are_scaled_to_the_image():
    samples = make_samples(2)
    encoded = FakeAsked().encode(samples)
    rows = context_of([image for own in encoded.images for image in own])
    kept = METHODS["oracle"].keep(rows, 1).positions[:, 0].tolist()
    for sample, position in zip(samples, kept, strict=True):
        left, top, _, _ = sample.boxes[0][0]
        assert position == top // 4 * GRID + left // 4


def test_unknown_methods_are_refused_with_the_list():
    with pytest.raises(ConfigError, match="divprune"):
        choose_methods("random,magic")
    assert [m.name for m in choose_methods("grid,random", 2)] == ["grid", "random"]
    assert choose_methods("random", 2)[0].seeds == (0, 1)
