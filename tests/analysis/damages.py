"""Ways in which a file of a study may be damaged, which several tests share."""

import os
from pathlib import Path


def flip_a_bit(file: Path) -> None:
    """Change the lowest bit of the byte in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    """Leave only the first half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    """Leave nothing of a file."""
    file.write_bytes(b"")


def replace_by_a_pipe(file: Path) -> None:
    """Put a named pipe, which nobody writes to, in the place of a file; whoever reads it waits for ever."""
    file.unlink()
    os.mkfifo(file)


def replace_by_a_folder(file: Path) -> None:
    """Put an empty folder in the place of a file."""
    file.unlink()
    file.mkdir()
