"""A tokenizer of whole words, for tiny models."""

from collections.abc import Mapping, Sequence

import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers


def word_tokenizer(words: Sequence[str], special: Mapping[str, str]) -> hf.PreTrainedTokenizerFast:
    """Build a tokenizer that has one token for each of `words`, in their order.

    Among them are `<pad>`, `<s>`, `</s>`, `<unk>` and the values of `special`, which names further
    special tokens by the attributes of a family's processor.
    """
    vocabulary = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=dict(special),
        padding_side="left",
    )
