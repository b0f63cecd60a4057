"""`python -m rlm.demo`: the demo without the command line's other parts."""

from __future__ import annotations

import argparse
import sys

from rlm.demo import run
from rlm.errors import RLMError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rlm.demo", description="A conversation over real text, checked.")
    parser.add_argument("--model", metavar="PROVIDER:NAME", help="a real model; without it a script plays the model")
    parser.add_argument("--sub-model", metavar="PROVIDER:NAME", help="what cells ask; the same model by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object in the end and nothing else")
    given = parser.parse_args()
    try:
        return run(given.model, sub_model=given.sub_model, json=given.json)
    except RLMError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
