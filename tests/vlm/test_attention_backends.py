"""Any attention backend: eager and SDPA agree; flash attention sees one sequence, not several."""

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

from autoselect import attach
from tests.vlm.stock import attached, close, model_of, selector
from tests.vlm.tiny import batch, build


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma"])
@torch.no_grad()
def test_eager_equals_sdpa(name):
    inputs, model = batch(name, [["s", "l"], [], ["s"]]), model_of(name)
    with attached(name, 4):
        expected = model(**inputs).logits[:, -1]
        model.set_attn_implementation("eager")
        try:
            close(model(**inputs).logits[:, -1], expected)
        finally:
            model.set_attn_implementation("sdpa")


def attend(query, key, value):
    """Causal attention of one sequence, heads last but one: [T, heads, width]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1).transpose(0, 1) for t in (key, value))
    seen = torch.ones(len(query), key.shape[1], dtype=torch.bool).tril(key.shape[1] - len(query))
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1), key, value, attn_mask=seen
    )
    return mixed.transpose(0, 1)


def attend_batch(query, key, value, **_):
    return torch.stack([attend(*row) for row in zip(query, key, value, strict=True)])


def attend_packed(query, key, value, cu_seqlens_q, cu_seqlens_k, **_):
    """Attend to sequences one behind another, none of which sees its neighbours."""
    queries, keys = (ends.diff().tolist() for ends in (cu_seqlens_q, cu_seqlens_k))
    rows = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
    return torch.cat([attend(*row) for row in rows])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "mistral3"])
@torch.no_grad()
def test_gaps_in_the_positions_are_no_seams_for_flash_attention(name, monkeypatch):
    """transformers reads a lone row with gaps in its positions as packed sequences."""

    def functions(_implementation):
        plain = (attend_batch, attend_packed, None, None, None)
        return plain, (lambda **arguments: arguments, None)

    monkeypatch.setattr(flash, "lazy_import_flash_attention", functions)
    model = attach(build(name).double(), selector(), 4)
    turns = [double(batch(name, [["l"]], seed=seed)) for seed in (0, 5)]
    arguments = {"max_new_tokens": 4, "do_sample": False}

    def answers():
        first = model(**turns[0])
        tokens = model.generate(**turns[0], **arguments)
        second = model(**without_mask(turns[1]), past_key_values=first.past_key_values)
        uncached = model(**turns[0], use_cache=False)
        return [first.logits, second.logits, uncached.logits, tokens]

    expected = answers()
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    for ours, theirs in zip(answers(), expected, strict=True):
        close(ours, theirs)


def double(inputs):
    return {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}


def without_mask(inputs):
    return {n: v for n, v in inputs.items() if n != "attention_mask"}
