"""Named random streams: every random number is drawn from a generator that is made for its use.

``stream(0, "probes", 3)`` is the same generator whenever and wherever it is made, and independent of
``stream(0, "probes", 4)``. The global random state is never touched.
"""

import hashlib
from typing import Any

import numpy as np
import torch

from hessian_tools.validation import check_whole

PathPart = str | int


def stream_seed(seed: int, *path: PathPart) -> bytes:
    """32 bytes that depend on the seed and on every part of the path: the SHA-256 of their text."""
    if seed is None:  # check_whole lets None pass
        raise ValueError("seed=None is not a whole number; give one, such as 1")
    check_whole(seed=seed)
    text = "/".join([repr(int(seed)), *map(repr, path)])
    return hashlib.sha256(text.encode()).digest()


def stream(seed: int, *path: PathPart) -> torch.Generator:
    """A CPU generator for one named use.

    Draw on the CPU and then move the numbers to the device, so that they do not depend on the device.

    >>> torch.rand(1, generator=stream(0, "a")) == torch.rand(1, generator=stream(0, "a"))
    tensor([True])
    """
    generator = torch.Generator(device="cpu")
    # The shift leaves 63 bits, which a signed 64-bit integer holds.
    generator.manual_seed(int.from_bytes(stream_seed(seed, *path)[:8], "little") >> 1)
    return generator


def numpy_stream(seed: int, *path: PathPart) -> np.random.RandomState:
    """A NumPy generator for one named use, for data that must be equal on every machine and with every NumPy version.

    ``RandomState`` is NumPy's frozen generator: its streams never change between versions (NEP 19), which
    ``default_rng`` and torch's generators do not promise.
    """
    words = np.frombuffer(stream_seed(seed, *path), dtype="<u4").astype(np.uint32)
    # The result is that of RandomState(words), which takes 60 us more, because it first asks the system for entropy.
    generator = np.random.RandomState(np.random.MT19937(_UNSEEDED))
    generator.seed(words)
    return generator


class _Unseeded(np.random.bit_generator.ISeedSequence):
    """A seed of zeros, for a generator that receives its real seed right after it is made."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.zeros(n_words, dtype)


_UNSEEDED: Any = _Unseeded()
