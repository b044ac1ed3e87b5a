"""Quantiles of durations, from counts in logarithmic buckets.

The bounds of the buckets grow by a constant factor, so that the middle of a bucket differs from each of its values by
at most `RELATIVE_ERROR`, and sketches are merged by adding the counts, as in DDSketch (Masson et al., VLDB 2019). A
bucket fits in one byte.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

RELATIVE_ERROR = 0.04
SHORTEST = 0.001
"""Upper bound of the first bucket, in seconds: shorter durations are not distinguished."""

LAST_BUCKET = 255
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG = 1 / math.log(_GROWTH)


def bucket_of(duration: float) -> int:
    """Return the bucket of a duration: a number from 1 to `LAST_BUCKET`.

    :param duration: seconds; those of more than a week share the last bucket.
    """
    if duration <= SHORTEST:
        return 1
    return min(2 + int(math.log(duration / SHORTEST) * _PER_LOG), LAST_BUCKET)


def duration_of(bucket: int) -> float:
    """Return the middle of a bucket, in seconds."""
    return SHORTEST if bucket <= 1 else float(SHORTEST * _GROWTH ** (bucket - 1) * 2 / (1 + _GROWTH))


def quantiles(counts: Mapping[int, int], fractions: Sequence[float]) -> list[int]:
    """Return the buckets of the quantiles, by the nearest-rank method.

    :param counts: number of durations by bucket; not empty.
    :param fractions: between 0 and 1.
    """
    buckets = sorted(counts)
    sums = list(accumulate(map(counts.__getitem__, buckets)))
    return [buckets[bisect_left(sums, max(1, math.ceil(fraction * sums[-1])))] for fraction in fractions]
