"""Samples with pictures and conversations, and the losses that models give them."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from PIL import Image

from autoselect.vlm import FrozenVLM
from tests.vlm import tiny_processors
from tests.vlm.stock import model_of

NAMES = ["gemma3", "idefics3", "llava_next", "llava_pixtral", "ovis2", "qwen2_5_vl", "qwen3_vl"]


ROUNDS = [("is there a red star ?", "no"), ("what does the sign say ?", "K7")]


@dataclass
class Sample:
    key: str
    sample_id: int
    record: dict
    pictures: tuple = field(default=())
    shard: str = "a.tar"
    offset: int = 512


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


def stock_loss(vlm, pictures, rounds):
    """Return the loss of the untouched model on its own processor's inputs for the conversation."""
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
