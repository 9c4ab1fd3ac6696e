"""Files of tensors (safetensors): complete or absent, with the permissions of any new file.

`safetensors.torch.save_file` makes files that only their owner may read, and `load_file` maps a
file into memory: a network file system then cannot remove its folder while the tensors live.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from autoselect.files.atomic import write_bytes


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace the content of a local file by tensors of any device, see `atomic.replacing`.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(stored, metadata={"format": "pt"}))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return copies of the tensors of a file, on the CPU.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it holds no tensors, or is damaged.
    """
    return load(Path(path).read_bytes())
