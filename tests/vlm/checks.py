"""What every family must do: the checks behind the tests and behind docs/backbones.md."""

import torch

from autoselect import Selector, attach, detach
from autoselect.config import DenoiserConfig, ScorerConfig
from autoselect.method.denoiser import Denoiser
from autoselect.method.scorer import Scorer, standardise
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import soft_top_k_noise_gate
from autoselect.vlm import VisualAdapter
from autoselect.vlm.families import family_of
from tests.vlm.stock import (
    PER_TOKEN,
    attached,
    close,
    masked_generate,
    masked_logits,
    model_of,
    reduced,
)
from tests.vlm.tiny import ALL, batch, clip_batch
from tests.vlm.tiny_prompts import FIRST_TEXT, IMAGE, WIDTH

ROWS = [["s", "l"], [], ["s"]]
GREEDY = {"max_new_tokens": 4, "do_sample": False}
BRIEF = {"max_new_tokens": 3, "do_sample": False}


class KeepPlaces(Selector):
    """A selector that knows the places beforehand: it likes those of a list best."""

    def __init__(self, places: list[int]) -> None:
        super().__init__(Scorer(WIDTH, ScorerConfig(hidden_size=16, num_heads=2)))
        self.places = places

    def score(self, tokens, mask=None):
        scores = torch.zeros(tokens.shape[:2])
        scores[:, self.places] = torch.arange(len(self.places)) + 1.0
        return scores


@torch.no_grad()
def known_places_are_kept_at_their_original_positions(name):
    """Check what the language model is given: the kept embeddings at their own positions."""
    inputs, places = batch(name, [["s"]]), [1, 4, 6]
    model, calls = model_of(name), []
    decoder = model.get_decoder()
    is_inside = decoder is model.base_model

    def note(_module, arguments, named):
        calls.append({**named, "inputs_embeds": arguments[0]} if is_inside else named)

    decoder = decoder.layers[0] if is_inside else decoder
    hook = decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        model.generate(**inputs, **BRIEF)
        full = calls[0]
        calls.clear()
        attach(model, KeepPlaces(places), 3)
        model.generate(**inputs, **BRIEF)
    finally:
        hook.remove()
        detach(model)
    if full["position_ids"] is None:
        full["position_ids"] = torch.arange(full["inputs_embeds"].shape[1])[None]
    is_image = inputs["input_ids"][0] == IMAGE
    kept = ~is_image
    kept[is_image.nonzero().flatten()[places]] = True
    embeddings = full["inputs_embeds"][:, kept]
    if family_of(model.config).projects:
        close(calls[0]["inputs_embeds"], embeddings, 1e-6)  # fewer rows are rounded otherwise
    else:
        assert torch.equal(calls[0]["inputs_embeds"], embeddings)
    assert torch.equal(calls[0]["position_ids"], full["position_ids"][..., kept])
    assert calls[0].get("visual_pos_masks") is None or torch.equal(
        calls[0]["visual_pos_masks"], full["visual_pos_masks"][:, kept]
    )
    assert calls[0].get("per_layer_inputs") is None or torch.equal(
        calls[0]["per_layer_inputs"], full["per_layer_inputs"][:, kept]
    )
    assert int(calls[1]["position_ids"].max()) == int(full["position_ids"].max()) + 1


@torch.no_grad()
def all_tokens_kept_is_the_untouched_model(name):
    inputs, model = batch(name, ROWS), model_of(name)
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, **GREEDY)
    with attached(name, 1.0):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)


@torch.no_grad()
def every_image_of_every_row_has_its_own_budget(name):
    tiny = ALL[name]
    with attached(name, 5) as model:
        length = model(**batch(name, ROWS)).logits.shape[1]
        images = model.autoselect.last.images
    assert [(image.row, image.item) for image in images] == [(0, 0), (0, 1), (2, 0)]
    assert [len(image.scores) for image in images] == [tiny.tokens(s) for s in ("s", "l", "s")]
    assert all(len(image.kept) == 5 for image in images)
    full = batch(name, ROWS)["input_ids"].shape[1]
    assert length == full - tiny.tokens("s") - tiny.tokens("l") + 10


@torch.no_grad()
def pruning_equals_masking(name, side):
    inputs, model = batch(name, ROWS, side), model_of(name)
    with attached(name, 0.3):
        ours = model(**inputs).logits
        selection = model.autoselect.last
    ours = ours * (selection.columns >= 0)[..., None]
    close(ours, masked_logits(model, inputs, selection))


@torch.no_grad()
def pruning_equals_the_reduced_sequence(name):
    """Check against the untouched model on the kept tokens alone, each at its own position."""
    inputs, model = batch(name, [["l", "s"]]), model_of(name)
    with attached(name, 4):
        ours = model(**inputs).logits
        selection = model.autoselect.last
    close(ours, model(**reduced(model, inputs, selection)).logits)


@torch.no_grad()
def a_batch_equals_its_rows_one_by_one(name, side):
    inputs = batch(name, ROWS, side)
    with attached(name, 4) as model:
        logits = model(**inputs).logits
        columns = model.autoselect.last.columns
        tokens = model.generate(**inputs, **GREEDY)[:, -4:] if side == "left" else None
        for number, row in enumerate(ROWS):
            alone = batch(name, [row], seed=number)
            close(model(**alone).logits[0], logits[number, columns[number] >= 0])
            if tokens is not None:
                assert torch.equal(model.generate(**alone, **GREEDY)[0, -4:], tokens[number])


@torch.no_grad()
def cached_greedy_generation_equals_recomputation_step_by_step(name):
    """Recomputed: the prompt and all new tokens in one call without a cache, every step."""
    inputs = batch(name, [["l"]])
    with attached(name, 0.3) as model:
        cached = model.generate(**inputs, **GREEDY)
        grown = dict(inputs)
        for _ in range(4):
            logits = model(**grown, use_cache=False).logits[:, -1]
            best = logits[:, FIRST_TEXT:].argmax(-1, keepdim=True) + FIRST_TEXT
            grown["input_ids"] = torch.cat([grown["input_ids"], best], dim=1)
            grown["attention_mask"] = torch.ones_like(grown["input_ids"])
            for types in PER_TOKEN[2:]:
                if types in grown:
                    zero = torch.zeros_like(grown[types][:, :1])
                    grown[types] = torch.cat([grown[types], zero], dim=1)
    if name != "paligemma":
        assert torch.equal(cached, grown["input_ids"])


def gated_loss(adapter, scorer, denoiser, inputs, budget, step=0):
    """Next-token loss of the text with noise in the place of unimportant tokens."""
    with torch.no_grad():
        outputs = adapter.encode(inputs)
    blocks = adapter.blocks(inputs["input_ids"], outputs)
    tokens, mask = adapter.tokens(blocks, outputs, later=True)
    scores = standardise(scorer(tokens[..., :WIDTH], mask), mask)
    channels = tokens.shape[-1]
    statistics = NoiseStatistics(torch.zeros(channels), torch.ones(channels))
    key = NoiseKey(0, step, torch.arange(len(blocks)))
    gated, gates = soft_top_k_noise_gate(tokens, scores, budget, 1.0, statistics, key, mask)
    repaired = torch.cat([denoiser(gated[..., :WIDTH]), gated[..., WIDTH:]], dim=-1)
    replaced = adapter.replace(outputs, blocks, repaired)
    call = adapter.with_outputs(inputs, replaced)
    ids = inputs["input_ids"]
    labels = ids.where(ids >= FIRST_TEXT, torch.tensor(-100))
    return adapter.model(**call, labels=labels).loss, gates


def parts(seed=0):
    torch.manual_seed(seed)
    scorer = Scorer(WIDTH, ScorerConfig(hidden_size=16, num_heads=2))
    return scorer, Denoiser(WIDTH, DenoiserConfig(num_layers=1))


def gradients_reach_scorer_and_denoiser_and_the_model_stays_frozen(name):
    adapter, (scorer, denoiser) = VisualAdapter(model_of(name)), parts()
    before = [p.clone() for p in adapter.model.parameters()]
    loss, gates = gated_loss(adapter, scorer, denoiser, batch(name, ROWS, "right"), 4)
    torch.testing.assert_close(gates.sum(1), torch.full((3,), 4.0), rtol=0, atol=1e-4)
    loss.backward()
    for part in (scorer, denoiser):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert sum(float(g.abs().sum()) for g in gradients) > 0
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert all(p.grad is None for p in adapter.model.parameters())
    assert all(map(torch.equal, adapter.model.parameters(), before))


@torch.no_grad()
def all_tokens_of_a_clip_kept_is_the_untouched_model(name):
    inputs, model = clip_batch(name), model_of(name)
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, **BRIEF)
    with attached(name, 1.0):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **BRIEF), tokens)


@torch.no_grad()
def pruning_a_clip_equals_the_reduced_sequence(name):
    inputs, model = clip_batch(name), model_of(name)
    with attached(name, 3):
        ours = model(**inputs).logits
        selection = model.autoselect.last
    assert {block.modality for block in selection.images} == {"video"}
    assert all(len(block.kept) == 3 for block in selection.images)
    close(ours, model(**reduced(model, inputs, selection)).logits)


@torch.no_grad()
def pruning_a_clip_equals_masking(name, per):
    inputs, model = clip_batch(name), model_of(name)
    with attached(name, 3, video_budget_per=per):
        ours = model(**inputs).logits
        selection = model.autoselect.last
        tokens = model.generate(**inputs, **BRIEF)
        assert torch.equal(model.autoselect.last.columns, selection.columns)
    blocks = 1 if per == "clip" else ALL[name].clip.frames
    assert [len(block.kept) for block in selection.images] == [3] * blocks
    assert {block.modality for block in selection.images} == {"video"}
    close(ours, masked_logits(model, inputs, selection))
    assert torch.equal(tokens, masked_generate(model, inputs, selection, **BRIEF))
