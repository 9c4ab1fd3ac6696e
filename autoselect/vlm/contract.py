"""What a model must do so that its visual tokens can be pruned, tried on the model itself.

A model type without an entry in `families` is accepted if its `forward` puts one row of the image
features into the place of each image token and hands positions that it is given to its language
model. This is tried with four made-up features; the call ends where the language model begins.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.vlm.offloaded import device_of_inputs
from autoselect.vlm.sharded import gathered, parameters_outside

TOKENS = 4
BEFORE, BEHIND = 2, 3
FARTHEST = 40


class _LanguageModelReached(Exception):
    """Raised to end the call; holds what the language model is given."""


def check_contract(model: Any, image_token: int, width: int, on_grid: bool) -> None:
    """Try whether visual tokens of `model` can be removed without an entry for its model type.

    Args:
        model: a transformers model whose `forward` takes `mm_encoder_outputs`.
        image_token: token id of the placeholder.
        width: channels of a visual token.
        on_grid: whether positions have three rows (M-RoPE).

    Raises:
        ConfigError: a part of the contract fails; it says which.
    """
    kind = model.config.model_type
    if not hasattr(model.base_model, "get_image_features"):
        raise _failure(kind, "it has no get_image_features, so its images cannot be encoded alone")
    length = BEFORE + TOKENS + BEHIND
    text = next(token for token in range(TOKENS) if token != image_token)
    device = device_of_inputs(model.get_input_embeddings().weight)
    ids = torch.full((1, length), text, device=device)
    ids[0, BEFORE : BEFORE + TOKENS] = image_token
    positions = torch.linspace(0, FARTHEST, length, device=device).long()
    positions = positions.expand(3, 1, -1) if on_grid else positions[None]
    given = _call_to_language_model(model, ids, positions, image_token, width)
    embeddings, seen = given["inputs_embeds"], given.get("position_ids")
    placed = embeddings[0, BEFORE : BEFORE + TOKENS].float()
    wanted = _features(width, placed.device, placed.dtype)
    if not torch.allclose(placed, wanted, rtol=1e-2, atol=1e-2):
        raise _failure(
            kind, "image features do not enter the prompt unchanged, one per image token"
        )
    rows = None if seen is None else seen.reshape(-1, seen.shape[-1])
    if rows is None or not torch.equal(rows[-1].to(device), positions.reshape(-1, length)[-1]):
        raise _failure(kind, "its language model is not given the position ids of the call")


def _call_to_language_model(
    model: Any, ids: Tensor, positions: Tensor, image_token: int, width: int
) -> dict[str, Any]:
    """Return what the language model is given for four made-up visual tokens."""
    known = inspect.signature(type(model).forward).parameters
    rows = _features(width, ids.device, model.get_input_embeddings().weight.dtype)
    is_image = (ids == image_token).long()
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": positions,
        "token_type_ids": is_image,
        "mm_token_type_ids": is_image,
    }
    named = {name: value for name, value in arguments.items() if name in known}
    problems = []
    for container in ([rows], rows[None]):
        features = SimpleNamespace(
            pooler_output=container,
            deepstack_features=[container] * _later_layers(model.config),
            last_hidden_state=rows[None],
            hidden_states=None,
            attentions=None,
        )
        with _ending_at_language_model(model), gathered(_before_layers(model)):
            try:
                model(**named, mm_encoder_outputs={"image": features})
            except _LanguageModelReached as reached:
                return reached.args[0]
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")
    reason = (
        "; ".join(problem.splitlines()[0] for problem in problems)
        if problems
        else "its language model is not reached"
    )
    raise _failure(
        model.config.model_type, f"its forward does not take image features alone ({reason})"
    )


@contextmanager
@torch.no_grad()
def _ending_at_language_model(model: Any) -> Iterator[None]:
    decoder = model.get_decoder()
    is_inside = decoder is model.base_model
    decoder = decoder.layers[0] if is_inside else decoder

    def end(_module: Any, arguments: Any, named: dict[str, Any]) -> None:
        if is_inside:
            hidden = arguments[0] if arguments else named["hidden_states"]
            raise _LanguageModelReached({**named, "inputs_embeds": hidden})
        if named.get("inputs_embeds") is not None:
            raise _LanguageModelReached(named)

    with decoder.register_forward_pre_hook(end, with_kwargs=True, prepend=True):
        yield


def _before_layers(model: Any) -> list[torch.nn.Parameter]:
    """Return the parameters outside the layers of the language model, which the call may read."""
    layers = getattr(model.get_decoder(), "layers", torch.nn.ModuleList())
    return parameters_outside(model, layers)


def _features(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return four visual tokens, the same at every call, [4, width]."""
    values = torch.linspace(-1, 1, TOKENS * width).reshape(TOKENS, width)
    return values.to(device, dtype)


def _later_layers(config: Any) -> int:
    vision = getattr(config, "vision_config", None)
    return len(getattr(vision, "deepstack_visual_indexes", None) or [])


def _failure(kind: str, reason: str) -> ConfigError:
    return ConfigError(
        f"model_type={kind} cannot be pruned: {reason}; choose a model of docs/backbones.md"
    )
