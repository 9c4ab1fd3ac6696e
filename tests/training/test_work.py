"""Counts of a step, its rates and its operations."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autoselect.reference.vlm import build_model, build_processor
from autoselect.training.work import ModelSize, StepWork
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import Collator
from autoselect.vlm.forward import answer_loss
from tests.vlm.scene_samples import ROUNDS, sample
from tests.vlm.stock import model_of


@pytest.fixture(scope="module")
def vlm():
    return FrozenVLM(build_model(1), build_processor(), "tiny")


def test_operations_without_attention_are_those_that_pytorch_counts(vlm):
    batch = Collator(vlm, "conversation")([sample(0, ROUNDS)])
    work, size = StepWork.of([batch]), ModelSize.of(vlm)
    with FlopCounterMode(display=False) as vision, torch.no_grad():
        outputs = vlm.adapter.encode(vlm.to_device(batch.pixels))
    features = outputs["image"].pooler_output
    with FlopCounterMode(display=False) as forward:
        leaf = torch.cat(list(features)).requires_grad_()
        outputs["image"].pooler_output = [leaf]
        loss = answer_loss(vlm.adapter, batch, outputs)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    counted = sum(counter.get_total_flops() for counter in (vision, forward, backward))
    # PyTorch does not count the attention kernel of a CPU.
    attention = 12 * size.attention * batch.segments.numel() ** 2
    assert work.operations(size) - attention == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "idefics3", "gemma3"])
def test_every_part_of_a_family_is_counted_once(name):
    vlm = SimpleNamespace(model=model_of(name))
    size = ModelSize.of(vlm)
    tied = vlm.model.get_output_embeddings().weight is vlm.model.get_input_embeddings().weight
    whole = size.vision + size.language + size.head * (1 if tied else 2)
    assert whole == sum(parameter.numel() for parameter in vlm.model.parameters())
    assert min(size.vision, size.language, size.attention, size.patches) > 0


def test_counts_and_rates_of_a_step(vlm):
    collator = Collator(vlm, "conversation")
    batches = [collator([sample(0, ROUNDS), sample(1, ROUNDS[:1])]), collator([sample(2, ROUNDS)])]
    work = StepWork.of([batch.to(torch.device("cpu")) for batch in batches])
    assert work.images == 3 and work.visual == 3 * vlm.num_tokens
    assert work.answers == sum(batch.num_answer_tokens for batch in batches)
    assert work.tokens < work.columns == sum(batch.segments.numel() for batch in batches)
    rates = work.rates(ModelSize.of(vlm), seconds=1.5, waited=0.5, devices=1)
    assert rates["train/images_per_s"] == 1.5
    assert rates["train/data_wait_share"] == 0.25
    text = rates["train/text_tokens_per_s"] + rates["train/visual_tokens_per_s"]
    assert text == pytest.approx(work.tokens / 2)
    assert rates["train/padding_share"] == pytest.approx(1 - work.tokens / work.columns)
