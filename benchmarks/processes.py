"""Several processes on one machine (torch's backend gloo): time and traffic of a product, memory of a sharded model.

    python -m benchmarks.processes data [--processes 1 2 4]
    python -m benchmarks.processes sharded [--processes 1 4] [--width 2000]

``data`` shares the batches between the processes and reports, for a product with one vector, the median time and the
bytes that a process sent. ``sharded`` divides a model of 5 width^2 parameters in float32, runs Lanczos for 5
eigenpairs, and reports by how much the peak of a process's resident memory rose above its value before the model was
made.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools.distributed import data_parallel, shard, sharded_hessian

REPEATS = 20
EXAMPLES = 16
PRODUCTS = 32  # enough for Lanczos to fill its basis and to restart; further products need no more memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "sharded"])
    parser.add_argument("--processes", type=int, nargs="+", default=None)
    parser.add_argument("--width", type=int, default=2000)
    given = parser.parse_args()
    run = _data if given.what == "data" else _sharded
    for size in given.processes or ([1, 2, 4] if given.what == "data" else [1, 4]):
        with tempfile.TemporaryDirectory() as folder:
            mp.start_processes(_serve, (size, folder, run, given.width), nprocs=size, start_method="spawn")


def _serve(rank: int, size: int, folder: str, run: Any, width: int) -> None:
    """The main function of each process: join the group and measure; the first process prints the line."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(Path(folder) / "store"), size), rank=rank, world_size=size)
    line = run(rank, size, width)
    dist.barrier()
    if rank == 0:
        print(f"{size} process{'es' * (size > 1)}: {line}", flush=True)
    dist.destroy_process_group()


def _sent() -> int:
    """The bytes that this machine has sent over its loopback device; -1 where the system does not say.

    All processes are on this machine, so this is the sum of what they have sent.
    """
    path = Path("/proc/net/dev")
    if not path.exists():
        return -1
    line = next(line for line in path.read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])  # eight numbers on what was received come before the bytes that were sent


def _data(rank: int, size: int, _: int) -> str:
    """Measure products of a Hessian whose batches are shared between the processes; returns the line to print."""
    model = ht.seeded(lambda: ht.MLP((64, 256, 256, 256, 10)), seed=0)
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, F.cross_entropy, layout)
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randn(128, 64, generator=draw), torch.randint(0, 10, (128,), generator=draw)) for _ in range(8)]
    # The route "kept" keeps the graph of the gradient in memory.
    H = ht.hessian(loss, theta, data_parallel(batches[rank::size]), route="kept")
    v = torch.ones_like(theta)
    H.mv(v)
    times, before = [], _sent()
    for _ in range(REPEATS):
        start = time.perf_counter()
        H.mv(v)
        times.append(time.perf_counter() - start)
    dist.barrier()
    sent = (_sent() - before) / REPEATS / size
    median = sorted(times)[REPEATS // 2]
    return f"n = {len(theta):,}, {1e3 * median:.1f} ms and {sent / 1e6:.2f} MB sent a product and process"


def _sharded(rank: int, size: int, width: int) -> str:
    """Compute eigenpairs of a model in shards (or, with one process, of the whole model); returns the line to print."""
    # A first backward pass, so that what torch loads at the first use does not count as memory of the model.
    F.cross_entropy(nn.Linear(8, 8)(torch.ones(2, 8)), torch.tensor([0, 1])).backward()
    before = _peak_memory()
    model = ht.seeded(
        lambda: nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(width, width), nn.Tanh())]), seed=0
    )
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(EXAMPLES, width, generator=draw), torch.randint(0, width, (EXAMPLES,), generator=draw)
    start = time.perf_counter()
    if size == 1:
        H: Any = ht.hessian_of(model, F.cross_entropy, (x, y))
        del model
        pairs, n = ht.top_eigenpairs(H, k=5, rtol=1e-2, max_matvecs=PRODUCTS), H.num_params
    else:
        H = sharded_hessian(shard(model), F.cross_entropy, (x[rank::size], y[rank::size]))
        pairs, n = H.top_eigenpairs(k=5, rtol=1e-2, max_matvecs=PRODUCTS), H.num_params
    added = _peak_memory() - before
    vectors = added / (4 * n)  # n numbers of four bytes
    return (
        f"n = {n:,}, lambda_max {float(pairs.values[0]):.6g} ± {float(pairs.residuals[0]):.1g}, "
        f"{int(pairs.num_matvecs)} products in {time.perf_counter() - start:.0f} s, "
        f"{added / 1e6:.0f} MB above a warm process, which are {vectors:.1f} vectors of length n"
    )


def _peak_memory() -> int:
    """The largest resident memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux states it in KiB


if __name__ == "__main__":
    main()
