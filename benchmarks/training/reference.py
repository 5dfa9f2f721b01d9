"""What a meta-gradient really is: the plain loop in float64.

python -m benchmarks.training.reference M1.safetensors '{"workload": "M1", "points": 4, ...}' OUT.json
"""

import json
import os
import sys
from pathlib import Path

import torch

from benchmarks.training import loads
from benchmarks.training.plain import meta_gradient


def main() -> None:
    path, text, out = sys.argv[1:4]
    order = json.loads(text)
    torch.set_num_threads(os.cpu_count() or 1)
    problem = loads.load(order["workload"], Path(path)).first(order["points"]).to(order["device"], torch.float64)
    Path(out).write_text(json.dumps({"values": loads.sampled(meta_gradient(problem)).tolist()}))


if __name__ == "__main__":
    main()
