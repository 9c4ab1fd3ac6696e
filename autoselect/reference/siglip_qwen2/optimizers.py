"""The optimisers of the second reference VLM: Muon for inner matrices, AdamW for the rest."""

import torch
from torch import nn

OUTER = ("embed", "heads")


def muon_and_adamw(module: nn.Module, peak: float) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices of blocks and projector, and AdamW for all other parameters.

    Embeddings and heads are among the others. The updates of Muon are scaled to the size of those
    of AdamW, so both share the peak learning rate.
    """
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            hidden = parameter.ndim == 2 and not any(word in name for word in OUTER)
            (inner if hidden else outer).append(parameter)
    muon = torch.optim.Muon(inner, lr=peak, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(outer, lr=peak, betas=(0.9, 0.98), weight_decay=0.0)]
