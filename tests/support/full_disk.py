"""A disk on which there is never any room."""

from __future__ import annotations

from pathlib import Path

__all__ = ["full_disk"]


def full_disk() -> Path:
    """The device that answers every write as a full disk does."""
    device = Path("/dev/full")
    assert device.is_char_device(), (
        "these tests need /dev/full: run them on Linux, or make it with 'mknod -m 666 /dev/full c 1 7'"
    )
    return device
