"""Times of variants that do the same work, measured alternately in one process, and their ratios.

A variant is a callable: `variant(count)` does the work `count` times in sequence and returns when all of it is done.
`variant.values()` returns the current results of the work, as arrays.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

SHORTEST = 0.02  # seconds: faster work is repeated several times per measurement
PAUSE = 0.01  # seconds: another library's threads may spin for a while after their work; JAX's do not
LEAST_ROUNDS, MOST_ROUNDS = 5, 150


class Quartiles(NamedTuple):
    """The quartiles of a figure over the rounds."""

    low: float
    median: float
    high: float


def quartiles(samples: Any) -> Quartiles:
    """The quartiles of samples."""
    return Quartiles(*np.percentile(samples, [25, 50, 75]).tolist())


@dataclass
class Result:
    """The measurements for one piece of work: seconds by variant, ratios[variant][peer], and other figures."""

    title: str
    seconds: dict[str, Quartiles]
    ratios: dict[str, dict[str, Quartiles]]
    rounds: int
    figures: dict[str, float] = field(default_factory=dict)


def compare(
    title: str, ours: Mapping[str, Any], peers: Mapping[str, Any], seconds: float, each: int = 1, pause: float = 0
) -> Result:
    """Measure all variants alternately for about `seconds`, with a `pause` before each measurement.

    One call of a variant is `each` units of work. Variants that are None are skipped.
    """
    present = {name: variant for name, variant in {**ours, **peers}.items() if variant is not None}
    for variant in present.values():
        variant(1)  # compiles, and touches memory for the first time
    counts = {name: math.ceil(SHORTEST / timed(variant, 1)) for name, variant in present.items()}
    timers = {name: lambda v=v, n=counts[name]: timed(v, n, pause) / n / each for name, v in present.items()}
    return in_turn(title, timers, [name for name in peers if name in present], seconds)


def in_turn(
    title: str,
    timers: Mapping[str, Callable[[], float]],
    peers: list[str],
    seconds: float,
    least_rounds: int = LEAST_ROUNDS,
) -> Result:
    """Quartiles of the times of the timers, called A B C, A B C for about `seconds`, and of their ratios per round."""
    rounds = []
    end = time.perf_counter() + seconds
    while len(rounds) < least_rounds or (time.perf_counter() < end and len(rounds) < MOST_ROUNDS):
        rounds.append([timer() for timer in timers.values()])
    samples = dict(zip(timers, np.array(rounds).T, strict=True))
    ratios = {
        name: {peer: quartiles(samples[name] / samples[peer]) for peer in peers if peer != name} for name in samples
    }
    return Result(title, {name: quartiles(sample) for name, sample in samples.items()}, ratios, len(rounds))


def timed(variant: Callable[[int], Any], count: int, pause: float = 0) -> float:
    """The seconds that `variant(count)` takes after the pause."""
    time.sleep(pause)
    gc.disable()
    try:
        start = time.perf_counter()
        variant(count)
        return time.perf_counter() - start
    finally:
        gc.enable()


def check_same_work(start: Any, variants: Mapping[str, Any], steps: int = 3, tolerance: float = 1e-4) -> None:
    """Make `steps` steps with every variant, and raise AssertionError unless all moved equally from `start`."""
    moves = {}
    for name, variant in variants.items():
        if variant is not None:
            variant(steps)
            moves[name] = [x - s for x, s in zip(variant.values(), start, strict=True)]
    reference_name, reference = next(iter(moves.items()))
    size = _norm(reference)
    for name, move in moves.items():
        difference = _norm([x - r for x, r in zip(move, reference, strict=True)])
        if not difference <= tolerance * size:
            raise AssertionError(f"{name} and {reference_name} moved {size:.3g}, but {difference:.3g} apart")


def _norm(arrays: list[np.ndarray]) -> float:
    return math.sqrt(sum(float(np.vdot(x, x)) for x in arrays))
