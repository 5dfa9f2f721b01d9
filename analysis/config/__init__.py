"""A study's configuration: checked models; `study_file` makes them of YAML."""

from analysis.config.data import DataConfig
from analysis.config.learner import LEARNER_SETTINGS, LatentConfig, LearnerConfig, RuleConfig
from analysis.config.measuring import LevelConfig, MeasureConfig
from analysis.config.network import NETWORK_SETTINGS, NETWORKS, NetworkConfig
from analysis.config.penalty import AugmentationConfig, PretrainingConfig, ShotConfig
from analysis.config.relations import rounds, trained, without_shot
from analysis.config.study import InnerConfig, StepSizeSearch, StudyConfig, TrainSettings

__all__ = [
    "LEARNER_SETTINGS",
    "NETWORKS",
    "NETWORK_SETTINGS",
    "AugmentationConfig",
    "DataConfig",
    "InnerConfig",
    "LatentConfig",
    "LearnerConfig",
    "LevelConfig",
    "MeasureConfig",
    "NetworkConfig",
    "PretrainingConfig",
    "RuleConfig",
    "ShotConfig",
    "StepSizeSearch",
    "StudyConfig",
    "TrainSettings",
    "rounds",
    "trained",
    "without_shot",
]
