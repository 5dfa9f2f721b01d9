"""The pydantic models that hold and check a study's configuration; ``analysis.study_file`` makes them from YAML."""

from analysis.config.learner import LEARNER_SETTINGS, LearnerConfig
from analysis.config.study import DataConfig, LevelConfig, NetworkConfig, StepSizeSearch, StudyConfig

__all__ = [
    "LEARNER_SETTINGS",
    "DataConfig",
    "LearnerConfig",
    "LevelConfig",
    "NetworkConfig",
    "StepSizeSearch",
    "StudyConfig",
]
