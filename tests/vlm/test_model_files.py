"""A model is the model of its files: what is not whole, or of another model, is refused by name."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from autoselect.config import ConfigError
from autoselect.files.digest import same_weights
from autoselect.reference.vlm import build_model, save_vlm
from autoselect.vlm import FrozenVLM
from autoselect.vlm.loading import check_model, load, weights_digest
from autoselect.vlm.shape import read_shape
from tests.vlm import model_variants as variants
from tests.vlm.stock import model_of
from tests.vlm.tiny import TINY

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    save_vlm(build_model(), folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return variants.linked_copy(whole, tmp_path / "copy")


def ids(fault):
    return fault[0].__name__.removeprefix("plant_")


@pytest.mark.parametrize("fault", [*variants.WRONG_FILES, variants.NO_WEIGHTS], ids=ids)
def test_wrong_files_are_named_with_the_fix_before_weights_are_read(copy, monkeypatch, fault):
    plant, found, fix = fault
    plant(copy)

    def read(*arguments, **more):
        raise AssertionError("weights were read first")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", read)
    with pytest.raises(ConfigError) as error:
        load(copy, None, CPU)
    text = str(error.value)
    assert text.startswith(f"model={copy} ") and "\n" not in text
    assert found in text and fix in text


@pytest.mark.parametrize("fault", variants.WRONG_FILES, ids=ids)
def test_a_plan_is_not_made_for_wrong_files(copy, fault):
    fault[0](copy)
    with pytest.raises(ConfigError, match="model="):
        read_shape(str(copy))


def test_a_plan_needs_no_weights(copy):
    (copy / "model.safetensors").unlink()
    assert read_shape(str(copy)).visual_tokens == 144


@pytest.mark.parametrize("fault", variants.OTHER_PROCESSOR, ids=ids)
def test_processors_of_other_weights_are_named_with_the_fix(copy, fault):
    plant, found, fix = fault
    plant(copy)
    with pytest.raises(ConfigError) as error:
        FrozenVLM.from_pretrained(copy)
    assert found in str(error.value) and fix in str(error.value)


@pytest.mark.parametrize("write", [variants.in_two_shards, variants.in_pickles])
def test_whole_weights_in_other_files_are_the_same_model(whole, copy, write):
    write(copy)
    one, other = load(whole, None, CPU)[0], load(copy, None, CPU)[0]
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize("name", TINY)
def test_files_that_transformers_writes_are_accepted_for_every_family(tmp_path, name):
    """Their weights have other names in files, tied heads, and buffers that are not saved."""
    model_of(name).save_pretrained(tmp_path)
    check_model(tmp_path)
    save_file({}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="of the model are not in its files"):
        check_model(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(copy, number):
    def spoil(weights):
        name = next(n for n in weights if n.endswith("multi_modal_projector.linear_2.weight"))
        weights[name][3, 5] = number
        return weights

    variants.change_weights(copy, spoil)
    with pytest.raises(ConfigError, match=r"not finite \(model.multi_modal_projector.linear_2"):
        load(copy, None, CPU)


def test_weights_that_differ_anywhere_have_other_digests(whole, copy):
    """Also in the middle of a file, where a projector is."""
    digest = weights_digest(whole)
    assert weights_digest(copy) == digest

    def retrain(weights):
        name = next(n for n in weights if n.endswith("multi_modal_projector.linear_2.weight"))
        return {**weights, name: weights[name] + 1}

    variants.change_weights(copy, retrain)
    other = weights_digest(copy)
    assert other != digest and not same_weights(other, digest)


def test_pickled_weights_have_digests_of_their_own(copy):
    variants.in_pickles(copy)
    first = weights_digest(copy)
    weights = torch.load(copy / "pytorch_model.bin")
    torch.save({n: t + 1 for n, t in weights.items()}, copy / "pytorch_model.bin")
    assert not same_weights(weights_digest(copy), first)


def test_a_digest_of_an_earlier_version_still_names_its_weights(whole, copy):
    """It was a sha256 over the configuration and the ends of the files."""
    now = weights_digest(whole)
    earlier = now.partition("+")[2]
    assert len(earlier) == 64 and same_weights(earlier, now) and same_weights(now, earlier)
    variants.change_json(copy / "config.json", lambda c: c.update(pad_token_id=1))
    assert not same_weights(earlier, weights_digest(copy))
    assert not same_weights(None, now) and same_weights(None, None)


LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=6)
)
JSON = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.text(max_size=4), LEAVES)


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), value=JSON, part=st.sampled_from(["", "text_config", "vision_config"]))
def test_any_value_in_a_models_configuration_is_a_model_or_a_named_error(copy, data, value, part):
    whole = (copy / "config.json").read_text()
    config = json.loads(whole)
    group = config[part] if part else config
    group[data.draw(st.sampled_from(sorted(group)))] = value
    try:
        variants.replace(copy / "config.json", json.dumps(config))
        try:
            check_model(copy)
        except ConfigError as error:
            assert str(error).startswith(f"model={copy} ") and "\n" not in str(error)
    finally:
        variants.replace(copy / "config.json", whole)


STORED = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "bitsandbytes": ("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.nf4"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape"),
    "fp8": ("weight", "weight_scale_inv"),
}
"""What quantisers store for one weight, under the name of its module."""


def quantise(folder, method):
    """Write the language model's linear weights as a quantiser does; the rest stays."""

    def change(weights):
        for name in [n for n in weights if "language_model.layers" in n and "proj" in n]:
            values = weights.pop(name)
            for part in STORED[method]:
                weights[f"{name.removesuffix('weight')}{part}"] = values.flatten()[:8].clone()
        return weights

    variants.change_weights(folder, change)
    config = {"quant_method": method, "bits": 4}
    variants.change_json(
        folder / "config.json", lambda values: values.update(quantization_config=config)
    )


@pytest.mark.parametrize("method", STORED)
def test_a_quantised_model_without_its_projector_is_named(copy, method):
    quantise(copy, method)
    check_model(copy)
    variants.change_weights(copy, variants.without("projector"))
    with pytest.raises(ConfigError, match="weights of the model are not in its files.*projector"):
        check_model(copy)
