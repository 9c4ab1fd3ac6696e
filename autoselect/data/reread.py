"""Check whether samples that were unusable can be used now, for example after a repair."""

from collections.abc import Sequence

from tqdm import tqdm

from autoselect.data.faults import BadSample, Fault
from autoselect.data.loader import Collate
from autoselect.data.shards import ShardSet


def still_unusable(shards: ShardSet, collate: Collate, faults: Sequence[Fault]) -> list[Fault]:
    """Read, decode and collate the samples of earlier faults again and return the current faults.

    They keep the order of `faults`; a fault whose sample has left the data is dropped. `collate`
    is the function that the `Loader` is given.
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
    """Return the current fault of an earlier fault's sample; None if it is usable or gone."""
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
