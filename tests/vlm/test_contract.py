"""Every model type that transformers knows is tested or refused; others are tried."""

import inspect
import tomllib
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from autoselect import ConfigError, attach
from autoselect.vlm import VisualAdapter
from autoselect.vlm.families import FAMILIES, REFUSED
from autoselect.vlm.release import FIRST_TOO_NEW
from tests.vlm.stock import attached, close, masked_logits, model_of, offload, selector
from tests.vlm.tiny import ALL, TINY, batch, build

ROOT = Path(__file__).parents[2]


def test_every_type_of_transformers_is_tested_or_refused():
    assert set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) == set(ALL) | set(REFUSED)
    assert not set(ALL) & set(REFUSED), "a type is in two lists"


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_refused_type_lacks_what_its_reason_says(kind):
    """The reasons that a class tells: no features of its own, or an encoder beside the decoder."""
    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind]
    model = getattr(hf, names if isinstance(names, str) else names[0])
    takes = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    if "encoder-decoder" in REFUSED[kind]:
        assert hf.CONFIG_MAPPING[kind]().is_encoder_decoder
    elif "query tokens" in REFUSED[kind]:
        assert takes and "generate" in vars(model)
    elif "diffusion" in REFUSED[kind]:
        assert "canvas" in inspect.getsource(inspect.getmodule(model))
    else:
        assert not takes


@pytest.mark.parametrize("name", [name for name in TINY if FAMILIES[name].images == "entries"])
@torch.no_grad()
def test_a_type_without_an_entry_works_by_contract(name, monkeypatch):
    inputs, model = batch(name, [["s"]]), model_of(name)
    monkeypatch.delitem(FAMILIES, name)
    with attached(name, 4):
        ours = model(**inputs).logits
        selection = model.autoselect.last
    if name not in ("paligemma", "lfm2_vl"):
        close(ours, masked_logits(model, inputs, selection))


def test_a_release_with_another_name_of_the_cache_is_refused(monkeypatch):
    """Otherwise `generate` would give wrong answers from the second new token on."""

    def renamed(self, input_ids, past=None, **kwargs): ...

    monkeypatch.setattr(hf.GenerationMixin, "prepare_inputs_for_generation", renamed)
    with pytest.raises(ConfigError, match=r"neither past_key_values nor cache.*<6"):
        attach(model_of("llava"), selector(), 4)


def test_the_packages_bounds_are_those_that_attach_checks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bounds,) = [text for text in project["dependencies"] if text.startswith("transformers")]
    assert bounds.endswith(f",<{FIRST_TOO_NEW}")


class NoEncoder(type(model_of("llava").model)):
    get_image_features = property()


class ScaledFeatures(type(model_of("llava"))):
    def forward(self, input_ids=None, mm_encoder_outputs=None, **more):
        mm_encoder_outputs["image"].pooler_output[0] *= 2
        return super().forward(input_ids, mm_encoder_outputs=mm_encoder_outputs, **more)


class OwnPositions(type(model_of("llava"))):
    def forward(self, input_ids=None, mm_encoder_outputs=None, position_ids=None, **more):
        return super().forward(input_ids, mm_encoder_outputs=mm_encoder_outputs, **more)


class NoFeatures(type(model_of("llava"))):
    def forward(self, input_ids=None, mm_encoder_outputs=None, **more):
        raise KeyError("pixel_values are needed")


FAULTS = {
    "get_image_features": (NoEncoder, "model"),
    "unchanged, one per image token": (ScaledFeatures, None),
    "not given the position ids": (OwnPositions, None),
    "does not take image features alone .KeyError": (NoFeatures, None),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_model_that_breaks_the_contract_is_refused_with_the_part_that_fails(reason, monkeypatch):
    model, (kind, inside) = build("llava"), FAULTS[reason]
    monkeypatch.delitem(FAMILIES, "llava")
    (model if inside is None else getattr(model, inside)).__class__ = kind
    with pytest.raises(ConfigError, match=reason):
        attach(model, selector(), 4)


def test_a_model_is_tried_while_its_embeddings_are_offloaded():
    model = build("qwen3_5")
    offload(model.get_input_embeddings())
    VisualAdapter(model)


def test_the_contract_leaves_no_trace_on_the_model(monkeypatch):
    monkeypatch.delitem(FAMILIES, "llava")
    model = build("llava")
    VisualAdapter(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
