"""Several processes that compute one result: their data shared, or one model sharded over them."""

from hessian_tools.distributed.sharded import ShardedHessian, sharded_hessian
from hessian_tools.distributed.sharding import shard
from hessian_tools.processes import OtherProcessFailed, ProcessLost, data_parallel

# Data shared between processes: data_parallel(my_batches) in place of a batch.
__all__ = ["data_parallel", "OtherProcessFailed", "ProcessLost"]
# A model whose parameters are sharded over processes.
__all__ += ["shard", "sharded_hessian", "ShardedHessian"]
