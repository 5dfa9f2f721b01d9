"""On a machine with two cards, processes that share the data or the model by NCCL compute what one process computes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from data_parallel_cases import Team, problem
from sharded_cases import data as sharded_data
from sharded_cases import model, own_part
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools.distributed import shard, sharded_hessian

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.heavy,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def compare(rank: int, folder: Path) -> None:
    torch.cuda.set_device(rank)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=2)
    loss, theta, batches = problem()
    loss.model.cuda()
    theta = theta.cuda()
    H, alone = (ht.hessian(loss, theta, b) for b in (Team(dist.group.WORLD).share(batches), batches))
    torch.testing.assert_close(H.mv(theta), alone.mv(theta), rtol=1e-12, atol=1e-12)
    few, one = (ht.top_eigenpairs(matrix, k=2, method="lanczos").values for matrix in (H, alone))
    torch.testing.assert_close(few, one, rtol=1e-8, atol=1e-8)
    batches = [(x.cuda(), y.cuda()) for x, y in sharded_data(2)]
    H = sharded_hessian(shard(model().cuda()), F.cross_entropy, batches[rank])
    alone = ht.hessian_of(model().cuda(), F.cross_entropy, batches)
    v = torch.randn(H.num_params, generator=torch.Generator().manual_seed(2), dtype=torch.float64).cuda()
    torch.testing.assert_close(H.mv(own_part(H, v)), own_part(H, alone.mv(v)), rtol=1e-12, atol=1e-12)
    few, one = H.top_eigenpairs(k=2).values, ht.top_eigenpairs(alone, k=2, method="lanczos").values
    torch.testing.assert_close(few, one, rtol=1e-8, atol=1e-8)
    dist.destroy_process_group()


def test_two_cards_give_the_numbers_of_one(tmp_path: Path) -> None:
    mp.start_processes(compare, (tmp_path,), nprocs=2, start_method="spawn")
