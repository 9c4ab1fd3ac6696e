"""Memory of the host, as the C library hands it out."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's parameters, see mallopt(3)."""

KEPT_BYTES = 2**31 - 1
TOP_PAD_BYTES = 2**26


def keep_freed() -> None:
    """Let glibc keep freed memory for later tensors instead of returning it to the system.

    For training on a CPU: a step frees and allocates the same large tensors again, and the system
    clears every page that it hands out anew. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, TOP_PAD_BYTES)
