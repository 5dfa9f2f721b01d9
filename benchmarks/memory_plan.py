"""The peak memory of a process beside what ``ht.plan`` said beforehand, at ten million parameters. Linux only.

Run as ``python -m benchmarks.memory_plan [parameters]``; it prints a table in Markdown. Each line is measured in a
process of its own, which is warmed up by the same calculation of a small network. "Added" is the peak of the resident
memory less what it was before the calculation.
"""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import hessian_tools as ht

INPUTS, OUTPUTS, EXAMPLES = 1000, 10, 16
CALCULATIONS = ("product", "trace", "top_eigenpairs")
# The column "kept" says whether the calculation kept to its plan: the memory that the process adds may differ from the
# plan by at most this share of the plan or by at most this number of bytes, whichever is larger.
SHARE, BYTES = 0.1, 64 * 2**20


def hessian_of_size(num_params: int) -> ht.Operator:
    """The Hessian of a network with one hidden layer and about this many parameters."""
    width = max(1, num_params // (INPUTS + OUTPUTS + 1))
    model = nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, OUTPUTS))
    x = torch.randn(EXAMPLES, INPUTS, generator=ht.stream(0, "x"))
    return ht.hessian_of(model, F.cross_entropy, (x, torch.arange(EXAMPLES) % OUTPUTS))


def calculate(H: ht.Operator, calculation: str) -> object:
    """The calculation whose memory is measured; few products are enough for its peak."""
    if calculation == "product":
        return H.mv(torch.ones(H.num_params))
    if calculation == "trace":
        return ht.trace(H, num_probes=4, method="probes")
    return ht.top_eigenpairs(H, k=5, max_matvecs=30, method="lanczos", vectors=True)


def resident(name: str) -> int:
    """A number of /proc/self/status in bytes: VmRSS, the resident memory now, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def measure(calculation: str, num_params: int) -> None:
    """Print the line of one calculation."""
    calculate(hessian_of_size(5000), calculation)  # warms up the process
    H = hessian_of_size(num_params)
    # The plan gets the same options as the calculation in ``calculate``.
    options = {"trace": {"num_probes": 4}, "top_eigenpairs": {"k": 5, "vectors": True, "max_matvecs": 30}}
    planned = ht.plan(H, calculation, **options.get(calculation, {}))  # type: ignore[arg-type]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # tells Linux to count the peak from here on
    result = calculate(H, calculation)
    added = resident("VmHWM") - before
    assert result is not None
    difference = added - planned.bytes_added
    kept = "yes" if abs(difference) <= max(SHARE * planned.bytes_added, BYTES) else "no"
    vectors = planned.bytes_added / planned.vector_bytes
    print(
        f"| {calculation} | {H.num_params:,} | {planned.bytes_added / 2**20:.0f} MiB ({vectors:.1f} vectors) | "
        f"{added / 2**20:.0f} MiB | {100 * difference / planned.bytes_added:+.1f} % | {kept} |",
        flush=True,
    )


def main(num_params: int = 10**7) -> None:
    """Print the table."""
    print("| calculation | parameters | planned | added | difference | kept |\n|---|---|---|---|---|---|", flush=True)
    for calculation in CALCULATIONS:
        subprocess.run([sys.executable, "-m", "benchmarks.memory_plan", str(num_params), calculation], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[2], int(float(sys.argv[1])))
    else:
        main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 10**7)
