"""Settings: a YAML file, the environment and the command line, as one frozen value.

Knows: what can be set, which settings can't work together, and how to say what is wrong with them.
Does not know: what any backend sets (its row says that), HTTP.
"""

from server.config.reading import DEFAULT_CONFIG, load
from server.config.settings import (
    MAX_STOPS,
    ModelSettings,
    NudgingSettings,
    SamplingSettings,
    ServerSettings,
    Settings,
)

__all__ = [
    "DEFAULT_CONFIG",
    "MAX_STOPS",
    "ModelSettings",
    "NudgingSettings",
    "SamplingSettings",
    "ServerSettings",
    "Settings",
    "load",
]
