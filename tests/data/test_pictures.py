"""`read_image` gives the picture that a person sees, whatever the file looks like inside."""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageSequence
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from autoselect import ConfigError, read_image
from autoselect.data.decode import ImageError, ImageTooLarge, Limits

NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)
RGB = Image.fromarray(NOISE[..., :3])


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite by the definition, in floats; colour [..., 3] and alpha [...] in 0..255."""
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def exif(orientation: object) -> Image.Exif:
    block = Image.Exif()
    block[0x112] = orientation
    return block


TURNS = {  # how numpy turns stored pixels upright, from the definition of the EXIF values
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_is_turned_upright_once(kind, orientation):
    data = encode(RGB, kind, exif=exif(orientation), **{"lossless": True} if kind == "WEBP" else {})
    upright = TURNS[orientation](NOISE[..., :3])
    seen = read_image(data)
    assert np.array_equal(pixels(seen), upright)
    assert np.array_equal(pixels(read_image(seen)), upright)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(pixels(read_image(opened)), upright)


@pytest.mark.parametrize("orientation", [0, 9, 200])
def test_an_orientation_without_a_meaning_turns_nothing(orientation):
    data = encode(RGB, "PNG", exif=exif(orientation))
    assert np.array_equal(pixels(read_image(data)), NOISE[..., :3])


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM" * 40])
def test_damaged_metadata_does_not_cost_the_picture(block):
    data = encode(RGB, "JPEG", exif=block)
    plain = encode(RGB, "JPEG")
    assert np.array_equal(pixels(read_image(data)), pixels(read_image(plain)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparency_is_on_white(mode):
    image = Image.fromarray(NOISE).convert({"RGBa": "RGBA", "La": "LA"}.get(mode, mode))
    whole = image.convert("RGBA")
    if mode in ("RGBa", "La"):
        image = image.convert(mode)
        whole = image.convert("RGBA" if mode == "RGBa" else "LA").convert("RGBA")
    values = np.asarray(whole).astype(float)
    expected = on_white(values[..., :3], values[..., 3])
    assert np.abs(pixels(read_image(image)) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_files_with_an_alpha_channel_are_on_white(kind):
    image = Image.fromarray(NOISE)
    data = encode(image, kind, **{"lossless": True, "exact": True} if kind == "WEBP" else {})
    expected = on_white(NOISE[..., :3].astype(float), NOISE[..., 3].astype(float))
    assert np.abs(pixels(read_image(data)) - expected).max() <= 1


def test_a_transparent_colour_is_white():
    """The tRNS chunk of PNG names one colour, or an alpha per palette entry."""
    two = Image.fromarray(np.array([[0, 1]], np.uint8), "L")
    for mode, key in (("L", 0), ("RGB", (0, 0, 0)), ("1", 0)):
        data = encode(two.point(lambda v: 40 * v).convert(mode), "PNG", transparency=key)
        assert pixels(read_image(data))[0, 0].tolist() == [255] * 3, mode
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 0, 0, 0, 10, 0, 0, 0, 10])
    data = encode(palette, "PNG", transparency=bytes([0, 51, 255]))
    assert pixels(read_image(data)).tolist() == [[[255, 255, 255], [204, 206, 204], [0, 0, 10]]]
    data = encode(palette, "GIF", transparency=1)
    assert pixels(read_image(data)).tolist() == [[[10, 0, 0], [255, 255, 255], [0, 0, 10]]]


MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F")


@pytest.mark.parametrize("mode", MODES)
def test_other_modes_are_as_in_the_processors_of_transformers(mode):
    image = RGB.convert("L").convert(mode) if mode in ("I", "F") else RGB.convert(mode)
    assert np.array_equal(pixels(read_image(image)), convert_to_rgb(image, return_numpy=True))
    for kind in ("TIFF", "JPEG") if mode == "I" else ("PNG", "TIFF", "JPEG"):
        try:
            data = encode(image, kind)
        except (OSError, KeyError):
            continue  # the format has no such mode
        opened = Image.open(io.BytesIO(data))
        assert np.array_equal(pixels(read_image(data)), convert_to_rgb(opened, return_numpy=True))


@pytest.mark.parametrize("kind", [None, "PNG", "TIFF"])
@pytest.mark.parametrize(
    "values, dtype, seen",
    [
        ([0, 257, 32768, 65535], np.uint16, [0, 1, 128, 255]),
        ([0, 1, 128, 255], np.int32, [0, 1, 128, 255]),
        ([0, 257, 32768, 65535], np.int32, [0, 1, 128, 255]),
        ([0.0, 0.25, 0.5, 1.0], np.float32, [0, 64, 128, 255]),
        ([0.0, 1.0, 128.0, 255.0], np.float32, [0, 1, 128, 255]),
    ],
)
def test_more_than_eight_bits_and_floats_are_scaled_as_a_viewer_does(values, dtype, seen, kind):
    image = Image.fromarray(np.array([values], dtype))
    if kind == "PNG" and dtype is not np.uint16:
        pytest.skip("PNG files hold 16 bits at most")
    found = read_image(image if kind is None else encode(image, kind))
    assert pixels(found)[0].tolist() == [[value] * 3 for value in seen]


@pytest.mark.parametrize(
    "values, dtype",
    [([-1, 5], np.int32), ([0, 70000], np.int32), ([-0.5, 1], np.float32), ([np.nan], np.float32)],
)
def test_brightness_of_an_unknown_scale_is_refused_by_its_values(values, dtype):
    with pytest.raises(ImageError, match="has no known brightness"):
        read_image(Image.fromarray(np.array([values], dtype)))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_of_several_pictures_the_first_is_read(kind):
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert pixels(read_image(data))[3, 3].tolist() == [255, 0, 0]


def test_a_frame_of_a_clip_is_read_as_it_is():
    """Video readers hand out one PIL image per frame."""
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    clip = Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    seen = [pixels(read_image(frame))[3, 3].tolist() for frame in ImageSequence.Iterator(clip)]
    assert seen == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_every_source_gives_the_same_picture_and_keeps_its_bytes(tmp_path):
    data = encode(Image.fromarray(NOISE), "PNG", exif=exif(6))
    path = tmp_path / "a b[1].png"
    path.write_bytes(data)
    expected = pixels(read_image(data))
    assert expected.shape == (20, 12, 3)
    image = Image.open(path)
    before = image.copy().tobytes(), dict(image.info)
    with path.open("rb") as stream:
        for source in (path, str(path), stream, io.BytesIO(data), image):
            assert np.array_equal(pixels(read_image(source)), expected)
    assert (image.copy().tobytes(), dict(image.info)) == before and image.mode == "RGBA"
    assert path.read_bytes() == data
    opaque = encode(RGB, "PNG", exif=exif(5))
    path.write_bytes(opaque)
    assert np.array_equal(pixels(read_image(path)), np.asarray(load_image(str(path))))


def test_what_is_returned_does_not_share_memory_with_a_given_image():
    image = RGB.copy()
    seen = read_image(image)
    image.paste((1, 2, 3), (0, 0, 20, 12))
    assert np.array_equal(pixels(seen), NOISE[..., :3])


CUTS = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {})]
CUTS += [
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {}),
    ("WEBP", {"lossless": 1}),
]


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize(("kind", "options"), CUTS)
def test_a_cut_file_is_refused_or_whole(kind, options, tolerant, monkeypatch):
    """Also if another library told Pillow to fill what is missing with grey."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = encode(RGB.resize((60, 40)), kind, **options)
    whole = pixels(read_image(data))
    choose = random.Random(0)
    lengths = {choose.randrange(len(data)) for _ in range(25)} | {0, 1, 11, 12, len(data) - 1}
    for length in lengths:
        try:
            seen = read_image(data[:length])
        except ConfigError:
            continue
        assert np.array_equal(pixels(seen), whole), length
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


def svg() -> bytes:
    return b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", r"empty \(0 bytes\)"),
        (bytes(300), "filled with zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (svg(), "an SVG drawing"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF picture"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "a HEIC picture"),
        (b"\0\0\0\x1cftypisom\0\0\0\0", "an MP4 video"),
        (b"%PDF-1.7", "a PDF"),
        (b"some text", "not an image of a known format; an image must be JPEG, PNG"),
    ],
)
def test_files_that_are_not_pictures_are_named(data, cause, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"image=.*x\.jpg: .*{cause}"):
        read_image(path)
    with pytest.raises(ConfigError, match=cause):
        read_image(data)


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """Return a PNG that claims a size, whatever its pixels are."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_bombs_are_refused_before_they_are_decoded():
    for size in ((9000, 9000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageTooLarge):
                read_image(png(*size))
    with pytest.raises(ImageTooLarge, match="240 pixels exceed the cap of 239|cap of 239 pixels"):
        read_image(encode(RGB, "PNG"), Limits(pixels=239))
    with pytest.raises(ImageTooLarge, match="more than the cap of 99 bytes"):
        read_image(encode(RGB, "PNG"), Limits(member_bytes=99))
    with pytest.raises(ImageTooLarge):
        read_image(RGB, Limits(pixels=239))


def test_sources_that_cannot_be_read_are_named(tmp_path):
    for source, cause in (
        (tmp_path / "none.png", "none.png: cannot be read: No such file"),
        (tmp_path, "is a folder"),
        ("a\0b", "cannot be read"),
        ("https://example.org/a.png", "download it"),
        ("data:image/png,abc", "must be data:image/png;base64"),
        (NOISE, "ndarray is not a path, bytes, a file object or a PIL image"),
        (None, "NoneType is not a path"),
        (io.StringIO("text"), "binary mode"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels hold nothing"),
    ):
        with pytest.raises(ConfigError, match=cause):
            read_image(source)
