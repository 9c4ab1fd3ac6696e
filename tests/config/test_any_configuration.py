"""Any content of a configuration file is settings or a ConfigError, never a traceback."""

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import load_config
from autoselect.config.setting import described

BOUNDED = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = [name.split(".")[-1] for name, _, _ in described(TrainConfig)]
PARTS = ["fp16", "bf16", "zero_optimization", "stage", "optimizer", "params", "enabled", "type"]
SIZES = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"]


def values(names):
    """Return a strategy of nested values under some names that the reader knows."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(10**20), 10**20)
        | st.floats()
        | st.text(max_size=6)
        | st.sampled_from(["auto", "1e5", "AdamW", "bfloat16", "cosine"])
    )
    keys = st.sampled_from(names) | st.text(max_size=4)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    )


def settings_or_error(read):
    try:
        return read()
    except ConfigError as error:
        assert str(error)
        return None


@BOUNDED
@given(content=values(NAMES) | st.dictionaries(st.sampled_from(NAMES), values(NAMES), max_size=3))
def test_any_yaml_is_settings_or_a_named_error(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    settings_or_error(lambda: load_config(TrainConfig, str(path), []))


@BOUNDED
@given(content=st.dictionaries(st.sampled_from(PARTS + SIZES), values(PARTS + SIZES), max_size=4))
def test_any_deepspeed_json_is_settings_or_a_named_error(tmp_path, content):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(content))
    settings_or_error(lambda: DeepSpeedConfig.load(str(path)).split(1))


@BOUNDED
@given(content=st.binary(max_size=40), name=st.sampled_from(["run.yaml", "zero.json"]))
def test_any_bytes_are_settings_or_a_named_error(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    path = str(tmp_path / name)
    if name == "run.yaml":
        settings_or_error(lambda: load_config(TrainConfig, path, []))
    else:
        settings_or_error(lambda: DeepSpeedConfig.load(path))


@pytest.mark.parametrize("content", ["a: [", "- 1", "gate: 3", "{: :", "%", "a: !!python/none"])
def test_yaml_that_is_no_mapping_of_settings_is_refused(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError):
        load_config(TrainConfig, str(path), [])
