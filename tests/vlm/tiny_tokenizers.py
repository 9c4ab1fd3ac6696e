"""Tokenizers of the kinds that published models use, trained on a few sentences."""

from typing import Any

import transformers as hf
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from autoselect.reference.vlm import build_tokenizer

SPECIAL = ("<unk>", "<s>", "</s>", "<image>", "<pad>", "<user>", "<assistant>")
BOS = [("<s>", SPECIAL.index("<s>"))]
SENTENCES = [
    "USER: is there a red star ? ASSISTANT: no USER:",
    "USER: what does the sign say ? ASSISTANT: it says K7, not é or 星",
    "USER: how many hearts are there? ASSISTANT: 3 hearts  and a star",
]


def _fast(inner: Tokenizer, trainer: Any) -> hf.PreTrainedTokenizerFast:
    inner.train_from_iterator(SENTENCES, trainer)
    inner.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def _bpe(initial: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=initial, show_progress=False
    )


def llama() -> hf.PreTrainedTokenizerFast:
    """Build one like LLaVA-1.5's: a space before every stretch of text, BOS before everything."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    tokenizer = _fast(inner, _bpe([]))
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([])
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=BOS)
    return tokenizer


def metaspace() -> hf.PreTrainedTokenizerFast:
    """Build one that puts a space before the first stretch of text only."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace()
    return _fast(inner, _bpe([]))


def byte_level() -> hf.PreTrainedTokenizerFast:
    """Build one like Qwen's: bytes, no BOS."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return _fast(inner, _bpe(pre_tokenizers.ByteLevel.alphabet()))


def byte_level_with_bos() -> hf.PreTrainedTokenizerFast:
    """Build one like Llama 3's: bytes, offsets without their spaces, BOS before everything."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=BOS),
        ]
    )
    return tokenizer


def word_pieces() -> hf.PreTrainedTokenizerFast:
    """Build that of the reference VLM."""
    return build_tokenizer()
