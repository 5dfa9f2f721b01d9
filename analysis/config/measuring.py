"""How much of a study is measured."""

from typing import Annotated

from pydantic import Field, model_validator

from analysis.config.base import Flag, Natural, Positive, Rate, Strict


class LevelConfig(Strict):
    """How much is measured at a point: eigenvalues by magnitude, their relative tolerance, trace probes."""

    eigenvalues: Positive = 5
    tolerance: Rate = 1e-3
    probes: Annotated[int, Field(ge=2, strict=True)] = 20
    max_matvecs: Positive = 80

    @model_validator(mode="after")
    def _enough_products(self) -> "LevelConfig":
        least = 2 * (self.eigenvalues + 2)
        if self.max_matvecs < least:
            raise ValueError(
                f"max_matvecs={self.max_matvecs} cannot find and check {self.eigenvalues} eigenvalues and both ends;"
                f" give {least} or more"
            )
        return self


class MeasureConfig(Strict):
    """Held-out tasks: all get the light measurement, the first few the full one at the first and last checkpoint.

    evaluation_tasks: further ones, for accuracy alone. transductive: whether the queries of a task are one batch there
    and in validation; see hessian_tools.evaluate.
    """

    tasks: Positive = 16
    full_tasks: Natural = 4
    light: LevelConfig = LevelConfig(eigenvalues=1, tolerance=1e-2, probes=4, max_matvecs=40)
    full: LevelConfig = LevelConfig()
    block: Positive = 4
    evaluation_tasks: Positive = 100
    transductive: Flag = True
    seed: Natural = 0

    @model_validator(mode="after")
    def _full_within_tasks(self) -> "MeasureConfig":
        if self.full_tasks > self.tasks:
            raise ValueError(f"full_tasks={self.full_tasks} exceeds tasks={self.tasks}")
        if self.light.eigenvalues > self.full.eigenvalues or self.light.probes > self.full.probes:
            raise ValueError("the light measurement asks for more eigenvalues or probes than the full one")
        return self
