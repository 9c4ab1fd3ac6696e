"""A small VLM for tests of the training: one layer of each kind, 144 visual tokens per image."""

from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from autoselect.reference.vlm import build_config, build_tokenizer, save_vlm


def write_small_vlm(folder: Path) -> None:
    """Write an untrained VLM and its processor, like the reference VLM with fewer layers."""
    config = build_config(len(build_tokenizer()))
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 1
    torch.manual_seed(0)
    save_vlm(LlavaForConditionalGeneration(config), folder)
