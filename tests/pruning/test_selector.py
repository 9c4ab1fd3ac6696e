"""The Selector: one checkpoint for every budget, safe files, clear errors."""

import json

import pytest
import torch

from autoselect.config import ConfigError, ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.pruning.budget import budget_to_tokens
from autoselect.pruning.selector import Selector


@pytest.fixture
def selector():
    torch.manual_seed(0)
    return Selector(Scorer(12, ScorerConfig(hidden_size=8, num_heads=2)), {"model": "tiny"})


@pytest.fixture
def tokens():
    return torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(1))


def test_it_loads_back_as_it_was_saved(tmp_path, selector, tokens):
    selector.save_pretrained(tmp_path)
    loaded = Selector.from_pretrained(tmp_path)
    assert torch.equal(loaded.score(tokens), selector.score(tokens))
    assert loaded.metadata == {"model": "tiny"}
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json", ".md"}


def test_metadata_that_cannot_be_written_leaves_the_folder_as_it_was(tmp_path, selector):
    selector.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for parameter in selector.requires_grad_(False).parameters():
        parameter.add_(1)
    selector.metadata["made_by"] = tmp_path
    with pytest.raises(ConfigError, match="metadata=.*PosixPath is not JSON.*keep text, numbers"):
        selector.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", ['{"model_type": "llava"}', "[]", "{"])
def test_the_folder_of_a_model_is_not_overwritten(tmp_path, selector, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="config.json that is not a selector's.*of its own"):
        selector.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == content


def test_a_damaged_folder_of_a_selector_is_written_again(tmp_path, selector, tokens):
    selector.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    selector.save_pretrained(tmp_path)
    (tmp_path / "selector.safetensors").unlink()
    selector.save_pretrained(tmp_path)
    assert torch.equal(Selector.from_pretrained(tmp_path).score(tokens), selector.score(tokens))


def test_kept_tokens_are_the_best_in_image_order(selector, tokens):
    scores = selector.score(tokens)
    kept, positions = selector.select(tokens, 5)
    assert torch.equal(positions, scores.topk(5).indices.sort().values)
    assert torch.equal(kept, tokens.gather(1, positions[..., None].expand(-1, -1, 12)))


def test_a_larger_budget_contains_a_smaller_one(selector, tokens):
    small = selector.select(tokens, 4)[1]
    large = selector.select(tokens, 0.5)[1]
    assert large.shape == (3, 10)
    for row in range(3):
        assert set(small[row].tolist()) <= set(large[row].tolist())


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "budget=0 is below 1; give at least 1 token"),
        (21, "budget=21 exceeds the 20 visual tokens of this model; choose 1..20"),
        (1.5, "budget=1.5 as a share must lie above 0, up to 1"),
        (0.0, "budget=0.0 as a share must lie above 0"),
        ("21", "budget=21 exceeds the 20 visual tokens of this model; choose 1..20"),
        ("-1", "budget=-1 is below 1; give at least 1 token"),
        ("120%", "budget=120% as a share must lie above 0"),
        ("nan%", "budget=nan% as a share"),
        ("eight", "budget='eight' is not a number; give tokens"),
        ("", "budget='' is not a number"),
    ],
)
def test_budgets_out_of_range_are_refused(selector, tokens, budget, message):
    with pytest.raises(ConfigError, match=message.replace("..", r"\.\.")):
        selector.select(tokens, budget)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("64", 64),
        (" 64 ", 64),
        ("11.1%", 64),
        ("0.111", 64),
        ("100%", 576),
        ("1.0", 576),
        ("0.01%", 1),
    ],
)
def test_written_tokens_shares_and_percentages_mean_the_same(text, tokens):
    assert budget_to_tokens(text, 576) == tokens


def test_a_share_is_rounded_and_never_empty():
    assert [budget_to_tokens(share, 144) for share in (0.11, 0.055, 0.001, 1.0)] == [16, 8, 1, 144]


def test_tokens_of_another_width_are_refused(selector):
    with pytest.raises(ConfigError, match="tokens of 12 channels, and those of .* have 13"):
        selector.score(torch.zeros(1, 4, 13))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3, 20), "mask has dtype torch.float32, but must be torch.bool"),
        (torch.ones(3, 20).long(), "mask has dtype torch.int64, but must be torch.bool"),
        (torch.ones(3, 19).bool(), r"mask has shape \(3, 19\), but must be \(3, 20\)"),
    ],
)
def test_a_mask_of_another_kind_is_refused(selector, tokens, mask, message):
    """The Scorer would add a mask of numbers to its attention."""
    for call in (selector.score, lambda tokens, mask: selector.select(tokens, 4, mask)):
        with pytest.raises(ConfigError, match=message):
            call(tokens, mask)


def test_tokens_that_are_integers_are_refused(selector):
    with pytest.raises(ConfigError, match="tokens has dtype torch.int64, but must be float32"):
        selector.score(torch.zeros(1, 4, 12, dtype=torch.int64))


def test_damaged_folders_are_refused(tmp_path, selector):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        Selector.from_pretrained(tmp_path)
    selector.save_pretrained(tmp_path)
    weights = tmp_path / "selector.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="damaged"):
        Selector.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    config["scorer"]["num_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="does not fit"):
        Selector.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ConfigError, match="format='other'"):
        Selector.from_pretrained(tmp_path)
