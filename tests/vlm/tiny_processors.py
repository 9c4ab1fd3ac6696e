"""Real processors of a few families around a tiny tokenizer with the ids of `tiny_prompts`."""

from typing import Any

import transformers as hf
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.vlm.tiny_models import PINPOINTS
from tests.vlm.tiny_prompts import BREAK, END, GLOBAL, IMAGE, START, TILE, VIDEO
from tests.word_tokenizer import word_tokenizer

ATOMS = 16

WORDS = "is there a red star ? no yes what does the sign say K7 how many hearts are 3".split()
TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{% for part in message['content'] %}"
    "{{ MARK if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def tokenizer(names: dict[int, str]) -> Any:
    """Whole words, and special tokens with given names at given ids."""
    plain = "<pad> <s> </s> <image> <video> <start> <end> <break> <global-img> <tile> <fake> <unk>"
    special = [*plain.split(), "<user>", "<assistant>"]
    for place, name in names.items():
        special[place] = name
    named = {f"special_{n}": name for n, name in enumerate(special[3:])}
    return word_tokenizer([*special, *WORDS], named)


class ImagesOnly(hf.Qwen2_5_VLProcessor):
    """The video processor of Qwen-VL needs torchvision; images go without it."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return None


def llava_siglip(**more: Any) -> Any:
    """Square crops of 20 x 20 pixels; `more` as of the processor."""
    given = {"patch_size": 4, "vision_feature_select_strategy": "full", **more}
    return hf.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}
        ),
        tokenizer=tokenizer({}),
        chat_template=TEMPLATE.replace("MARK", "'<image>'"),
        **given,
    )


class PixtralWriting(hf.LlavaProcessor):
    """Writes what Pixtral's processor does, which needs torchvision."""

    def replace_image_token(self, image_inputs, image_idx, **more):
        height, width = (int(side) // 4 for side in image_inputs["image_sizes"][image_idx])
        rows = ("[IMG]" * width + "[IMG_BREAK]") * height
        return rows.removesuffix("[IMG_BREAK]") + "[IMG_END]"


def llava_pixtral() -> Any:
    """Build the processor of Pixtral-12B, whose model has the classes of LLaVA."""
    return PixtralWriting(
        image_processor=PixtralImageProcessorPil(
            size={"longest_edge": 32}, patch_size={"height": 4, "width": 4}
        ),
        tokenizer=tokenizer({IMAGE: "[IMG]", BREAK: "[IMG_BREAK]", END: "[IMG_END]"}),
        image_token="[IMG]",
        patch_size=4,
        chat_template=TEMPLATE.replace("MARK", "'[IMG]'"),
    )


def llava_next() -> Any:
    return hf.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 16},
            crop_size={"height": 16, "width": 16},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=tokenizer({}),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("MARK", "'<image>'"),
    )


def qwen2_5_vl() -> Any:
    names = {
        IMAGE: "<|image_pad|>",
        VIDEO: "<|video_pad|>",
        START: "<|vision_start|>",
        END: "<|vision_end|>",
    }
    return ImagesOnly(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=2048
        ),
        tokenizer=tokenizer(names),
        video_processor=None,
        chat_template=TEMPLATE.replace("MARK", "'<|vision_start|><|image_pad|><|vision_end|>'"),
    )


class Qwen3ImagesOnly(hf.Qwen3VLProcessor):
    """As `ImagesOnly`."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return None


def qwen3_vl() -> Any:
    other = qwen2_5_vl()
    return Qwen3ImagesOnly(
        image_processor=other.image_processor,
        tokenizer=other.tokenizer,
        video_processor=None,
        chat_template=other.chat_template,
    )


class OnevisionImagesOnly(hf.LlavaOnevisionProcessor):
    """As `ImagesOnly`."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return None


def llava_onevision() -> Any:
    """Build a processor that cuts an image alone into tiles, and several not."""
    return OnevisionImagesOnly(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer({}),
        video_processor=None,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("MARK", "'<image>'"),
    )


def ovis2() -> Any:
    names = {
        IMAGE: "<IMG_ATOM>",
        START: "<IMG_START>",
        END: "<IMG_END>",
        BREAK: "<IMG_GRID>",
        TILE: "<IMG_COL>",
        GLOBAL: "<IMG_ROW>",
        10: "<image>",
    }
    return hf.Ovis2Processor(
        image_processor=Ovis2ImageProcessorPil(
            size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=2
        ),
        tokenizer=tokenizer(names),
        image_seq_length=ATOMS,
        chat_template=TEMPLATE.replace("MARK", "'<image>'"),
    )


def idefics3() -> Any:
    names = {VIDEO: "<end_of_utterance>", START: "<row_1_col_2>", TILE: "<row_1_col_1>"}
    return hf.Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=tokenizer({**names, 10: "<fake_token_around_image>"}),
        image_seq_len=16,
        chat_template=TEMPLATE.replace("MARK", "'<image>'"),
    )


def gemma3() -> Any:
    names = {IMAGE: "<image_soft_token>", START: "<start_of_image>", END: "<end_of_image>"}
    own = tokenizer(names)
    own.boi_token, own.eoi_token, own.image_token = names[START], names[END], names[IMAGE]
    own.boi_token_id, own.eoi_token_id, own.image_token_id = START, END, IMAGE
    return hf.Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=own,
        image_seq_length=16,
        chat_template=TEMPLATE.replace("MARK", "'<start_of_image>'"),
    )


class JanusImagesOnly(hf.JanusProcessor):
    """Its other image processor needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return None


def janus() -> Any:
    """With the system prompt that the processors on the hub write by themselves."""
    own = tokenizer({})
    own.image_token, own.boi_token, own.eoi_token = "<image>", "<start>", "<end>"
    return JanusImagesOnly(
        image_processor=JanusImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer=own,
        chat_template=TEMPLATE.replace("MARK", "'<image>'"),
        use_default_system_prompt=True,
        num_image_tokens=16,
    )
