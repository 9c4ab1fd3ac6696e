"""Configuration: defaults, files, flags, and an error that names what is wrong."""

import pytest

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.files import flatten, load_config, to_dict


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
        (["--gate.min_token_budget", "40"], "a whole number in 1..gate.token_budget=16"),
        (["--gate.min_token_budget", "2.5"], "a share above 0 and below 1, or a whole number"),
        (["--gate.temperature_end", "0"], "gate.temperature_end=0.0 must lie in 1e-30..1e30"),
        (["--gate.noise", "white"], "gate.noise='white' must be one of covariance, channel"),
        (["--steps", "many"], "steps='many' must be of type int"),
        (["--steps", "0"], "steps=0 is below 1"),
        (["--seed"], "flag --seed has no value"),
        (["--tracking", "--seed", "3"], "flag --tracking has no value"),
        (["steps"], "unexpected argument 'steps'"),
        (["--output=~/runs"], "output=~/runs: ~ and $NAME stay as they are in files and behind"),
        (["--model", "$HOME/vlm"], "model=$HOME/vlm: ~ and $NAME stay"),
        (["--data.train_shards=/a/${SET}/*.tar"], "data.train_shards=/a/${SET}/*.tar: ~ and"),
        (["--validation.shards=~/held"], "validation.shards=~/held: ~ and $NAME stay"),
        (["--output=''"], "output='' is empty"),
        (["--experiment=' '"], "experiment is empty"),
        (["--optimizer.learning_rate", "fast"], "learning_rate='fast' must be a number"),
        (["--scorer.num_heads", "7"], "is not divisible by scorer.num_heads=7"),
        (["--activation_checkpointing", "1"], "must be of type bool"),
        (["--scorer.hidden_size", "0"], "scorer.hidden_size=0 is below 1"),
        (["--scorer.hidden_size", "-8"], "scorer.hidden_size=-8 is below 1"),
        (["--scorer.num_heads", "0"], "scorer.num_heads=0 is below 1"),
        (["--denoiser.hidden_size", "0"], "denoiser.hidden_size=0 is below 1"),
        (["--denoiser.num_layers", "-1"], "denoiser.num_layers=-1 is below 0"),
        (["--optimizer.learning_rate", ".inf"], "optimizer.learning_rate=inf must be above 0 and"),
        (["--optimizer.learning_rate", ".nan"], "optimizer.learning_rate=nan must be above 0 and"),
        (["--optimizer.weight_decay", "-0.1"], "optimizer.weight_decay=-0.1 must be 0 or more"),
        (["--optimizer.weight_decay", ".inf"], "optimizer.weight_decay=inf must be 0 or more and"),
        (["--optimizer.warmup_fraction", "1"], "warmup_fraction=1.0 must lie in 0..1, below 1"),
        (["--optimizer.floor_fraction", ".nan"], "optimizer.floor_fraction=nan must lie in 0..1"),
        (
            ["--gate.temperature_start", ".inf"],
            "gate.temperature_start=inf must lie in 1e-30..1e30",
        ),
        (["--gate.temperature_end", ".nan"], "gate.temperature_end=nan must lie in 1e-30..1e30"),
        (["--gate.temperature_end", "0.6"], "must not exceed gate.temperature_start=0.5"),
        (["--data.max_text_tokens", "0"], "data.max_text_tokens=0 is below 1"),
        (["--data.workers", "-1"], "data.workers=-1 is below 0"),
        (["--seed", "9223372036854775808"], "seed=9223372036854775808 must lie in 0..2^63-1"),
        (["--optimizer.learning_rate", "1" + 400 * "0"], "must be a number"),
        (["--gate", "3"], "gate=3 must be a group of settings"),
        (["--gate", "3", "--gate.token_budget", "4"], "flag --gate.token_budget: gate=3 is one"),
        (["--gate.token_budget", "4", "--gate", "3"], "gate=3 must be a group of settings"),
        (["--steps.more", "4"], "steps={'more': 4} must be of type int"),
    ],
)
def test_bad_values_name_field_value_rule_and_fix(flags, message):
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, None, flags)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text", ["*.tar", "{0..3}.tar", "[ab]*.tar", "2024-13-45", "@home", "a: b: c"]
)
def test_a_flag_that_is_not_yaml_is_text(text):
    """Patterns need no second pair of quotes."""
    config = load_config(TrainConfig, None, ["--data.train_shards", text])
    assert config.data.train_shards == text


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--tune_budgets=64", "64"),
        ("--tune_budgets=0.10", "0.10"),
        ("--experiment=007", "007"),
        ("--experiment=2026-01-01", "2026-01-01"),
        ("--experiment=no", "no"),
        ("--experiment='64'", "64"),
        ("--experiment=a #2", "a #2"),
        ("--experiment=[a, b]", "[a, b]"),
    ],
)
def test_a_flag_of_a_text_is_taken_as_it_is_written(flag, value):
    """YAML would make numbers, dates and truth values of them, or cut them at a comment."""
    name = flag[2:].partition("=")[0]
    assert getattr(load_config(TrainConfig, None, [flag]), name) == value


def test_a_text_that_yaml_reads_as_a_number_needs_quotes_in_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("tune_budgets: 64\n")
    with pytest.raises(ConfigError, match="tune_budgets=64 must be of type str.*in quotes"):
        load_config(TrainConfig, str(file), [])
    file.write_text("tune_budgets: '64'\n")
    assert load_config(TrainConfig, str(file), []).tune_budgets == "64"


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(TrainConfig, str(tmp_path / "none.yaml"), [])
    broken = tmp_path / "broken.yaml"
    broken.write_text("gate: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(TrainConfig, str(broken), [])
    for text in ("- 1\n", "0\n", "[]\n"):
        broken.write_text(text)
        with pytest.raises(ConfigError, match="must be a mapping"):
            load_config(TrainConfig, str(broken), [])
    broken.write_text("output: 2024-13-45\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(TrainConfig, str(broken), [])
    broken.write_bytes(b"output: \xff\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(TrainConfig, str(broken), [])
    broken.write_text("1: 2\n")
    with pytest.raises(ConfigError, match="unknown configuration key 1=2"):
        load_config(TrainConfig, str(broken), [])
    broken.write_text("[" * 3000)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(TrainConfig, str(broken), [])
    broken.write_text("# nothing\n")
    assert load_config(TrainConfig, str(broken), []) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("gate:\n  token_budget: 64\nsteps: 5\ngate:\n  coverage: 0.5\n", "gate"),
        ("gate:\n  coverage: 0.5\n  coverage: 1.0\n", "coverage"),
    ],
)
def test_a_setting_given_twice_is_refused(tmp_path, text, key):
    """YAML would keep the last one, and the whole first group would be lost without a word."""
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)not valid YAML: key '{key}' appears twice.*line"):
        load_config(TrainConfig, str(file), [])


def test_merged_groups_may_repeat_a_key(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("gate: &a {coverage: 0.5, noise_rank: 8}\n")
    plain = load_config(TrainConfig, str(file), [])
    file.write_text("gate:\n  <<: {coverage: 0.1, noise_rank: 8}\n  coverage: 0.5\n")
    assert load_config(TrainConfig, str(file), []) == plain


def test_the_resolved_configuration_of_a_run_is_named_as_such(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("train:\n  steps: 3\ndeepspeed: {}\n")
    with pytest.raises(ConfigError, match="config.yaml is what a training wrote.*group `train`"):
        load_config(TrainConfig, str(file), [])
