"""The ways to a trajectory: record an inner loop, follow another training loop, or read stored checkpoints."""

from hessian_tools.trajectory.record import record
from hessian_tools.trajectory.recorder import Recorder, trajectory_from
from hessian_tools.trajectory.trajectory import SaveAt, Trajectory, stack

__all__ = ["Recorder", "SaveAt", "Trajectory", "record", "stack", "trajectory_from"]
