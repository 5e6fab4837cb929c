"""Independent streams of random numbers from one seed."""

import hashlib

import torch


def stream(seed: int, purpose: str) -> torch.Generator:
    """A generator that depends on `seed` and `purpose` only, such as "weights", "train" or "test".

    Distinct purposes give unrelated streams, so test sequences never repeat training sequences.
    """
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
