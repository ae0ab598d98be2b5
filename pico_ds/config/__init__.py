"""The configuration of a run: its schema, how it is loaded, and DeepSpeed's configuration."""

from pico_ds.config.field_types import Readout
from pico_ds.config.loading import dump_config, load_config, parse_config
from pico_ds.config.meta_schema import MetaConfig
from pico_ds.config.schema import (
    CheckpointingConfig,
    DataConfig,
    EvaluationConfig,
    HubConfig,
    ModelConfig,
    PerplexityConfig,
    RunConfig,
    TrainingConfig,
)
from pico_ds.config.task_schema import SmlmtConfig
from pico_ds.errors import ConfigError

__all__ = [
    "CheckpointingConfig",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "HubConfig",
    "MetaConfig",
    "ModelConfig",
    "PerplexityConfig",
    "Readout",
    "RunConfig",
    "SmlmtConfig",
    "TrainingConfig",
    "dump_config",
    "load_config",
    "parse_config",
]
