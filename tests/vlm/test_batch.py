"""Training batches: answers are labelled, rounds are independent, text without images is out."""

import pytest
import torch

from autoselect.data.faults import BadSample
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import IGNORED_LABEL, Collator, attention_mask
from autoselect.vlm.forward import text_hidden
from tests.vlm.scene_samples import ROUNDS, FakeSample, sample
from tests.vlm.stock import asked_inputs, features_of, last_logits, loss_of, with_matrix


@pytest.fixture(scope="module")
def vlm():
    return FrozenVLM(build_model(1), build_processor(), "tiny")


def answers_of(batch, row: int, tokenizer) -> list[int]:
    labels = batch.labels[row]
    return labels[labels != IGNORED_LABEL].tolist()


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_exactly_the_answers_are_labelled(vlm, rounds):
    batch = Collator(vlm, rounds)([sample(0, ROUNDS)])
    tokenizer = vlm.processor.tokenizer
    expected = tokenizer("no</s>K7</s>")["input_ids"]
    assert answers_of(batch, 0, tokenizer) == expected
    assert int((batch.input_ids == vlm.adapter.image_token_id).sum()) == 144


def test_independent_rounds_equal_separate_samples(vlm):
    collate = Collator(vlm, "independent")
    together = collate([sample(0, ROUNDS)])
    packed = loss_of(vlm, together)
    apart = sum(loss_of(vlm, collate([sample(0, [pair])])) for pair in ROUNDS)
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-5)


def test_a_conversation_lets_later_rounds_see_earlier_ones(vlm):
    collate = Collator(vlm, "conversation")
    other = [("is there a blue star ?", "yes"), ROUNDS[1]]
    first, second = collate([sample(0, ROUNDS)]), collate([sample(0, other)])
    features = features_of(vlm, first)
    hidden = [
        text_hidden(vlm.adapter, batch, with_matrix(vlm, batch, features))[0, -2]
        for batch in (first, second)
    ]
    assert not torch.allclose(*hidden)


def test_padding_changes_no_loss(vlm):
    collate = Collator(vlm, "independent")
    rows = [sample(0, ROUNDS), sample(1, ROUNDS[:1])]
    both = collate(rows)
    apart = sum(loss_of(vlm, collate([row])) for row in rows)
    torch.testing.assert_close(loss_of(vlm, both), apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_text_without_an_image_trains_nothing_and_lengthens_no_row(vlm, rounds):
    """A micro-batch beside a long text is the one beside a blank, in length, labels and loss."""
    collate = Collator(vlm, rounds)
    pictured, long = sample(0, ROUNDS), sample(1, ROUNDS * 40, image=False)
    blank = FakeSample("q", 1, {"conversations": [{"from": "human", "value": ""}]}, ())
    alone, mixed, beside_blank = (collate([pictured, *more]) for more in ([], [long], [blank]))
    assert mixed.num_images == 1
    assert answers_of(mixed, 1, None) == []
    assert mixed.num_answer_tokens == alone.num_answer_tokens
    assert mixed.input_ids.shape == (2, alone.input_ids.shape[1])
    assert torch.equal(mixed.input_ids, beside_blank.input_ids)
    assert collate.dropped_rounds == 0
    torch.testing.assert_close(loss_of(vlm, mixed), loss_of(vlm, alone))


def test_rounds_whose_images_did_not_fit_train_nothing(vlm):
    """What is left of the conversation is text only."""
    later = FakeSample("s", 2, sample(0, ROUNDS).record, sample(0, ROUNDS).pictures)
    later.record["conversations"][2]["value"] = "<image>\nwhat does the sign say ?"
    collate = Collator(vlm, "conversation", max_text_tokens=60)
    batch = collate([later])
    assert (batch.num_images, batch.num_answer_tokens, collate.dropped_rounds) == (0, 0, 1)
    assert batch.input_ids.shape == (1, 1)


def test_recomputation_changes_no_gradient(vlm):
    batch = Collator(vlm)([sample(0, ROUNDS)])
    features = features_of(vlm, batch)
    gradients = []
    for recompute in (False, True):
        visual = features.clone().requires_grad_()
        loss_of(vlm, batch, visual, recompute=recompute).backward()
        gradients.append(visual.grad)
    assert torch.equal(*gradients)


def test_the_mask_of_independent_rounds_by_hand():
    segments = torch.tensor([[-1, -1, 0, 0, 1, -2]])
    seen = attention_mask(segments, torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_turns_that_do_not_alternate_are_named(vlm):
    bad = FakeSample("bad", 0, {"conversations": [{"from": "gpt", "value": "x"}]}, ())
    with pytest.raises(
        BadSample, match="sample 'bad' .* wrong_json: turn 0: 'from' must be 'human'"
    ):
        Collator(vlm)([bad])


def test_where_the_mask_has_a_gradient_the_queries_have_one(vlm):
    """Attention kernels on a GPU rely on it; nothing else may have made the tokens need one."""
    batch = Collator(vlm)([sample(0, ROUNDS)])
    seen = []
    layer = vlm.model.get_decoder().layers[0]
    hook = layer.register_forward_pre_hook(lambda _, tokens: seen.append(tokens[0].requires_grad))
    log_weights = torch.zeros(144, requires_grad=True)
    loss_of(vlm, batch, log_weights=log_weights).backward()
    loss_of(vlm, batch)
    hook.remove()
    assert seen == [True, False]
    assert float(log_weights.grad.abs().sum()) > 0


def test_a_weight_of_zero_in_attention_is_removal(vlm):
    """Logits of removed tokens' batch equal those of the pruned prompt at the same positions."""
    question = "what does the sign say ?"
    batch = Collator(vlm)([sample(0, [(question, "K7")])])
    outputs = with_matrix(vlm, batch, features_of(vlm, batch))
    kept = torch.tensor([[3, 17, 60, 61, 140]])
    log_weights = torch.full((144,), -1e4).index_fill(0, kept[0], 0.0)
    hidden = text_hidden(vlm.adapter, batch, outputs, log_weights=log_weights)
    first = int((batch.labels[0] != IGNORED_LABEL).int().argmax())
    ours = vlm.model.get_output_embeddings()(hidden[:, first])
    inputs = asked_inputs(vlm, [sample(0, []).pictures], [question])
    pruned = last_logits(vlm, inputs, list(kept))
    torch.testing.assert_close(ours, pruned, rtol=0, atol=1e-5)


def test_weights_in_attention_get_a_gradient(vlm):
    batch = Collator(vlm)([sample(0, ROUNDS)])
    log_weights = torch.zeros(144, requires_grad=True)
    loss_of(vlm, batch, log_weights=log_weights).backward()
    assert bool((log_weights.grad != 0).all())
