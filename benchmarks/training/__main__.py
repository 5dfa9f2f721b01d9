"""``python -m benchmarks.training``: what SHOT costs in training, as ``python -m benchmarks --only shot`` measures it.

SHOT is a penalty on the distance between the ends of few large and of many small inner steps (Lee, Yoo and Kwak, 2023).
The analysis plan of the studies, ``analysis/claims/claims.yaml``, names this command, and a plan is not changed once it
is fixed. The plan asks for the operations that SHOT adds, in passes over the query set. In place of these, the command
measures a ratio of times, with SHOT to without it.
"""

import sys

from benchmarks.__main__ import app
from benchmarks.rows import SHOT_COST

if __name__ == "__main__":
    app(["--only", SHOT_COST, *sys.argv[1:]])
