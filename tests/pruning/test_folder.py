"""A selector is the selector of its files: every damage is a ConfigError with a name."""

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from autoselect.config import ConfigError, ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.pruning.folder import CONFIG_FILE, WEIGHTS_FILE
from autoselect.pruning.selector import Selector
from tests.vlm.model_variants import POINTER, change_json

BOUNDED = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    own = Selector(Scorer(12, ScorerConfig(hidden_size=8, num_heads=2)), {"model": "tiny"}, 0.25)
    own.save_pretrained(tmp_path / "selector")
    return tmp_path / "selector"


def change_weights(folder, change):
    weights = load_file(folder / WEIGHTS_FILE)
    save_file(change(weights), folder / WEIGHTS_FILE)


def spoil(name, number):
    def change(weights):
        weights[name].view(-1)[0] = number
        return weights

    return lambda folder: change_weights(folder, change)


def changed(change):
    return lambda folder: change_weights(folder, change)


def configured(change):
    return lambda folder: change_json(folder / CONFIG_FILE, change)


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder):
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[:-20])


LFS = POINTER.format("0" * 64).encode()
FAULTS = {
    "missing": (changed(lambda w: {n: t for n, t in w.items() if "score." not in n}), "missing s"),
    "extra": (changed(lambda w: w | {"other": torch.zeros(2)}), "unexpected other"),
    "renamed": (changed(lambda w: {f"module.{n}": t for n, t in w.items()}), "unexpected module"),
    "shape": (
        changed(lambda w: w | {"scorer.score.weight": torch.zeros(1, 9)}),
        r"scorer.score.weight has shape \(1, 9\), the model \(1, 8\)",
    ),
    "whole numbers": (
        changed(lambda w: w | {"scorer.score.bias": torch.zeros(1, dtype=torch.int64)}),
        "scorer.score.bias is of torch.int64",
    ),
    "nan": (spoil("scorer.score.weight", math.nan), "not finite in scorer.score.weight"),
    "infinite": (spoil("scorer.projection.bias", math.inf), "not finite in scorer.projection.bias"),
    "other weights": (
        changed(lambda w: {n: t + 1 for n, t in w.items()}),
        "selector.safetensors is not the one that config.json was written with; copy both files",
    ),
    "cut": (cut, "selector.safetensors is damaged"),
    "empty": (written(WEIGHTS_FILE, b""), "selector.safetensors is damaged"),
    "pointer": (written(WEIGHTS_FILE, LFS), "selector.safetensors is a git-lfs pointer"),
    "pointer of config": (written(CONFIG_FILE, LFS), r"config.json is a git-lfs pointer"),
    "no object": (written(CONFIG_FILE, b"[1]"), "must hold a JSON object, not list"),
    "not text": (written(CONFIG_FILE, b"\xff\xfe"), "config.json is not JSON"),
    "cut config": (written(CONFIG_FILE, b'{"format": '), "config.json is not JSON"),
    "no width": (configured(lambda c: c.pop("width")), "config.json lacks width"),
    "null width": (configured(lambda c: c.update(width=None)), "config.json lacks width"),
    "other width": (configured(lambda c: c.update(width=16)), "does not fit its config.json"),
    "no scorer": (configured(lambda c: c.pop("scorer")), "config.json lacks scorer"),
    "unknown key": (
        configured(lambda c: c.update(heads=3)),
        r"unknown keys heads; it was written by autoselect \d",
    ),
    "unknown size": (configured(lambda c: c["scorer"].update(depth=3)), "unknown .* scorer.depth"),
    "width as text": (configured(lambda c: c.update(width="12")), "width='12' must be of type int"),
    "huge width": (configured(lambda c: c.update(width=10**15)), "no size of a Scorer is above"),
    "huge depth": (configured(lambda c: c["scorer"].update(num_layers=10**9)), "no size of a Sc"),
    "diversity": (configured(lambda c: c.update(diversity=2)), r"diversity=2.* must lie in 0\.\.1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_named_in_one_line(folder, fault):
    plant, message = FAULTS[fault]
    plant(folder)
    with pytest.raises(ConfigError, match=message) as error:
        Selector.from_pretrained(folder)
    assert str(error.value).startswith(f"selector={folder}") and "\n" not in str(error.value)


def test_folders_of_earlier_versions_still_load(folder):
    """They had no diversity, and weights of half precision were allowed."""
    before = Selector.from_pretrained(folder)
    change_json(
        folder / CONFIG_FILE,
        lambda c: [c.pop(key) for key in ("diversity", "version", "relevance", "weights")],
    )
    change_weights(folder, lambda weights: {n: t.bfloat16() for n, t in weights.items()})
    after = Selector.from_pretrained(folder)
    assert (after.diversity, after.relevance) == (0, "minmax")
    assert after.metadata == {"model": "tiny"}
    for name, tensor in after.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, before.state_dict()[name], rtol=1e-2, atol=1e-3)
    assert not any(parameter.is_meta for parameter in after.parameters())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["autoselect-selector", "format", "scorer"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["hidden_size", "num_layers", "num_heads", "share", "weight"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
KEYS = ("format", "version", "width", "scorer", "diversity", "relevance", "training", "weights")


@BOUNDED
@given(changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), JSON, max_size=3))
def test_any_configuration_is_a_selector_or_a_named_error(folder, changes):
    whole = (folder / CONFIG_FILE).read_text()
    try:
        (folder / CONFIG_FILE).write_text(json.dumps(json.loads(whole) | changes))
        try:
            assert Selector.from_pretrained(folder).width == 12
        except ConfigError as error:
            assert str(folder) in str(error)
    finally:
        (folder / CONFIG_FILE).write_text(whole)


@BOUNDED
@given(data=st.data(), name=st.sampled_from([CONFIG_FILE, WEIGHTS_FILE]))
def test_any_damage_of_bytes_is_a_selector_or_a_named_error(folder, data, name):
    """A flipped bit in the numbers of a tensor is other numbers, which no file can tell."""
    whole = (folder / name).read_bytes()
    start = data.draw(st.integers(0, min(len(whole), 1500)))
    other = data.draw(st.binary(max_size=12))
    end = data.draw(st.sampled_from([start, start + 1, start + len(other), len(whole)]))
    try:
        (folder / name).write_bytes(whole[:start] + other + whole[end:])
        try:
            assert Selector.from_pretrained(folder).width == 12
        except ConfigError as error:
            assert str(folder) in str(error)
    finally:
        (folder / name).write_bytes(whole)


def test_a_file_that_may_not_be_read_is_not_called_damaged(folder, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("autoselect.pruning.folder.read_tensors", denied)
    with pytest.raises(ConfigError, match="cannot be read.*Permission denied.*permissions"):
        Selector.from_pretrained(folder)
