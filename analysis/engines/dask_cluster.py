"""The engine of a Dask cluster that exists already, by the package distributed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from analysis.engines.remote import JobLost, RemoteEngine
from analysis.engines.worker import Failure, Share, do_share
from analysis.errors import UserError
from analysis.study import Study

CONNECT_SECONDS = 10


def dask_cluster(study: Study, address: str) -> AbstractContextManager[RemoteEngine]:
    """An engine that does a study's work on the workers of a Dask cluster. Each worker does one unit at a time.

    address: the address of the scheduler, such as "tcp://10.0.0.1:8786", or the path of its scheduler file (.json).
    Raises UserError where distributed is missing. Entering the engine raises UserError where no scheduler answers, or
    where a worker has several threads.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--dask needs the package distributed; install it: pip install 'hessian-tools[dask]'") from None
    return _connected(study, address, Client)


@contextmanager
def _connected(study: Study, address: str, connect: Callable[..., Any]) -> Iterator[RemoteEngine]:
    where: dict[str, Any] = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = connect(**where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(
            f"--dask {address}: no Dask scheduler answers ({error}); start one, or correct the address"
        ) from None
    with client:
        for worker, threads in client.nthreads().items():
            if threads > 1:
                raise UserError(
                    f"--dask {address}: the worker {worker} has {threads} threads, but a unit of work needs a process"
                    f" of its own;\nstart it as: dask worker {address} --nthreads 1 --nworkers {threads}"
                )

        def submit(shares: list[Share]) -> list[_Job]:
            # pure=False, because Dask would otherwise answer an equal call with the result of an earlier one.
            return [_Job(client.submit(do_share, share, pure=False)) for share in shares]

        yield RemoteEngine(study.path, submit)


class _Job:
    """A future of Dask; see :class:`analysis.engines.remote.Job`."""

    def __init__(self, future: Any) -> None:
        self._future, self.name = future, "a Dask task"

    def done(self) -> bool:
        """True if the future has a result, an error, or was cancelled."""
        return bool(self._future.done())

    def answer(self) -> Failure | None:
        """The result of the future, which is released."""
        try:
            return self._future.result()  # type: ignore[no-any-return]
        except ImportError as error:
            raise JobLost(f"{error}; install hessian-tools in the environment of the workers") from None
        except Exception as error:  # an error of Dask itself; an error of the work is returned as a Failure
            raise JobLost(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
        finally:
            self._future.release()  # so that the scheduler forgets it

    def cancel(self) -> None:
        """Keep the task from beginning; one that has begun stops when it sees that its permit is gone."""
        self._future.cancel()
