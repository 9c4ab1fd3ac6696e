"""Patches removed before the vision encoder: what the tower and the language model then see."""

from contextlib import contextmanager
from threading import Thread

import pytest
import torch

from autoselect import ConfigError, Selector, attach, detach
from autoselect.config import ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.pruning.attachment import keeping
from autoselect.vlm import VisualAdapter
from autoselect.vlm.patches import REFUSED, embedding_layer, read_patches, run_tower
from autoselect.vlm.projectors import REFUSED as PROJECTORS
from autoselect.vlm.sites import SITES
from tests.vlm.stock import close, model_of, offload
from tests.vlm.tiny import ALL, batch, build

FAMILIES = ("llava", "vipllava", "paligemma", "janus", "deepseek_vl")
ROWS = [["s", "s"], [], ["s"]]
GREEDY = {"max_new_tokens": 4, "do_sample": False}
NUMBER = 16


def selector_of(adapter, site="before_encoder"):
    torch.manual_seed(7)
    width = SITES[site].width(adapter)
    return Selector(Scorer(width, ScorerConfig(hidden_size=16, num_heads=2)), site=site).eval()


@contextmanager
def attached(name, budget, site="before_encoder"):
    model = model_of(name)
    attach(model, selector_of(VisualAdapter(model), site), budget)
    try:
        yield model
    finally:
        detach(model)


def features_of_kept(model, pixels, kept):
    """Return what the stock encoder and projector give for some patches of one image, [K, D]."""
    adapter = VisualAdapter(model)

    def drop(_layer, _inputs, rows):
        extra = rows.shape[1] - NUMBER
        return torch.cat([rows[:, :extra], rows[:, extra:][:, kept]], dim=1)

    handle = embedding_layer(adapter).register_forward_hook(drop)
    try:
        return next(iter(adapter.encode({"pixel_values": pixels})["image"].pooler_output))
    finally:
        handle.remove()


def reference(model, inputs, selection):
    """Return the logits of the stock model on the features of each image's kept patches alone."""
    adapter = VisualAdapter(model)
    outputs = adapter.encode(inputs)
    kept = [image.kept for image in selection.images]
    for entry, pixels, own in zip(
        outputs["image"].pooler_output, inputs["pixel_values"], kept, strict=True
    ):
        entry[own] = features_of_kept(model, pixels[None], own)
    with keeping(model, kept):
        return model(**adapter.with_outputs(inputs, outputs)).logits


def test_the_tower_is_tried_while_its_patch_embeddings_are_offloaded():
    model = build("llava")
    expected = SITES["before_encoder"].width(VisualAdapter(model))
    offload(embedding_layer(VisualAdapter(model)))
    assert SITES["before_encoder"].width(VisualAdapter(model)) == expected


@pytest.mark.parametrize("site", ["before_encoder", "before_projector"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_all_patches_kept_is_the_untouched_model(name, site):
    inputs, model = batch(name, ROWS), model_of(name)
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, **GREEDY)
    with attached(name, 1.0, site):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    assert not embedding_layer(VisualAdapter(model))._forward_hooks


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_pruned_calls_change_no_weight_and_leave_no_trace_at_any_site(site):
    inputs, model = batch("llava", ROWS), model_of("llava")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(**inputs).logits
    with attached("llava", 5, site):
        assert not torch.equal(
            model.generate(
                **inputs, **GREEDY, output_logits=True, return_dict_in_generate=True
            ).logits[0],
            logits[:, -1],
        )
    assert all(map(torch.equal, model.state_dict().values(), weights.values()))
    assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_calls_of_other_threads_are_not_seen_at_any_site(site):
    """Calls of another image run to their end whenever one reaches the tower or the projector."""
    inputs, others = batch("llava", [["s"]]), batch("llava", [["s"], ["s"]], seed=3)
    busy = []
    with attached("llava", 5, site) as model:
        alone, expected, answers = model(**inputs).logits, model(**others).logits, []

        def other_call():
            with torch.no_grad():
                answers.append(model(**others).logits)

        def interrupt(*_):
            if not busy:
                busy.append(True)
                thread = Thread(target=other_call)
                thread.start()
                thread.join()
                busy.clear()

        base = model.base_model
        parts = (base.vision_tower, base.vision_tower.encoder, base.multi_modal_projector)
        handles = [part.register_forward_pre_hook(interrupt) for part in parts]
        try:
            assert torch.equal(model(**inputs).logits, alone)
        finally:
            for handle in handles:
                handle.remove()
    assert answers and all(torch.equal(found, expected) for found in answers)


@pytest.mark.parametrize("site", SITES)
def test_no_tokens_at_all_is_refused_at_every_site(site):
    with pytest.raises(ConfigError, match="budget"), attached("llava", 0, site):
        pass


@pytest.mark.parametrize("budget", [5, [3, 16, 7]])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_pruning_equals_the_tower_on_the_kept_patches_of_each_image_alone(name, budget):
    inputs = batch(name, ROWS)
    with attached(name, budget) as model:
        ours = model(**inputs).logits
        selection = model.autoselect.last
    counts = [budget] * 3 if isinstance(budget, int) else budget
    assert [len(image.kept) for image in selection.images] == counts
    close(ours, reference(model, inputs, selection))


@torch.no_grad()
def test_the_tower_and_the_language_model_see_the_kept_patches_only():
    inputs, seen = batch("llava", [["s", "s"]]), []
    model = model_of("llava")
    layer = model.base_model.vision_tower.encoder.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    attach(model, selector_of(VisualAdapter(model)), 4)
    seen.clear()
    try:
        length = model(**inputs).logits.shape[1]
    finally:
        handle.remove()
        detach(model)
    assert seen == [1 + 4]
    assert length == inputs["input_ids"].shape[1] - 2 * (NUMBER - 4)


@torch.no_grad()
def test_generation_goes_on_from_the_cache_of_the_pruned_prompt():
    inputs = batch("llava", ROWS)
    with attached("llava", 5) as model:
        short = {**GREEDY, "max_new_tokens": 3}
        cached = model.generate(**inputs, **short)
        assert torch.equal(cached, model.generate(**inputs, **short, use_cache=False))
        beams = model.generate(**inputs, **short, num_beams=2)
        other = model.generate(**inputs, **short, visual_token_budget=NUMBER)
    assert beams.shape == cached.shape == other.shape
    assert torch.equal(other, model.generate(**inputs, **short))


@torch.no_grad()
def test_a_batch_equals_its_rows_one_by_one():
    rows = [["s"], ["s", "s"]]
    with attached("paligemma", 4) as model:
        together = model(**batch("paligemma", rows)).logits
        for number, row in enumerate(rows):
            alone = model(**batch("paligemma", [row], seed=number)).logits[0]
            close(together[number, -len(alone) :], alone, 1e-4)


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(ALL)))
def test_other_towers_are_refused_by_name_and_reason_before_anything_is_computed(name):
    model = model_of(name)
    scorer = Scorer(8, ScorerConfig(hidden_size=16, num_heads=2))
    reason = REFUSED[name].replace("(", r"\(")
    with pytest.raises(ConfigError, match=rf"model_type={name}: {reason}; use site=after_proj"):
        attach(model, Selector(scorer, site="before_encoder"), 4)
    assert getattr(model, "autoselect", None) is None


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_every_family_works_before_the_projector_or_is_refused_by_name_at_attach(name):
    model = model_of(name)
    scorer = Scorer(8, ScorerConfig(hidden_size=16, num_heads=2))
    try:
        with attached(name, 0.5, "before_projector"):
            for rows in ([["s"]], [["l"]], [["l", "s"], []]):
                inputs = batch(name, rows)
                assert model(**inputs).logits.isfinite().all()
                assert model.autoselect.last.images
            return
    except ConfigError as error:
        with pytest.raises(ConfigError) as refusal:
            attach(model, Selector(scorer, site="before_projector"), 4)
        assert str(refusal.value) == str(error)
        assert model.config.model_type in str(error) and "use site=after_projector" in str(error)
        assert PROJECTORS.get(name, "no projector that takes images") in str(error)
    assert getattr(model, "autoselect", None) is None


def test_a_pooling_projector_is_refused_at_attach(monkeypatch):
    model = model_of("perception_lm")
    monkeypatch.setattr(model.config, "projector_pooling_ratio", 2)
    with pytest.raises(ConfigError, match=r"model_type=perception_lm: its projector averages"):
        SITES["before_projector"].check(VisualAdapter(model))


def test_every_supported_family_trains_there_with_a_gradient_through_the_frozen_tower():
    for name in FAMILIES:
        model = model_of(name)
        adapter = VisualAdapter(model)
        patches = read_patches(adapter, batch(name, [["s"]]))
        gated = patches.entries.clone().requires_grad_()
        outputs = run_tower(adapter, gated, patches.extra)
        torch.stack(list(outputs["image"].pooler_output)).square().sum().backward()
        assert float(gated.grad.abs().amin(dim=-1).max()) > 0
        assert all(p.grad is None for p in model.parameters())


def test_a_selector_names_its_site_and_finds_it_again(tmp_path):
    selector = selector_of(VisualAdapter(model_of("llava")))
    selector.save_pretrained(tmp_path)
    assert Selector.from_pretrained(tmp_path).site == "before_encoder"
    with pytest.raises(ConfigError, match="site='somewhere' must be one of"):
        Selector(selector.scorer, site="somewhere")


@torch.no_grad()
def test_encoded_features_and_clips_are_refused():
    inputs = batch("llava", [["s"]])
    with attached("llava", 4) as model:
        adapter = VisualAdapter(model)
        encoded = adapter.with_outputs(inputs, adapter.encode(inputs))
        with pytest.raises(ConfigError, match="give pixels of images"):
            model(**encoded)


def test_a_selector_of_another_site_does_not_fit():
    model = model_of("llava")
    wide = Scorer(VisualAdapter(model).width + 1, ScorerConfig(hidden_size=16, num_heads=2))
    with pytest.raises(ConfigError, match=r"channels, and those of .* \(site before_encoder\)"):
        attach(model, Selector(wide, site="before_encoder"), 4)
