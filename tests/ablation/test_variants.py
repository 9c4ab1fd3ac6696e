"""The YAML of an ablation: how settings are resolved, and which mistakes are refused."""

import dataclasses
import re

import pytest
import yaml
from PIL import Image

from autoselect.ablation.cells import Cell, check_trainings
from autoselect.ablation.run import check_eval_settings, check_subject
from autoselect.ablation.variants import changed_settings, load_plan
from autoselect.cli.main import main
from autoselect.config import ConfigError, TrainConfig
from autoselect.config.files import flatten, load_config, to_dict
from autoselect.config.programs import checkout
from autoselect.data.shards import ShardWriter
from autoselect.reference.jpeg import to_jpeg


def test_settings_are_those_of_the_base_and_the_variant(plan):
    config = plan.train_config(plan.variant("channel"), 2)
    assert config.gate.noise == "channel" and config.gate.token_budget == 8
    assert config.steps == 4 and config.seed == 2 and not config.tracking


def test_cells_come_seed_by_seed_and_bring_what_they_were_trained_as(plan):
    cells = [(variant.name, seed) for variant, seed in plan.cells(["again"])]
    assert cells == [(name, seed) for seed in (0, 1, 2) for name in ("reference", "again")]
    assert len(list(plan.cells())) == 9


def test_the_shipped_ablation_is_valid_and_a_variant_takes_three_lines():
    path = checkout() / "configs" / "ablation" / "reference.yaml"
    plan = load_plan(path, {"steps": 10, "seeds": [3]})
    check_eval_settings(plan)
    assert plan.train_config(plan.variant("long_training"), 3).steps == 20
    block = path.read_text().split("variants:\n")[1]
    untrained = sum(variant.trained_as is not None for variant in plan.variants)
    assert len(block.splitlines()) <= 3 * len(plan.variants) + untrained


def test_the_second_vlms_ablation_has_every_option_alone_and_tuned():
    plan = load_plan(checkout() / "configs" / "ablation" / "siglip-qwen2.yaml")
    check_eval_settings(plan)
    for name in ("reference", "coverage"):
        assert plan.variant(name).eval == {"diversity": 0}
        tuned = "tuned" if name == "reference" else f"{name}_tuned"
        assert plan.variant(tuned).trained_as == name and not plan.variant(tuned).eval
        assert plan.train_config(plan.variant(name), 0).tune_images > 0


def test_the_papers_ablation_changes_the_papers_preset_in_the_named_part_alone():
    plan = load_plan(checkout() / "configs" / "ablation" / "paper.yaml")
    check_eval_settings(plan)
    preset = load_config(TrainConfig, checkout() / "configs" / "train" / "paper.yaml", [])
    differ = {}
    for variant in plan.variants:
        config = plan.train_config(variant, preset.seed)
        same = dataclasses.replace(config, output=preset.output, experiment=preset.experiment)
        differ[variant.name] = set(
            changed_settings(flatten(to_dict(preset)), flatten(to_dict(same)))
        )
    assert differ == {
        "paper": set(),
        "gumbel": {"gate.kind"},
        "scale_gate": {"gate.kind", "gate.noise"},
        "global_denoiser": {"denoiser.attention"},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0, 0]}, "seeds=.0, 0. must be one or more different whole numbers"),
        ({"images": 0}, "images=0 is below 1"),
        ({"stepz": 3}, "did you mean steps"),
        ({"reference": "nobody"}, "reference=nobody is not a variant"),
        ({"base": {"gate.nois": "channel"}}, "variants.reference: .*did you mean gate.noise"),
        ({"base": {"steps": 3}}, "steps belongs to the ablation"),
        ({"variants": []}, "must name at least one"),
        ({"variants": [{"name": "a/b", "asks": "?"}]}, "names a folder"),
        ({"variants": [{"name": "a"}]}, "asks"),
        ({"variants": [{"name": "a", "asks": "?", "length": float("nan")}]}, "a: length=nan must"),
        ({"variants": [{"name": "a", "asks": "?", "length": float("inf")}]}, "a: length=inf must"),
        ({"variants": [{"name": "a", "asks": "?", "length": 0}]}, "a: length=0.0 must be a number"),
        ({"variants": [{"name": "reference", "asks": "?"}] * 2}, "appear twice"),
        (
            {"variants": [{"name": "reference", "asks": "?", "trained_as": "x"}]},
            "trained_as=x is not a variant",
        ),
        (
            {
                "variants": [
                    {"name": "reference", "asks": "?"},
                    {"name": "one", "asks": "?", "trained_as": "reference"},
                    {"name": "two", "asks": "?", "trained_as": "one"},
                ]
            },
            "variants.two: trained_as=one is not a variant that is trained itself",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(config, change, message):
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        load_plan(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: caf\xe9", "cannot be read: .*utf-8"),
        (b"name: 2026-02-30", "is not valid YAML: day is out of range"),
        (b"- a list", "must be a mapping"),
        (b"", "must be a mapping with a list of variants"),
    ],
)
def test_files_that_are_no_ablation_are_refused_by_name(config, content, message):
    config.write_bytes(content)
    with pytest.raises(ConfigError, match=f"config={config} {message}"):
        load_plan(config)


def test_unknown_evaluation_settings_are_refused(config):
    values = yaml.safe_load(config.read_text())
    values["variants"][1]["eval"] = {"rows": 3}
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="variants.channel: eval.rows is not a setting"):
        check_eval_settings(load_plan(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baselines": "random,divprun"}, "baselines=random,divprun: methods='divprun' is un"),
        ({"budgets": "8,all"}, "budget='all' is not a number"),
        ({"budgets": "8,0"}, "budget=0 is below 1"),
        ({"eval": {"rows_per_batch": 0}}, "variants.channel: eval: rows_per_batch=0 is below 1"),
        ({"eval": {"rows_per_batch": "many"}}, "variants.channel: eval: .*rows-per-batch.*'many'"),
        ({"eval": {"scoring": "likely"}}, "variants.channel: eval: scoring='likely' is unknown"),
        ({"eval": {"diversity": 2}}, "variants.channel: eval: .*2"),
        ({"eval": {"latency_compiled": "on"}}, "variants.channel: eval: unrecognized"),
    ],
)
def test_what_an_evaluation_refuses_is_refused_before_a_training(config, change, message):
    values = yaml.safe_load(config.read_text())
    values["variants"][1]["eval"] = change.pop("eval", {})
    config.write_text(yaml.safe_dump({**values, **change}))
    with pytest.raises(ConfigError, match=message):
        check_eval_settings(load_plan(config))


def test_a_setting_that_did_not_exist_counts_as_its_default():
    now = {"gate.kind": "noise", "gate.noise": "channel"}
    assert changed_settings({"gate.noise": "channel"}, now) == {}
    assert changed_settings({"gate.noise": "covariance"}, now) == {
        "gate.noise": ("covariance", "channel")
    }


def test_a_cell_from_before_tuning_existed_was_not_tuned():
    assert changed_settings({}, {"tune_images": 0}) == {}
    tokens = {"gate.token_budget": 64, "gate.min_token_budget": 24}
    assert changed_settings(tokens, tokens | {"gate.min_token_budget": 0.375}) == {}
    assert changed_settings({}, {"tune_images": 96}) == {"tune_images": (0, 96)}


def test_the_published_cells_can_be_added_to():
    """As docs/evidence.md says: every stored cell has the settings of the shipped YAML."""
    plan = load_plan(checkout() / "configs" / "ablation" / "reference.yaml")
    stored = checkout() / "benchmarks" / "results" / "ablation"
    assert any(Cell.of(stored, variant, seed).is_finished for variant, seed in plan.cells())
    check_trainings(plan, stored)


@pytest.fixture
def subject(config, model_folder, shards):
    """Return a function that changes the YAML of an ablation on an untrained reference VLM."""

    def changed(**change):
        values = yaml.safe_load(config.read_text()) | {"model": model_folder, "test_shards": shards}
        config.write_text(yaml.safe_dump(values | change))
        return load_plan(config)

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": "8,145"}, "budget=145 exceeds the 144 visual tokens"),
        ({"leak_budget": 145}, r"leak_budget=145 exceeds the 144 visual tokens .*choose 1\.\.144"),
        (
            {"base": {"gate.token_budget": 200}},
            "variants.reference: gate.token_budget=200 exceeds the 144 visual tokens",
        ),
        (
            {"base": {"tune_images": 8, "tune_budgets": "8,200"}},
            "variants.reference: tune_budgets='8,200': budget=200 exceeds",
        ),
        ({"test_shards": "nowhere/*.tar"}, "nowhere/.* matches no shard"),
    ],
)
def test_what_the_model_or_the_data_cannot_take_is_refused_before_a_training(
    subject, programs, change, message, tmp_path, capsys
):
    check_subject(subject())
    subject(**change)
    assert main(["ablate", "--config", str(tmp_path / "ablation.yaml"), "--out", "out"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert programs.calls == []


def test_a_model_whose_images_differ_in_tokens_is_refused(subject, monkeypatch):
    monkeypatch.setattr("autoselect.ablation.run.fixed_tokens", lambda path: None)
    with pytest.raises(ConfigError, match="has a varying number of visual tokens per image, which"):
        check_subject(subject())


def test_samples_of_several_images_are_refused(subject, tmp_path):
    turns = [{"from": "human", "value": "<image><image> ?"}, {"from": "gpt", "value": "no"}]
    picture = to_jpeg(Image.new("RGB", (32, 32)))
    with ShardWriter(str(tmp_path / "pairs")) as writer:
        writer.write("0", {"conversations": turns}, [picture, picture])
    with pytest.raises(ConfigError, match="hold samples of several images, which the leak measure"):
        check_subject(subject(test_shards=str(tmp_path / "pairs")))
