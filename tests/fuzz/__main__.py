"""`python -m tests.fuzz [FAMILY[:NUMBER] ...] [--seed N]`: damage everything, and report what came of it."""

import argparse
import sys
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path

from .judge import Outcome, judge


FAMILIES = ("images", "recipes", "checkpoints", "tables", "commands")
SHOWN = 3  # refusals of each family, as examples


def run_family(family: str, seed: int, numbers: list[int], ground: Path) -> list[tuple[int, str, Outcome]]:
    """Try cases of a family; returns the number of each, the input in words, and what came of it."""
    module = import_module(f"tests.fuzz.{family}")
    done = []
    for number in numbers:
        case = module.case(seed, number, ground)
        done.append((number, case.what, judge(case)))
    return done


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"one of {', '.join(FAMILIES)}, or a case such as images:17")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every refusal")
    chosen = parser.parse_args()
    crashed = 0
    print(f"seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as ground:
        for name in chosen.cases or FAMILIES:
            family, alone, number = name.partition(":")
            numbers = [int(number)] if alone else list(range(import_module(f"tests.fuzz.{family}").COUNT))
            done = run_family(family, chosen.seed, numbers, Path(ground))
            counts = Counter(outcome.kind for *_, outcome in done)
            slowest = max(outcome.seconds for *_, outcome in done)
            print(
                f"{family}: {len(done)} tried, {counts['refused']} refused, "
                f"{counts['accepted']} accepted or converted, {counts['crashed']} crashed; "
                f"the slowest took {slowest:.1f} s",
                flush=True,
            )
            shown = 0
            for number, what, outcome in done:
                if outcome.kind == "crashed" or alone or chosen.verbose:
                    print(f"  {family}:{number} {outcome.kind}: {what}\n      {outcome.text}")
                elif outcome.kind == "refused" and shown < SHOWN:
                    shown += 1
                    print(f"  such as {family}:{number} {what}\n      {outcome.text}")
            crashed += counts["crashed"]
    if crashed:
        print(f"{crashed} crashed; repeat one with: make fuzz FUZZ='FAMILY:NUMBER --seed {chosen.seed}'")
    return int(crashed > 0)


if __name__ == "__main__":
    sys.exit(main())
