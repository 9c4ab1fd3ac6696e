"""Patch embeddings of a stock vision tower, and the tower on some of them.

For towers with one row per patch and plain attention, such as CLIP, SigLIP and DINOv2: positions
are added to the embeddings, and what follows treats rows alike wherever they stand. The tower then
runs on fewer patches as it is, and each keeps its position. Its embedding layer is called, and in a
second call its output is replaced; nothing of the tower is copied.

Dimension letters: I images, P class and register tokens, N patches, C channels of the tower, K
patches that stay, D channels of a projector output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from autoselect.config import ConfigError
from autoselect.vlm.adapter import PIXELS, VisualAdapter
from autoselect.vlm.offloaded import device_of_inputs

TOWERS = ("vision_tower", "vision_model", "visual")
SITE = "site=before_encoder"
MERGING = "its vision tower merges neighbouring patches into one token"
WINDOWED = "its vision tower attends in windows and merges neighbouring patches"
SHUFFLED = "its projector joins neighbouring patches of a whole grid into one token"
POOLING = "its projector averages neighbouring patches of a whole grid"
RESAMPLED = "its projector resamples all patches into other tokens"
CONVOLUTIONAL = "its vision tower is convolutional"
ROWS = "its tokens are arranged by the picture's grid behind the tower, with newline tokens"
REFUSED = {
    "aya_vision": SHUFFLED,
    "aria": RESAMPLED,
    "cohere2_vision": SHUFFLED,
    "deepseek_vl_hybrid": "two vision towers see the image, one of them in windows",
    "fast_vlm": CONVOLUTIONAL,
    "gemma3": POOLING,
    "gemma3n": CONVOLUTIONAL,
    "glm46v": MERGING,
    "glm4v": MERGING,
    "glm4v_moe": MERGING,
    "glm_ocr": MERGING,
    "glmga": MERGING,
    "got_ocr2": WINDOWED,
    "idefics2": RESAMPLED,
    "idefics3": SHUFFLED,
    "internvl": SHUFFLED,
    "lfm2_vl": SHUFFLED,
    "llava_next": ROWS,
    "llava_next_video": ROWS,
    "llava_onevision": ROWS,
    "mistral3": MERGING,
    "ovis2": MERGING,
    "perception_lm": POOLING,
    "pp_chart2table": WINDOWED,
    "qianfan_ocr": SHUFFLED,
    "qwen2_5_vl": WINDOWED,
    "qwen2_vl": MERGING,
    "qwen3_vl": MERGING,
    "qwen3_vl_moe": MERGING,
    "shieldgemma2": POOLING,
    "smolvlm": SHUFFLED,
    "video_llava": "the class token of every frame is one of its visual tokens",
}
"""Why the patches of a model type cannot be removed before its vision encoder."""

TRIED = 3


@dataclass
class SiteFeatures:
    """Features at a site before the language model, in the place of encoder outputs.

    `generate` hands encoder outputs on and repeats their `pooler_output` for beams; so it may hold
    features of an earlier site, one entry [N, C] per image, until tokens are chosen.

    Attributes:
        pooler_output: features of the images, [I, N, C] or a list of I.
        extra: class and register tokens, the same for all images, [1, P, C]; None behind the tower.
        in_list: whether the model's own encoder returns a list of images, not one tensor.
    """

    pooler_output: Any
    extra: Tensor | None = None
    in_list: bool = True
    last_hidden_state: None = None

    @property
    def entries(self) -> Tensor:
        """Return the features of all images, [I, N, C]."""
        found = self.pooler_output
        return found if isinstance(found, Tensor) else torch.stack(list(found))


def check_kind(kind: str) -> None:
    """Raise ConfigError if patches of a model type cannot be removed before its encoder."""
    if kind in REFUSED:
        raise _refusal(kind, REFUSED[kind])


def tower_of(adapter: VisualAdapter) -> Any:
    """Return the vision tower, or None if none is named."""
    found = (getattr(adapter.base, name, None) for name in TOWERS)
    return next((tower for tower in found if tower is not None), None)


def embedding_layer(adapter: VisualAdapter) -> nn.Module:
    """Return the layer of the tower that makes patch embeddings.

    Raises:
        ConfigError: the model type is refused, or its tower has no such layer.
    """
    kind = adapter.model.config.model_type
    check_kind(kind)
    tower = tower_of(adapter)
    if tower is None:
        raise _refusal(kind, "no vision tower is named")
    layers = {n: m for n, m in tower.named_modules() if n.split(".")[-1] == "embeddings"}
    if not layers:
        raise _refusal(kind, f"its tower {type(tower).__name__} has no layer `embeddings`")
    return layers[min(layers, key=len)]


def check_patches(adapter: VisualAdapter) -> int:
    """Check, on three patches, that the tower takes any of them in any order; return C.

    Raises:
        ConfigError: it does not; the message names the model type and the reason.
    """
    kind = adapter.model.config.model_type
    layer = embedding_layer(adapter)
    with torch.no_grad():
        try:
            whole = _split(layer(_noise_pixels(adapter)), adapter)
            some = whole.entries[:, :TRIED]
            first, second = (
                entries_of(run_tower(adapter, rows, whole.extra))[0]
                for rows in (some, some.flip(1))
            )
        except ConfigError:
            raise
        except Exception as error:  # each tower fails on rows it does not expect in its own way
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise _refusal(kind, f"its tower does not run on some of its patches ({reason})") from (
                error
            )
    if first.shape != (TRIED, adapter.width) or first.shape != second.shape:
        found = "x".join(map(str, first.shape))
        raise _refusal(kind, f"{TRIED} patches become features of shape {found}")
    if not torch.allclose(first.float(), second.flip(0).float(), rtol=1e-2, atol=1e-2):
        raise _refusal(kind, "its tower treats patches by the place at which they stand")
    return int(some.shape[-1])


def read_patches(adapter: VisualAdapter, inputs: Mapping[str, Any]) -> SiteFeatures:
    """Return the patch embeddings of the images of a call, positions added.

    Raises:
        ConfigError: the call brings encoded images or clips, or the model type is refused.
    """
    layer = embedding_layer(adapter)
    known = (inputs.get("mm_encoder_outputs") or {}).get("image")
    if isinstance(known, SiteFeatures):
        return known
    given = {
        modality: next((inputs[n] for n in names if inputs.get(n) is not None), None)
        for modality, names in PIXELS.items()
    }
    if given["image"] is None or given["video"] is not None or given["image"].ndim != 4:
        raise ConfigError(
            f"{SITE} selects patches of the images in pixel_values [I, 3, H, W]; this call brings "
            f"{', '.join(n for n, v in inputs.items() if v is not None)}; give pixels of images, "
            "without clips or encoded features"
        )
    return _split(layer(given["image"]), adapter)


def run_tower(adapter: VisualAdapter, patches: Tensor, extra: Tensor | None) -> dict[str, Any]:
    """Run the model's own encoder and projector on patches; return encoder outputs by modality.

    The embedding layer sees one blank image, and its output is replaced.

    Args:
        adapter: adapter of the model.
        patches: embeddings with positions, of any number K of patches, [I, K, C].
        extra: class and register tokens, [1, P, C].
    """
    assert extra is not None
    rows = torch.cat([extra.expand(len(patches), -1, -1).to(patches.dtype), patches], dim=1)
    thread = get_ident()

    def put(_layer: Any, _inputs: Any, output: Tensor) -> Tensor | None:
        return rows.to(output.dtype) if get_ident() == thread else None

    with embedding_layer(adapter).register_forward_hook(put):
        return adapter.encode({PIXELS["image"][0]: _blank_pixels(adapter)})


def run_tower_on_kept(
    adapter: VisualAdapter, features: SiteFeatures, kept: Tensor, counts: Sequence[int]
) -> dict[str, Any]:
    """Run the tower on the kept patches of each image, and put the results at their places.

    Args:
        adapter: adapter of the model.
        features: all patches of I images.
        kept: positions that stay, image after image, int64, [sum of counts].
        counts: how many stay of each image; images of equal number run together.

    Returns:
        encoder outputs with features [I, N, D]: zeros at removed patches.
    """
    patches, extra = features.entries, features.extra
    images, size = patches.shape[:2]
    if all(count == size for count in counts):
        return run_tower(adapter, patches, extra)
    own = kept.split(list(counts))
    filled = patches.new_zeros(images, size, adapter.width)
    outputs: dict[str, Any] = {"image": BaseModelOutputWithPooling()}
    for count in sorted(set(counts) - {0}):
        members = [image for image in range(images) if counts[image] == count]
        places = torch.stack([own[image] for image in members])
        rows = torch.tensor(members, device=kept.device)[:, None]
        outputs = run_tower(adapter, patches[rows, places], extra)
        filled[rows, places] = entries_of(outputs).to(filled.dtype)
    in_list = not isinstance(outputs["image"].pooler_output, Tensor)
    outputs["image"].pooler_output = list(filled) if in_list else filled
    return outputs


def entries_of(outputs: Mapping[str, Any]) -> Tensor:
    """Return the features of images of equal size, [I, N, D]."""
    found = outputs["image"].pooler_output
    return found if isinstance(found, Tensor) else torch.stack(list(found))


def _split(rows: Any, adapter: VisualAdapter) -> SiteFeatures:
    count = _grid_size(adapter)
    extra = rows.shape[1] - count if isinstance(rows, Tensor) and rows.ndim == 3 else -1
    if extra < 0:
        raise _refusal(
            adapter.model.config.model_type, "its embedding layer does not return a row per patch"
        )
    return SiteFeatures(pooler_output=rows[:, extra:], extra=rows[:1, :extra])


def pair(value: Any) -> tuple[int, int]:
    """Return height and width of a size that may be one number for both."""
    return (value, value) if isinstance(value, int) else tuple(value)


def _grid_size(adapter: VisualAdapter) -> int:
    """Return N, the patches of an image of the configured size."""
    vision = adapter.model.config.vision_config
    sizes = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if None in sizes:
        raise _refusal(adapter.model.config.model_type, "its tower takes images of any size")
    (height, width), (tall, wide) = map(pair, sizes)
    return (height // tall) * (width // wide)


def _blank_pixels(adapter: VisualAdapter) -> Tensor:
    vision = adapter.model.config.vision_config
    height, width = pair(vision.image_size)
    channels = getattr(vision, "num_channels", 3)
    weight = next(embedding_layer(adapter).parameters())
    device = device_of_inputs(weight)
    return torch.zeros(1, channels, height, width, device=device, dtype=weight.dtype)


def _noise_pixels(adapter: VisualAdapter) -> Tensor:
    blank = _blank_pixels(adapter)
    values = torch.linspace(-1, 1, blank.numel(), device=blank.device)
    return (values * 997).sin().view_as(blank).to(blank.dtype)


def _refusal(kind: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{SITE} cannot be used with model_type={kind}: {reason}; use site=after_projector, which "
        "every family has"
    )
