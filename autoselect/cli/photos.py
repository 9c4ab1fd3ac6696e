"""Pictures for `autoselect show`: files of the user, or a scene of the reference test data."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from autoselect.config import ConfigError
from autoselect.data.decode import ImageError, read_image
from autoselect.reference.questions import FAMILIES
from autoselect.reference.questions import ask as ask_about
from autoselect.reference.scenes import make_scene, scene_rng

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
QUESTION = "What is in this image?"


@dataclass(frozen=True)
class Picture:
    """A picture with the question to ask about it; `name` becomes the name of its overlay."""

    name: str
    image: Image.Image
    question: str


def find_pictures(photos: list[str], question: str | None, scene: int | None) -> Iterator[Picture]:
    """Return the named pictures, or a scene of the reference test data if none is named.

    Every file is read at once to find out whether it can be, and again when its turn comes, so that
    a folder of many photos does not have to fit in memory.

    Raises:
        ConfigError: a path does not exist, a folder has no picture, or a file cannot be decoded.
    """
    if not photos:
        return iter([scene_picture(scene or 0, question)])
    if scene is not None:
        raise ConfigError(f"scene={scene} would be ignored beside PHOTO={photos[0]}; leave one out")
    if not all(photos):
        raise ConfigError("PHOTO='' is empty; name a picture or a folder")
    files: list[Path] = []
    for path in map(Path, photos):
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
            if not inside:
                known = ", ".join(sorted(SUFFIXES))
                raise ConfigError(f"PHOTO={path} is a folder without pictures ({known})")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ConfigError(f"PHOTO={path} does not exist; name a picture or a folder")
    for file in files:
        read_photo(file)
    names = unique_names(files)
    return (
        Picture(name, read_photo(file), question or QUESTION)
        for name, file in zip(names, files, strict=True)
    )


def unique_names(files: list[Path]) -> list[str]:
    """Return the stem of each file; stems that come again are numbered."""
    names: dict[str, None] = {}
    for file in files:
        numbered = (f"{file.stem}-{number}" for number in itertools.count(2))
        tried = itertools.chain([file.stem], numbered)
        names[next(name for name in tried if name not in names)] = None
    return list(names)


def read_photo(file: Path) -> Image.Image:
    try:
        return read_image(file)
    except ImageError as error:
        raise ConfigError(f"PHOTO={file} cannot be read as a picture: {error}") from error


def scene_picture(scene: int, question: str | None) -> Picture:
    if scene < 0:
        raise ConfigError(f"scene={scene} is negative; choose 0 or more")
    drawn = make_scene(0, "test", scene)
    own = ask_about(scene_rng(1, "test", scene), drawn, FAMILIES)
    return Picture(f"scene-{scene}", drawn.image, question or own[scene % len(own)].question)
