"""SHOT in a study: the penalty, and pre-training by it alone. The library's own objects check the values."""

from typing import Literal

from pydantic import model_validator

from analysis.config.base import Flag, Positive, Strict
from hessian_tools.inner.pretraining import Augmentation, ShotPretraining
from hessian_tools.inner.shot import Shot


class ShotConfig(Strict):
    """SHOT's penalty; see hessian_tools.Shot."""

    weight: float = Shot.weight
    target_steps: Positive | None = Shot.target_steps
    reference_steps: Positive | None = Shot.reference_steps
    distance: str = Shot.distance
    detach_reference: Flag = Shot.detach_reference
    schedule: str = Shot.schedule
    schedule_steps: Positive | None = Shot.schedule_steps

    @model_validator(mode="after")
    def _the_library_takes_it(self) -> "ShotConfig":
        self.built()
        return self

    def built(self) -> Shot:
        """The library's object."""
        return Shot(**self.model_dump())


class AugmentationConfig(Strict):
    """How the query images of pre-training are changed; see hessian_tools.inner.pretraining.Augmentation."""

    flip: Flag = Augmentation.flip
    shift: float = Augmentation.shift
    zoom: float = Augmentation.zoom
    brightness: float = Augmentation.brightness


class PretrainingConfig(Strict):
    """SHOT_p: training by SHOT's distance alone; {} takes the library's defaults. augmentation: null for none."""

    projector: Literal["trained", "fixed", "absent"] = "trained"
    hidden: Positive = ShotPretraining.hidden
    augmentation: AugmentationConfig | None = AugmentationConfig()

    def built(self) -> ShotPretraining:
        """The library's object."""
        augmentation = Augmentation(**self.augmentation.model_dump()) if self.augmentation else None
        return ShotPretraining(self.projector, self.hidden, augmentation)
