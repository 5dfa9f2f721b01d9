"""Run Hessian tools on problems with known Hessians and print their scores: ``python -m benchmarks.references``.

A tool is a function (model, criterion, batch) -> dict of its answers; docs/audit.md describes it.
"""

import argparse

from benchmarks.references.scores import score, table
from benchmarks.references.tools import TOOLS
from hessian_tools.importing import import_object


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.references", description=__doc__)
    parser.add_argument("--tool", action="append", help="MODULE:FUNCTION or FILE.py:FUNCTION; may be given repeatedly")
    chosen = parser.parse_args().tool
    tools = {name: import_object(name) for name in chosen} if chosen else TOOLS
    print(table({name: score(tool) for name, tool in tools.items()}))


if __name__ == "__main__":
    main()
