"""Configuration: defaults, files, flags, and an error that names what is wrong."""

import pytest

from autoselect.config import ConfigError, TrainConfig
from autoselect.config_files import flatten, load_config, to_dict


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("steps: 7\ngate:\n  token_budget: 32\n  noise: channel\n")
    config = load_config(TrainConfig, str(file), ["--gate.token_budget", "20", "--seed=3"])
    assert (config.steps, config.gate.token_budget, config.gate.noise, config.seed) == (
        7,
        20,
        "channel",
        3,
    )
    assert config.optimizer == TrainConfig().optimizer


def test_a_resolved_configuration_reads_back_as_itself(tmp_path):
    config = load_config(TrainConfig, None, ["--gate.min_token_budget", "null", "--steps", "5"])
    flags = [
        f"--{name}={'null' if v is None else v}" for name, v in flatten(to_dict(config)).items()
    ]
    assert load_config(TrainConfig, None, flags) == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gate.token_budgett", "3"], "unknown configuration key gate.token_budgett=3; did you "),
        (["--gate.token_budget", "0"], "gate.token_budget=0 is below 1"),
        (["--gate.min_token_budget", "40"], "must lie in 1..gate.token_budget=16"),
        (["--gate.temperature_end", "0"], "gate.temperature_end=0.0 must be above 0"),
        (["--gate.noise", "white"], "gate.noise='white' must be one of covariance, channel"),
        (["--steps", "many"], "steps='many' must be of type int"),
        (["--steps", "0"], "steps=0 is below 1"),
        (["--seed"], "flag --seed has no value"),
        (["steps"], "unexpected argument 'steps'"),
        (["--optimizer.learning_rate", "fast"], "learning_rate='fast' must be a number"),
        (["--scorer.num_heads", "7"], "is not divisible by scorer.num_heads=7"),
        (["--activation_checkpointing", "1"], "must be of type bool"),
    ],
)
def test_bad_values_name_field_value_rule_and_fix(flags, message):
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, None, flags)
    assert message in str(caught.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(TrainConfig, str(tmp_path / "none.yaml"), [])
    broken = tmp_path / "broken.yaml"
    broken.write_text("gate: [")
    with pytest.raises(ConfigError, match="no valid YAML"):
        load_config(TrainConfig, str(broken), [])
    broken.write_text("- 1\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(TrainConfig, str(broken), [])
