"""Every family: all kept is the untouched model, pruning is masking, batches are their rows."""

import pytest
import torch

from tests.vlm.stock import attached, close, masked_generate, masked_logits, model_of
from tests.vlm.tiny import TINY, batch

FAMILIES = sorted(TINY)
MASKING = [name for name in FAMILIES if TINY[name].equals_masking]
VIDEO = [name for name in FAMILIES if TINY[name].clip]
ROWS = [["s", "l"], [], ["s"]]
GREEDY = {"max_new_tokens": 4, "do_sample": False}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_all_tokens_kept_is_the_untouched_model(name):
    inputs, model = batch(name, ROWS), model_of(name)
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, **GREEDY)
    with attached(name, 1.0):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_image_of_every_row_has_its_own_budget(name):
    tiny = TINY[name]
    with attached(name, 5) as model:
        length = model(**batch(name, ROWS)).logits.shape[1]
        images = model.autoselect.last.images
    assert [(image.row, image.item) for image in images] == [(0, 0), (0, 1), (2, 0)]
    assert [len(image.scores) for image in images] == [tiny.tokens(s) for s in ("s", "l", "s")]
    assert all(len(image.kept) == 5 for image in images)
    full = batch(name, ROWS)["input_ids"].shape[1]
    assert length == full - tiny.tokens("s") - tiny.tokens("l") + 10


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_pruning_equals_masking(name, side):
    inputs, model = batch(name, ROWS, side), model_of(name)
    with attached(name, 0.3):
        ours = model(**inputs).logits
        selection = model.autoselect.last
    ours = ours * (selection.columns >= 0)[..., None]
    close(ours, masked_logits(model, inputs, selection))


@pytest.mark.parametrize("name", MASKING)
def test_generation_equals_that_of_the_masked_model(name):
    inputs, model = batch(name, ROWS), model_of(name)
    with attached(name, 0.3):
        ours = model.generate(**inputs, **GREEDY)
        selection = model.autoselect.last
    assert torch.equal(ours, masked_generate(model, inputs, selection, **GREEDY))
    assert torch.equal(ours[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_equals_its_rows_one_by_one(name, side):
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
