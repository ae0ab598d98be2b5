"""Random values that are a pure function of a key, so that a run can resume without any generator state."""

from hashlib import blake2b

import numpy as np


def digest64(*key: int | str | bytes) -> int:
    """Return a 64-bit hash of a key. The hash is equal on every platform and in every version."""
    hasher = blake2b(digest_size=8)
    for part in key:
        data = part if isinstance(part, bytes) else repr(part).encode()
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return int.from_bytes(hasher.digest(), "little")


def keyed_uniform(*key: int | str | bytes) -> float:
    """Return a number in [0, 1) that depends only on the key."""
    return digest64(*key) / 2**64


def keyed_rng(*key: int | str) -> np.random.Generator:
    """Return a numpy Philox generator whose stream depends only on the key."""
    philox_key = np.array([digest64("a", *key), digest64("b", *key)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=philox_key))
