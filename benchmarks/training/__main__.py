"""``python -m benchmarks.training``: what SHOT costs in training, as ``python -m benchmarks --only shot`` measures it.

The plan of the claims names this command, and a plan is not changed once it is fixed. The plan asks for operations, in
passes over the query set. This command is a stand-in: it measures a ratio of times, with SHOT to without it.
"""

import sys

from benchmarks.__main__ import app
from benchmarks.rows import SHOT_COST

if __name__ == "__main__":
    app(["--only", SHOT_COST, *sys.argv[1:]])
