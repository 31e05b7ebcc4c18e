"""What a store of shared buckets answers."""

from __future__ import annotations

from dataclasses import dataclass


class StoreLost(Exception):
    """The store did not answer, or not in time, or not sensibly."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What was granted, what is left in the bucket, and how long until more is there if it was not all."""

    granted: float
    level: float
    wait_s: float
