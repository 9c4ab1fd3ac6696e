"""What tests that plant faults share."""

import socket

STEPS = 5
"""Steps of the sound run: with 32 images each, 20 epochs of its eight samples."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
