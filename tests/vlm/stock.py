"""What the untouched model says when removed tokens are masked out of its attention.

The full sequence, the original position ids, zeros in the attention mask: the definition of pruning
that needs none of our code.
"""

import copy
import inspect
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from autoselect import Selector, attach, detach
from autoselect.config import ScorerConfig
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.method.scorer import Scorer
from autoselect.pruning.attachment import keeping
from autoselect.vlm import VisualAdapter
from autoselect.vlm.features import keep_features, with_features
from autoselect.vlm.forward import answer_loss
from autoselect.vlm.sites import SITES
from tests.vlm import tiny
from tests.vlm.tiny_prompts import WIDTH


@cache
@torch.inference_mode(False)
def model_of(name: str) -> Any:
    """Build a model once; a test in inference mode may be the first that asks for it."""
    return tiny.build(name)


@cache
def selector(width: int = WIDTH) -> Selector:
    torch.manual_seed(7)
    return Selector(Scorer(width, ScorerConfig(hidden_size=16, num_heads=2))).eval()


def offload(module: torch.nn.Module) -> None:
    """Leave a module without weights of its own between its calls, as accelerate does."""
    own = copy.deepcopy(module)
    vars(module.to("meta"))["forward"] = own.forward


@contextmanager
def attached(name: str, budget: Any, **more: Any):
    """Return the family's model with a selector for the length of a block."""
    model = attach(model_of(name), selector(), budget, **more)
    try:
        yield model
    finally:
        detach(model)


def masked(inputs: dict[str, Any], selection: Any) -> torch.Tensor:
    """Return the attention mask with zeros at removed tokens."""
    mask = inputs["attention_mask"].clone()
    for image in selection.images:
        removed = torch.ones(len(image.columns), dtype=torch.bool)
        removed[image.kept] = False
        mask[image.row, image.columns[removed]] = 0
    return mask


def original_positions(model: Any, inputs: dict[str, Any], generating: bool = False) -> Any:
    """Position ids of the full prompt, as the untouched model numbers it.

    Args:
        model: the untouched model.
        inputs: of the full prompt.
        generating: `generate` counts real tokens only; `forward` counts columns.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    base = model.base_model
    if hasattr(base, "get_rope_index"):
        known = inspect.signature(base.get_rope_index).parameters
        types = ("mm_token_type_ids",) if "mm_token_type_ids" in known else ()
        if all(name in inputs for name in types):
            names = ("image_grid_thw", "video_grid_thw", "target_sizes", *types)
            names += ("target_sizes_videos",)
            grids = {name: inputs.get(name) for name in names if name in known}
            if "video_second_per_grid" in inputs:
                grids["second_per_grids"] = inputs["video_second_per_grid"]
            if "feature_attention_mask" in inputs:
                grids["audio_seqlens"] = inputs["feature_attention_mask"].sum(1)
            return base.get_rope_index(ids, attention_mask=mask, **grids)[0]
    if generating:
        return (mask.cumsum(1) - 1).clamp(min=0)
    first = 1 if model.config.model_type == "paligemma" else 0
    return torch.arange(ids.shape[1]).expand(len(ids), -1) + first


@torch.no_grad()
def masked_logits(model: Any, inputs: dict[str, Any], selection: Any) -> torch.Tensor:
    """Return logits of the untouched model at the columns that stay; zeros at padding."""
    positions = original_positions(model, inputs)
    mask = masked(inputs, selection)
    logits = model(**{**inputs, "attention_mask": mask, "position_ids": positions}).logits
    columns = selection.columns
    taken = logits.gather(1, columns.clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1]))
    return taken * (columns >= 0)[..., None]


def reduced(model: Any, inputs: dict[str, Any], selection: Any) -> dict[str, Any]:
    """Return the untouched model's call without the removed tokens, for one unpadded prompt.

    Their placeholders and features are gone, and all others keep the position that they had.
    """
    keep = masked(inputs, selection)[0].bool()
    adapter = VisualAdapter(model)
    outputs = adapter.encode(inputs)
    left = {}
    for modality, output in outputs.items():
        is_own = inputs["input_ids"][0] == adapter.token_ids[modality]
        left[modality] = keep_features(output, keep[is_own].nonzero()[:, 0])
    call = {n: v[:, keep] for n, v in inputs.items() if n in PER_TOKEN}
    positions = original_positions(model, inputs)[..., keep]
    return {**call, "position_ids": positions, "mm_encoder_outputs": left}


PER_TOKEN = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "moe_mm_token_type_ids",
)


def with_text(inputs, new):
    """Return a prompt with text behind it, [B, new]."""
    longer = dict(inputs)
    for name in PER_TOKEN:
        if name in inputs:
            value = {"input_ids": new, "attention_mask": torch.ones_like(new)}
            added = value.get(name, torch.zeros_like(new)).to(inputs[name].dtype)
            longer[name] = torch.cat([inputs[name], added], dim=1)
    return longer


def masked_generate(model: Any, inputs: dict[str, Any], selection: Any, **more: Any) -> Any:
    """`generate` of the untouched model with removed tokens masked out."""
    positions = original_positions(model, inputs, generating=True)
    mask = masked(inputs, selection)
    return model.generate(**{**inputs, "attention_mask": mask, "position_ids": positions}, **more)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest value."""
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, scale))


def visual_of(vlm: Any, batch: Any, site: str = "after_projector") -> Any:
    """Return the visual tokens of a training batch."""
    pixels = vlm.to_device(batch.pixels)
    return SITES[site].read(vlm.adapter, pixels, batch.input_ids, batch.tokens_per_image)


def features_of(vlm: Any, batch: Any) -> torch.Tensor:
    """Return the features of a training batch as one matrix, [M, C]."""
    visual = visual_of(vlm, batch)
    return visual.real(visual.gated)


def with_matrix(vlm: Any, batch: Any, features: torch.Tensor) -> dict[str, Any]:
    """Return the encoder outputs of a training batch with other features, [M, C]."""
    return {"image": with_features(visual_of(vlm, batch).outputs["image"], features)}


def loss_of(vlm: Any, batch: Any, features: torch.Tensor | None = None, **more: Any) -> Any:
    """Return the loss of a training batch; with other features [M, C] if they are given."""
    features = features_of(vlm, batch) if features is None else features
    return answer_loss(vlm.adapter, batch, with_matrix(vlm, batch, features), **more)


def asked_inputs(vlm: Any, rows: Any, questions: list[str]) -> dict[str, Any]:
    """Return the arguments of `generate` for one question per row of images."""
    asked = AskedVLM(vlm)
    pairs = zip(rows, questions, strict=True)
    return vlm.inputs(rows, [asked.prompt(len(images), question) for images, question in pairs])


@torch.no_grad()
def last_logits(vlm: Any, inputs: dict[str, Any], kept: Any) -> torch.Tensor:
    """Return the logits behind each prompt, with given visual tokens of every image, [R, V]."""
    with keeping(vlm.model, kept):
        return vlm.model(**inputs).logits[:, -1]
