"""Times of several calls taken in turns, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds of single calls, in ascending order."""

    seconds: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """Seconds that that `percent` (0..100) of the calls did not exceed, interpolated."""
        position = percent / 100 * (len(self.seconds) - 1)
        below = int(position)
        above = min(below + 1, len(self.seconds) - 1)
        low, high = self.seconds[below], self.seconds[above]
        return low + (high - low) * (position - below)

    @property
    def median(self) -> float:
        return self.percentile(50)


def time_in_turns(
    calls: Mapping[Name, Callable[[], object]],
    *,
    seconds: float = 0.5,
    rounds: int = 10,
    after_round: Callable[[], object] = lambda: None,
) -> dict[Name, Timing]:
    """Time every call by name for about `seconds` each, spread over `rounds` turns.

    In each turn a call runs once unseen (caches and clock settle), then at least once timed; slow
    calls may therefore take longer than `seconds`. Raises ValueError unless both are positive.
    """
    if not seconds > 0 or rounds < 1:
        raise ValueError(f"seconds={seconds} and rounds={rounds} must be positive")
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            _time(call, seconds / rounds, times[name])
        after_round()
    return {name: Timing(tuple(sorted(values))) for name, values in times.items()}


def _time(call: Callable[[], object], seconds: float, into: list[float]) -> None:
    """Append the seconds of single calls until they make up `seconds`."""
    started = before = time.perf_counter()
    while before - started < seconds:
        call()
        now = time.perf_counter()
        into.append(now - before)
        before = now
