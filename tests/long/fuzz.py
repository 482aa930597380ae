"""Draw settings for as long as told, and hold compiled updates to the plain path, and the plain path to SB3's DDPG.

Not here: what is drawn and compared (`tests/differential.py`). Two seeds may run side by side. It ends at the first
difference, which it prints with the setting.
"""

import argparse
import time
from collections import Counter
from typing import Any

import torch as th
from hypothesis import HealthCheck, Phase, given, seed, settings

from sb3_simple_ddpg.speed import compiled
from tests.differential import check_plain_against_compiled, check_plain_against_sb3, drawn_settings

AT_ONCE = 5  # settings a seed


def count_calls() -> list[str]:
    """Grows with each call of a compiled function on a model; rehearsals are not counted."""
    calls: list[str] = []
    call = compiled._CompiledUpdate.__call__

    def counted(self: Any, batch: Any) -> Any:
        if self.give_up is not compiled._raise:
            calls.append(type(self).__name__)
        return call(self, batch)

    compiled._CompiledUpdate.__call__ = counted  # type: ignore[method-assign]
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=int, default=10**9, help="stop after so many")
    parser.add_argument("--sb3", action="store_true", help="the plain path against SB3's DDPG instead")
    chosen = parser.parse_args()
    th.set_num_threads(1)
    calls, results, started = count_calls(), Counter[str](), time.time()
    batch = 0
    while time.time() - started < 60 * chosen.minutes and results.total() < chosen.settings:

        @seed(1_000_000 * chosen.seed + batch)
        @settings(
            max_examples=AT_ONCE, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(setting=drawn_settings(for_sb3=chosen.sb3))
        def draw(setting: Any) -> None:
            how = check_plain_against_sb3(setting) if chosen.sb3 else check_plain_against_compiled(setting, calls)
            results[how] += 1

        draw()
        batch += 1
        print(f"{time.time() - started:6.0f} s: {results.total()} settings agree, {dict(results)}", flush=True)


if __name__ == "__main__":
    main()
