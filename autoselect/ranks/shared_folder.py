"""Whether ranks on several nodes see each other's files."""

import uuid
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from autoselect.ranks.exchange import broadcast_object, gather_objects


def is_shared(folder: Path) -> bool:
    """Return True if every rank sees what rank 0 writes into the folder (a collective)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    mark = folder / broadcast_object(f"shared-{uuid.uuid4().hex}")
    if dist.get_rank() == 0:
        with suppress(OSError):  # what cannot be written is reported by what writes there
            mark.touch()
    dist.barrier()
    seen = gather_objects(mark.exists())
    if dist.get_rank() == 0:
        mark.unlink(missing_ok=True)
    return all(seen)
