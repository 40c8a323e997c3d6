"""Random numbers that depend on nothing but their names.

Raw words of the counter-based generator Philox, keyed by a hash of the names: numpy promises its raw words, not its
distributions. Those that are needed are made here: uniform integers, the truncated normal by its inverse distribution
function, and Beta by Jöhnk's rejection. A word costs 3 microseconds, eight hardly more.
"""

import math
import threading
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import xxhash

_WORD = 2**64
_BLOCK = 8
_START = (0, 0, 0, 0)

# numpy's constructor takes 10 microseconds, setting the key 1; threads of a worker must not share a generator
_local = threading.local()


def words(count: int, seed: int, name: str, *numbers: int) -> list[int]:
    """Returns so many 64-bit words that depend on nothing but the names."""
    key = _key(seed, name, *numbers)
    if not hasattr(_local, "philox"):
        _local.philox = np.random.Philox(key=0)
        _local.state = {**_local.philox.state, "buffer": _START}
    state = _local.state
    # numpy reads the numbers one by one: of tuples in half the time
    state["state"] = {"counter": _START, "key": (key % _WORD, key // _WORD)}
    _local.philox.state = state
    drawn: list[int] = _local.philox.random_raw(count).tolist()
    return drawn


def draw(seed: int, name: str, *numbers: int) -> int:
    """Returns 64 random bits that depend on nothing but the arguments."""
    return words(1, seed, name, *numbers)[0]


def shuffled(count: int, seed: int, name: str, *numbers: int) -> list[int]:
    """Returns 0..count-1 in an order that depends on nothing but the arguments."""
    order: list[int] = permutation(count, seed, name, *numbers).tolist()
    return order


def permutation(count: int, seed: int, name: str, *numbers: int) -> np.ndarray:
    """Returns what `shuffled` does, (count,) int64."""
    drawn = np.random.Philox(key=_key(seed, name, *numbers)).random_raw(count)
    return np.argsort(drawn, kind="stable")


def integer(word: int, low: int, high: int) -> int:
    """Returns a whole number from low..high, each as likely, from one word."""
    return low + (word * (high - low + 1) >> 64)


def fraction(word: int) -> float:
    """Returns a number between 0 and 1, both excluded, from one word."""
    # the 52 bits and a half that a double holds exactly
    return ((word >> 12) + 0.5) / 2**52


def truncated_normal(word: int, mean: float, sigma: float, low: float, high: float) -> float:
    """Returns a draw of the normal distribution between low and high, from one word."""
    normal = NormalDist(mean, sigma)
    below, above = normal.cdf(low), normal.cdf(high)
    quantile = below + fraction(word) * (above - below)
    # so far from the mean that nothing is left of the distribution there
    if not 0 < quantile < 1:
        return low if mean < low else high
    return min(high, max(low, normal.inv_cdf(quantile)))


def beta(alpha: float, beta: float, seed: int, name: str, *numbers: int) -> float:
    """Returns a draw of the Beta distribution.

    Jöhnk (Metrika 8, 1964): u^(1/alpha) / (u^(1/alpha) + v^(1/beta)) of uniform u and v whose two powers sum to 1 at
    most. Takes 2.4 tries on average where alpha + beta is 7/3, more the larger they are.
    """
    for u, v in _pairs(seed, name, *numbers):
        x, y = math.pow(u, 1 / alpha), math.pow(v, 1 / beta)
        if 0 < x + y <= 1:
            return x / (x + y)
    raise AssertionError("the pairs never end")


def _pairs(seed: int, name: str, *numbers: int) -> Iterator[tuple[float, float]]:
    block = 0
    while True:
        drawn = words(_BLOCK, seed, name, *numbers, block)
        for at in range(0, _BLOCK, 2):
            yield fraction(drawn[at]), fraction(drawn[at + 1])
        block += 1


def _key(seed: int, name: str, *numbers: int) -> int:
    return xxhash.xxh3_128_intdigest("\0".join([str(seed), name, *map(str, numbers)]).encode())
