"""Several processes that compute one result: ``from hessian_tools.distributed import data_parallel``."""

from hessian_tools.processes import OtherProcessFailed, ProcessLost, data_parallel

__all__ = ["data_parallel", "OtherProcessFailed", "ProcessLost"]
