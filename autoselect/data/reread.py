"""Whether samples that were unusable once can be used now, after a repair or another setting."""

from collections.abc import Sequence

from tqdm import tqdm

from autoselect.data.faults import BadSample, Fault
from autoselect.data.loader import Collate
from autoselect.data.shards import ShardSet


def still_unusable(shards: ShardSet, collate: Collate, faults: Sequence[Fault]) -> list[Fault]:
    """Reads, decodes and collates the samples of some faults again.

    Args:
        shards: the data as they are now.
        collate: as the `Loader` takes it.
        faults: found earlier; a sample that is no longer in the data is no longer unusable.

    Returns:
        What is wrong now, in the order of `faults`.

    Raises:
        OSError: a shard cannot be reached.
    """
    indexed = {fault.place: fault for fault in shards.faults}
    found = []
    bar = tqdm(faults, "reading unusable samples again", unit="sample", disable=None, delay=2)
    for fault in bar:
        now = indexed.get(fault.place) or _fault(shards, collate, fault)
        if now is not None:
            found.append(now)
    return found


def _fault(shards: ShardSet, collate: Collate, earlier: Fault) -> Fault | None:
    """What is wrong with the sample of an earlier fault now."""
    sample_id = shards.find(earlier.shard, earlier.key)
    if sample_id is None:
        return None
    try:
        sample = shards[sample_id]
        _ = sample.pictures
        collate([sample])
    except BadSample as error:
        return error.fault
    return None
