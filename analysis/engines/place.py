"""The user's choice of where a study's units of work run; it needs no torch, so that the command line can use it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import UserError

DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Place:
    """Where units of work run. At most one of the four is given; by default they run in processes on this machine.

    workers: the number of worker processes, or 0 for the present process; None leaves it to the engine.
    devices: the devices of this machine, with a worker process for each entry.
    cluster: the file with the settings of a cluster; see ``analysis.config.ClusterConfig``.
    dask: the address of the scheduler of a Dask cluster.

    Raises UserError where several are given, or where a value is not allowed.
    """

    workers: int | None = None
    devices: tuple[str, ...] = ()
    cluster: Path | None = None
    dask: str | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value not in (None, ())]
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} exclude each other; give one of them")
        if self.workers is not None and self.workers < 0:
            raise UserError(
                f"--workers {self.workers} is negative; give a number of processes, or 0 to work in this process"
            )
        for device in self.devices:
            if not DEVICE.fullmatch(device):
                raise UserError(f"--devices: {device!r} is no device; give for example --devices cuda:0,cuda:1")
        if len({device.partition(":")[0] for device in self.devices}) > 1:
            raise UserError(
                f"--devices {','.join(self.devices)} mixes kinds of devices, and the numbers of a run would depend on"
                " the worker that it happens to get; give devices of one kind"
            )

    def device(self, device: str) -> str:
        """The device of the study, "cpu" or "cuda". device: the value of the option ``--device``."""
        if not self.devices:
            return device
        kind, _, _ = self.devices[0].partition(":")
        if device not in ("cpu", kind):  # "cpu" is the default of --device, so it contradicts nothing
            raise UserError(f"--device {device} and --devices {','.join(self.devices)} disagree; leave --device out")
        return kind


THIS_PROCESS = Place(workers=0)


def parse_devices(devices: str | Sequence[str] | None) -> tuple[str, ...]:
    """The devices in a text such as "cuda:0,cuda:1", or in a list of their names.

    >>> parse_devices("cuda:0, cuda:1"), parse_devices(["cpu"]), parse_devices(None)
    (('cuda:0', 'cuda:1'), ('cpu',), ())
    """
    names = devices.split(",") if isinstance(devices, str) else devices or ()
    return tuple(name.strip() for name in names)
