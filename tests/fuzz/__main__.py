"""`scripts/fuzz [--minutes M] [--seed N] [--rounds R] [--examples E]`: lying workers, for as long as you like.

A round is a run of Hypothesis with a seed of its own. The first promise that does not hold ends the run, with the seed
of its round and the smallest script that Hypothesis finds to break it.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import resource
import sys
import time
from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.fuzz.play import Broken, play
from tests.fuzz.scripts import Script, scripts

STUCK = 60.0  # seconds after which a script that still runs is a hang of the whole process, which tells where
GROWTH = 1_000_000  # KiB that scripts may add to what this process has held at most


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Let workers lie to a kernel.")
    parser.add_argument("--minutes", type=float, default=5.0, help="end after this time (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next ones follow")
    parser.add_argument("--rounds", type=int, help="end after so many; with --seed and 1, the same round again")
    parser.add_argument("--examples", type=int, default=500, help="scripts in a round")
    options = parser.parse_args(arguments)
    began, played, last = time.monotonic(), 0, [""]
    found: list[str] = []

    def lie(script: Script) -> None:
        nonlocal played
        played += 1
        last[0] = repr(script)
        faulthandler.dump_traceback_later(STUCK, exit=True)
        try:
            play(script)
        except Broken as broken:
            if not found:
                print(f"\n{broken}: {script!r}\nnow looking for the smallest one", file=sys.stderr, flush=True)
            found.append(str(broken))
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()

    for number in itertools.count(options.seed):
        seconds = time.monotonic() - began
        if seconds >= 60 * options.minutes or (options.rounds is not None and number - options.seed >= options.rounds):
            break
        chosen = settings(
            max_examples=options.examples,
            deadline=None,
            database=None,
            verbosity=Verbosity.normal,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        held = _held()
        try:
            seed(number)(chosen(given(scripts)(lie)))()
            if _held() - held > GROWTH:
                raise MemoryError(f"{_held() - held:,} KiB more than before: {last[0][:2_000]}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
            print(f"\nBROKEN in the round of seed {number}, after {played:,} scripts: {type(error).__name__}: {error}")
            print("\n".join(getattr(error, "__notes__", [])))
            print(f"once more: scripts/fuzz --seed {number} --rounds 1 --examples {options.examples}", flush=True)
            return 1
        print(
            f"\r{played:,} scripts, {number - options.seed + 1:,} rounds, {time.monotonic() - began:.0f} s, "
            f"{_held() // 1024:,} MiB at most ",
            end="",
            file=sys.stderr,
            flush=True,
        )
    print(f"\n{played:,} scripts in {time.monotonic() - began:.0f} s, from seed {options.seed} on: all promises held")
    return 0


def _held() -> int:
    """KiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
