"""Check for `autoselect doctor` whether a model bears the removal of visual tokens at all."""

from __future__ import annotations

from autoselect.data.loader import pictured_batches
from autoselect.data.shards import ShardSet
from autoselect.preflight.finding import Finding, Subject
from autoselect.reference.resources import resolve_model, resolve_shards

MORE_UNENDED = 0.05
"""Share of unended answers above that with all tokens which counts as a change of the endings."""

BATCH = 8


def check_removal(subject: Subject, images: int) -> Finding:
    """Measure random removal at the training budgets on the first `images` training samples.

    The model is loaded and predicts the samples' answers with all tokens and with a random subset.
    """
    import torch  # the other checks need neither PyTorch nor transformers

    from autoselect.method.removal import random_removal
    from autoselect.vlm.backbone import FrozenVLM
    from autoselect.vlm.batches.batch import Collator
    from autoselect.vlm.loading import named_dtype

    config = subject.config
    shards = ShardSet.open(resolve_shards(config.data.train_shards))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, dtype = resolve_model(config.model), named_dtype(config.dtype)
    vlm = FrozenVLM.from_pretrained(model, dtype=dtype, device=device)
    collator = Collator(vlm, config.data.rounds, config.data.max_text_tokens)

    batches = pictured_batches(shards, collator, images, BATCH)
    largest = config.gate.token_budget
    budgets = sorted({config.gate.lowest_budget or largest, largest})
    found = random_removal(vlm, (batch.to(vlm.device) for batch in batches), budgets)
    whole = found[None].numbers()
    texts, changed = [_shown("all", whole)], []
    for budget in budgets:
        numbers = found[budget].numbers()
        texts.append(_shown(str(budget), numbers))
        if numbers["unended"] - whole["unended"] > MORE_UNENDED:
            changed.append(str(budget))
    text = f"{found[None].answers} answers with random tokens; {'; '.join(texts)}"
    if changed:
        fix = (
            f"the model does not end its answers with {' or '.join(changed)} random tokens: choose "
            "a larger gate.token_budget, and find the weight of diversity with `autoselect tune`"
        )
        return Finding("removal", "warn", text, fix)
    return Finding("removal", "ok", text)


def _shown(tokens: str, numbers: dict[str, float]) -> str:
    return (
        f"{tokens}: loss {numbers['loss']:.2f}, {100 * numbers['right']:.0f} % right, "
        f"{100 * numbers['unended']:.0f} % unended"
    )
