"""Name what the first bytes of a file are, for messages about files of the wrong kind."""

_SIGNATURES = (
    (0, b"version https://git-lfs", "a git-lfs pointer (run `git lfs pull`)"),
    (0, b"\x1f\x8b", "gzip-compressed"),
    (0, b"BZh", "bzip2-compressed"),
    (0, b"\xfd7zXZ\0", "xz-compressed"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x80\x04", "a Python pickle"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"8BPS", "a Photoshop picture"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (0, b"\0\0\x01\0", "an ICO picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (4, b"JXL ", "a JPEG XL picture"),
    (4, b"jP  ", "a JPEG 2000 picture"),
    (4, b"ftypavi", "an AVIF picture"),
    (4, b"ftyphei", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIC picture"),
    (4, b"ftyp", "an MP4 video"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
)
_MARKUP = ((b"<svg", "an SVG drawing"), (b"<html", "an HTML page"), (b"<!doctype", "an HTML page"))


def content_of(head: bytes) -> str | None:
    """Return what a file is, for example `an AVIF picture`; None if that is not known.

    `head` holds the first bytes, 512 or more if there are as many.
    """
    if not head:
        return "empty (0 bytes)"
    for offset, signature, name in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return name
    if not head[:512].strip(b"\0"):
        return "filled with zero bytes"
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<"):
        return next((name for mark, name in _MARKUP if mark in text), "an XML or HTML file")
    return None
