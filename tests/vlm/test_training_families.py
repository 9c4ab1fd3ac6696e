"""Training batches of other families: images of many sizes, several per row, on a grid."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BatchFeature, ProcessorMixin

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.files import from_dict
from autoselect.data.faults import BadSample
from autoselect.method.gating import GateSetting
from autoselect.method.model import AutoSelect
from autoselect.method.statistics import TokenStatistics
from autoselect.reference.vlm import build_processor
from autoselect.vlm import Collator, FrozenVLM, TrainBatch
from autoselect.vlm.batches.batch import IGNORED_LABEL
from autoselect.vlm.forward import answer_loss
from autoselect.vlm.text.placeholders import OFFSETS, written_texts
from tests.vlm import tiny_processors
from tests.vlm.conversations import (
    NAMES,
    ROUNDS,
    SQUARE,
    WIDE,
    frozen,
    picture,
    sample,
    stock_loss,
)
from tests.vlm.stock import features_of, loss_of, model_of, visual_of
from tests.vlm.tiny import batch as tiny_batch
from tests.vlm.tiny_prompts import IMAGE, WIDTH


@pytest.mark.parametrize("name", [*NAMES, "llava_siglip"])
@pytest.mark.parametrize("pictures", [(WIDE,), (SQUARE, WIDE)])
@torch.no_grad()
def test_a_conversation_has_the_loss_of_the_untouched_model(name, pictures):
    vlm = frozen(name)
    batch = Collator(vlm, "conversation")([sample(0, pictures)])
    torch.testing.assert_close(loss_of(vlm, batch), stock_loss(vlm, pictures, ROUNDS))


@pytest.mark.parametrize("name", [*NAMES, "llava_siglip"])
@torch.no_grad()
def test_independent_rounds_have_the_losses_of_separate_conversations(name):
    vlm, pictures = frozen(name), (SQUARE, WIDE)
    batch = Collator(vlm, "independent")([sample(0, pictures)])
    apart = sum(stock_loss(vlm, pictures, [pair]) for pair in ROUNDS)
    torch.testing.assert_close(loss_of(vlm, batch), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rounds", ["independent", "conversation"])
@torch.no_grad()
def test_rows_of_many_sizes_have_the_sum_of_their_losses(name, rounds):
    vlm = frozen(name)
    collate = Collator(vlm, rounds)
    samples = [sample(0, (SQUARE,)), sample(1, ()), sample(2, (WIDE, SQUARE))]
    batch = collate(samples)
    visual = visual_of(vlm, batch)
    counts = batch.tokens_per_image
    assert len(visual.tokens) == batch.num_images == 3
    assert int((batch.input_ids == IMAGE).sum()) == sum(counts)
    if visual.mask is not None:
        assert visual.mask.sum(1).tolist() == counts == visual.counts
    answers = batch.labels[batch.labels != IGNORED_LABEL].tolist()
    assert answers == vlm.processor.tokenizer("no</s>K7</s>" * 2)["input_ids"]
    apart = sum(loss_of(vlm, collate([one])) for one in samples if one.pictures)
    torch.testing.assert_close(loss_of(vlm, batch), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_masks_what_shorter_images_lack(name):
    vlm = frozen(name)
    sizes = {
        "scorer": {"hidden_size": 16, "num_heads": 2},
        "gate": {"token_budget": 3, "min_token_budget": 3},
    }
    batch = Collator(vlm)([sample(0, (SQUARE,)), sample(1, ()), sample(2, (WIDE,))])
    channels = visual_of(vlm, batch).gated.shape[-1]
    statistics = TokenStatistics(
        torch.zeros(channels), torch.ones(channels), participation_ratio=1.0
    )
    model = AutoSelect(vlm, from_dict(TrainConfig, sizes), statistics)
    output = model(batch, GateSetting(token_budget=3, temperature=1.0, seed=0, step=0))
    torch.testing.assert_close(output.gate_sum, torch.tensor(6.0), rtol=0, atol=1e-3)
    output.loss_sum.backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    assert sum(float(g.abs().sum()) for g in trained if g is not None) > 0
    assert all(p.grad is None for p in vlm.model.parameters())
    model.zero_grad()
    alone = model(Collator(vlm)([sample(1, ())]), GateSetting(3, 1.0, 0, 0))
    alone.loss_sum.backward()
    assert float(alone.loss_sum.detach()) == 0
    assert all(float(p.grad.abs().sum()) == 0 for p in model.scorer.parameters())


@pytest.mark.parametrize("kind", ["noise", "zero_fill", "multiplicative", "straight_through"])
def test_a_budget_above_an_image_keeps_all_of_it(kind):
    """Images of 4 and 18 tokens, K = 10; and K above every image of the batch."""
    vlm = frozen("qwen2_5_vl")
    config = from_dict(
        TrainConfig, {"scorer": {"hidden_size": 16, "num_heads": 2}, "gate": {"kind": kind}}
    )
    statistics = TokenStatistics(torch.zeros(WIDTH), torch.ones(WIDTH), participation_ratio=1.0)
    model = AutoSelect(vlm, config, statistics)
    small, large = picture(2, (16, 16)), picture(3, (48, 24))
    batch = Collator(vlm)([sample(0, (small,)), sample(1, (large,))])
    counts = batch.tokens_per_image
    between = (min(counts) + max(counts)) // 2
    assert min(counts) < between < max(counts)
    polarised = model(batch, GateSetting(between, 1e-3, 0, 0))
    assert polarised.wanted_sum == min(counts) + between
    assert (polarised.smaller_images, polarised.images) == (1, 2)
    assert float(polarised.top_gate_sum) / polarised.wanted_sum > 0.95, "closed or open gates"
    assert float(polarised.gate_sum) == pytest.approx(polarised.wanted_sum, rel=1e-4)
    everything = model(batch, GateSetting(max(counts) + 5, 1e-3, 0, 0))
    torch.testing.assert_close(everything.loss_sum.detach(), loss_of(vlm, batch))
    assert everything.wanted_sum == float(everything.gate_sum) == sum(counts)
    assert everything.smaller_images == 2


def test_a_raster_is_what_the_model_says_or_none():
    """A square number of tokens does not make the image square."""
    wide = [picture(0, (64, 16))]
    vlm = frozen("qwen2_5_vl")
    rows, columns = vlm.grid_of(wide[0])
    visual = vlm.encode_images(wide)
    assert rows * columns == visual.tokens.shape[1] and columns == 4 * rows
    assert frozen("idefics3").grid_of(SQUARE) is None


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
@torch.no_grad()
def test_layers_with_a_window_keep_it(rounds):
    """Gemma 3, whose images see themselves, with a window shorter than the row."""
    model = model_of("gemma3")
    config = model.config.get_text_config()
    before = config.sliding_window
    layers = [layer.self_attn for layer in model.model.language_model.layers]
    windows = [layer.sliding_window for layer in layers]
    vlm = FrozenVLM(model, tiny_processors.gemma3(), "gemma3")
    pairs = ROUNDS if rounds == "conversation" else ROUNDS[:1]
    try:
        losses = []
        for window in (before, 6):
            config.sliding_window = window
            for layer in layers:
                layer.sliding_window = window if layer.is_sliding else None
            batch = Collator(vlm, rounds)([sample(0, (SQUARE,), pairs)])
            losses.append(float(stock_loss(vlm, (SQUARE,), pairs)))
            assert float(loss_of(vlm, batch)) == pytest.approx(losses[-1], rel=1e-5)
        assert losses[0] != pytest.approx(losses[1], rel=1e-3), "the window matters here"
    finally:
        config.sliding_window = before
        for layer, window in zip(layers, windows, strict=True):
            layer.sliding_window = window


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_a_limit_that_would_cut_images_is_named(rounds):
    collate = Collator(frozen("idefics3"), rounds, max_text_tokens=50)
    with pytest.raises(BadSample, match="'s0' .* data.max_text_tokens=50, .* images take 48"):
        collate([sample(0, (WIDE,))])


@torch.no_grad()
def test_closed_gates_hide_the_image_from_later_layers_too():
    """Qwen3-VL: with every token of every layer replaced, two images give the same loss."""
    vlm = frozen("qwen3_vl")
    losses = []
    for seed in (0, 1):
        batch = Collator(vlm)([sample(0, (picture(seed, (20, 20)),))])
        features = features_of(vlm, batch)
        assert features.shape[-1] == 3 * WIDTH
        losses.append(loss_of(vlm, batch, torch.zeros_like(features)))
    assert torch.equal(*losses)


def test_recomputed_activations_give_the_same_gradient():
    vlm = frozen("qwen3_vl")
    batch = Collator(vlm)([sample(0, (SQUARE,))])
    gradients = []
    for recompute in (False, True):
        tokens = features_of(vlm, batch).requires_grad_()
        loss_of(vlm, batch, tokens, recompute=recompute).backward()
        gradients.append(tokens.grad)
    assert torch.equal(*gradients) and bool(gradients[0][:, WIDTH:].any())


@pytest.mark.parametrize("soft_removal", [False, True])
@torch.no_grad()
def test_layers_of_convolutions_see_what_they_always_see(soft_removal):
    """LFM2-VL, whose processor needs torchvision: a prompt written token by token."""
    model = model_of("lfm2_vl")
    vlm = FrozenVLM(model, build_processor(), "lfm2_vl")
    inputs = tiny_batch("lfm2_vl", [["s"], []], "right")
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    labels = ids.roll(-1, 1).where(real & real.roll(-1, 1), torch.tensor(IGNORED_LABEL))
    labels[:, -1] = IGNORED_LABEL
    outputs = vlm.adapter.encode(inputs)
    count = int((ids == IMAGE).sum())
    batch = TrainBatch(
        input_ids=ids,
        labels=labels,
        position_ids=(real.cumsum(1) - 1).clamp(min=0),
        segments=torch.where(real, 0, -2),
        pixels={},
        tokens_per_image=[count],
        image_ids=torch.zeros(1, dtype=torch.long),
    )
    weights = torch.zeros(count) if soft_removal else None
    loss = answer_loss(vlm.adapter, batch, outputs, log_weights=weights)
    logits = model(**inputs).logits
    known = labels != IGNORED_LABEL
    expected = F.cross_entropy(logits[known], labels[known], reduction="sum")
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ConfigError, match="set data.rounds=conversation"):
        Collator(vlm, "independent")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("paligemma", "prefix"),
        ("got_ocr2", "rows"),
        ("perception_lm", "tiles"),
        ("idefics2", "what it writes"),
    ],
)
def test_a_family_that_cannot_be_trained_says_why(name, reason):
    vlm = FrozenVLM(model_of(name), build_processor(), name)
    with pytest.raises(ConfigError, match=rf"{name}\) cannot be trained on: .*{reason}"):
        Collator(vlm)


def test_lists_of_a_processor_reach_the_encoder(monkeypatch):
    """Unlimited-OCR's writes the numbers of crops, and their columns and rows, as lists."""
    vlm = FrozenVLM(model_of("llava_next"), tiny_processors.llava_next(), "llava_next")
    stock = type(vlm.processor).__call__

    def with_lists(processor, *arguments, **more):
        return BatchFeature({**stock(processor, *arguments, **more), "patches_grid": [[2, 1]]})

    monkeypatch.setattr(type(vlm.processor), "__call__", with_lists)
    batch = Collator(vlm)([sample(0, (WIDE,))]).to(torch.device("cpu"))
    assert vlm.to_device(batch.pixels)["patches_grid"] == [[2, 1]]
    assert batch.pixels["pixel_values"].dtype == torch.float32


def test_attention_without_weights_is_named_where_they_are_asked_for():
    """GLM-5.3 Flash, which trains without them."""
    vlm = FrozenVLM(model_of("glm5_next"), build_processor(), "glm5")
    config = from_dict(TrainConfig, {"gate": {"soft_removal": True}})
    statistics = TokenStatistics(torch.zeros(WIDTH), torch.ones(WIDTH), participation_ratio=1.0)
    with pytest.raises(ConfigError, match="gate.soft_removal=true: the attention of model=glm5"):
        AutoSelect(vlm, config, statistics)


@torch.no_grad()
def test_a_processor_that_reports_nothing_is_asked_what_it_writes(monkeypatch):
    """Nemotron Omni's forgets it; a batch is the same either way."""
    vlm, samples = frozen("qwen2_5_vl"), [sample(0, (SQUARE, WIDE)), sample(1, ())]
    told = Collator(vlm)(samples)
    stock = type(vlm.processor).__call__

    def silent(processor, *arguments, **more):
        return stock(processor, *arguments, **{**more, f"return_{OFFSETS}": False})

    monkeypatch.setattr(type(vlm.processor), "__call__", silent)
    asked = Collator(vlm)(samples)
    assert torch.equal(asked.input_ids, told.input_ids)
    assert asked.tokens_per_image == told.tokens_per_image


def test_a_processor_that_never_tells_what_it_writes_is_named():
    class Silent(ProcessorMixin):
        def __init__(self):
            pass

    with pytest.raises(ConfigError, match="Silent does not report what it writes for an image"):
        written_texts(Silent(), {}, [[SQUARE]])


@torch.no_grad()
def test_types_of_tokens_that_a_processor_leaves_out_are_asked_for(monkeypatch):
    """Cosmos 3 Edge's processor leaves out what its model needs to place images on a grid."""
    vlm = frozen("qwen2_5_vl")
    text = f"{vlm.image_mark} how many ?"
    stock = vlm.inputs([[SQUARE]], [text])
    monkeypatch.setattr(type(vlm.processor), "return_mm_token_type_ids", False)
    given = vlm.inputs([[SQUARE]], [text])
    assert torch.equal(given["mm_token_type_ids"], stock["mm_token_type_ids"])
    assert torch.equal(vlm.model(**given).logits, vlm.model(**stock).logits)
