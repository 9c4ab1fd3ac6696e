"""Training batches of other families: images of many sizes, several per row, on a grid."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from autoselect.calibration import TokenStatistics
from autoselect.config import ConfigError, TrainConfig, from_dict
from autoselect.model import AutoSelect, GateSetting
from autoselect.reference.vlm import build_processor
from autoselect.vlm import Collator, FrozenVLM
from autoselect.vlm.batch import IGNORED_LABEL
from autoselect.vlm.forward import answer_loss
from tests.vlm import tiny_processors
from tests.vlm.stock import model_of
from tests.vlm.tiny_prompts import IMAGE, WIDTH

NAMES = ["gemma3", "idefics3", "llava_next", "qwen2_5_vl"]
ROUNDS = [("is there a red star ?", "no"), ("what does the sign say ?", "K7")]


@dataclass
class Sample:
    key: str
    sample_id: int
    record: dict
    pictures: tuple = field(default=())


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = torch.rand(size[1], size[0], 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((noise * 255).byte().numpy())


WIDE, SQUARE = picture(0, (48, 24)), picture(1, (20, 20))


def sample(number, pictures, rounds=ROUNDS):
    turns = []
    for question, answer in rounds:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return Sample(f"s{number}", number, {"conversations": turns}, tuple(pictures))


def frozen(name):
    return FrozenVLM(model_of(name), getattr(tiny_processors, name)(), name)


def loss_of(vlm, batch):
    visual = vlm.encode(batch.pixels)
    tokens = visual.tokens if visual.mask is None else visual.tokens[visual.mask]
    return answer_loss(vlm, batch, tokens.flatten(0, -2))


def stock_loss(vlm, pictures, rounds):
    """The untouched model on what its own processor makes of the whole conversation."""
    messages = []
    for number, (question, answer) in enumerate(rounds):
        images = [{"type": "image"}] * (len(pictures) if number == 0 else 0)
        messages += [
            {"role": "user", "content": [*images, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    text = vlm.processor.apply_chat_template(messages, tokenize=False)
    inputs = vlm.processor(
        images=[list(pictures)], text=[text], return_tensors="pt", add_special_tokens=False
    )
    logits = vlm.model(**inputs).logits[0, :-1]
    ids = inputs["input_ids"][0]
    tokens = vlm.processor.tokenizer
    assistant, end = tokens.convert_tokens_to_ids(["<assistant>", "</s>"])
    answer = torch.zeros_like(ids, dtype=torch.bool)
    inside = False
    for place, token in enumerate(ids.tolist()):
        answer[place] = inside
        inside = token == assistant or (inside and token != end)
    return F.cross_entropy(logits[answer[1:]], ids[1:][answer[1:]], reduction="sum")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pictures", [(WIDE,), (SQUARE, WIDE)])
@torch.no_grad()
def test_a_conversation_has_the_loss_of_the_untouched_model(name, pictures):
    vlm = frozen(name)
    batch = Collator(vlm, "conversation")([sample(0, pictures)])
    torch.testing.assert_close(loss_of(vlm, batch), stock_loss(vlm, pictures, ROUNDS))


@pytest.mark.parametrize("name", NAMES)
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
    visual = vlm.encode(batch.pixels)
    counts = batch.pixels["tokens_per_image"]
    assert len(visual.tokens) == batch.num_images == 3
    assert int((batch.input_ids == IMAGE).sum()) == int(counts.sum())
    if visual.mask is not None:
        assert torch.equal(visual.mask.sum(1), counts)
    answers = batch.labels[batch.labels != IGNORED_LABEL].tolist()
    assert answers == vlm.processor.tokenizer("no</s>K7</s>" * 3)["input_ids"]
    apart = sum(loss_of(vlm, collate([one])) for one in samples if one.pictures)
    apart += answer_loss(vlm, collate([samples[1]]), torch.zeros(0, WIDTH))
    torch.testing.assert_close(loss_of(vlm, batch), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_masks_what_shorter_images_lack(name):
    vlm = frozen(name)
    sizes = {
        "scorer": {"hidden_size": 16, "num_heads": 2},
        "gate": {"token_budget": 3, "min_token_budget": 3},
    }
    statistics = TokenStatistics(torch.zeros(WIDTH), torch.ones(WIDTH), None, 1.0)
    model = AutoSelect(vlm, from_dict(TrainConfig, sizes), statistics)
    batch = Collator(vlm)([sample(0, (SQUARE,)), sample(1, ()), sample(2, (WIDE,))])
    output = model(batch, GateSetting(token_budget=3, temperature=1.0, seed=0, step=0))
    torch.testing.assert_close(output.gate_sum, torch.tensor(6.0), rtol=0, atol=1e-3)
    output.loss_sum.backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    assert sum(float(g.abs().sum()) for g in trained if g is not None) > 0
    assert all(p.grad is None for p in vlm.model.parameters())
    alone = model(Collator(vlm)([sample(1, ())]), GateSetting(3, 1.0, 0, 0))
    assert float(alone.loss_sum.detach()) == 0.0


def test_prefixes_by_hand_are_refused_where_a_prompt_is_more_than_columns():
    vlm = frozen("qwen2_5_vl")
    with pytest.raises(ConfigError, match="autoselect.attach"):
        vlm.prefix({"input_ids": torch.tensor([[IMAGE]])}, torch.zeros(1, 1, WIDTH))


def test_a_limit_that_would_cut_images_is_named():
    collate = Collator(frozen("idefics3"), "conversation", max_text_tokens=50)
    with pytest.raises(ConfigError, match="sample s0: .* data.max_text_tokens=50"):
        collate([sample(0, (WIDE,))])


@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl", "ovis2", "lfm2_vl"])
def test_families_that_cannot_be_trained_yet_say_why(name):
    vlm = FrozenVLM(model_of(name), build_processor(), name)
    with pytest.raises(ConfigError, match=rf"{name}\) cannot be trained on yet"):
        Collator(vlm)
