"""Small samples and shards made on the spot."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from autoselect.data.shards import ShardWriter


def make_image(number: int, size: tuple[int, int] = (24, 16), kind: str = "JPEG") -> bytes:
    """Return a one-colour picture whose colour tells its number."""
    stream = io.BytesIO()
    colour = (number % 16 * 16, number // 16 % 16 * 16, 128)
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def sideways() -> bytes:
    """Return a transparent drawing on hidden black that its EXIF data turns by a quarter."""
    image = Image.new("RGBA", (64, 40), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (4, 4, 30, 20))
    exif = Image.Exif()
    exif[0x112] = 6
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    return stream.getvalue()


def make_record(number: int, num_images: int = 1) -> dict:
    return {
        "conversations": [
            {"from": "human", "value": "<image>\n" * num_images + f"question {number}"},
            {"from": "gpt", "value": f"answer {number}"},
        ]
    }


def write_shards(folder: Path, samples: int = 50, per_shard: int = 20, images: int = 1) -> Path:
    with ShardWriter(folder, samples_per_shard=per_shard) as writer:
        for number in range(samples):
            writer.write(
                f"{number:06d}",
                make_record(number, images),
                [make_image(number + part) for part in range(images)],
            )
    return folder


def raw_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a tar file as another tool might."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
