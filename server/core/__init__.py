"""The values that flow through the server, as frozen values: what is read, asked for, answered, and
what can go wrong.

Knows: the vocabulary of the domain. Does not know: any library, any engine, HTTP, or a rule of the
policy.
"""

from server.core.answer import (
    Finished,
    FinishReason,
    Piece,
    Rejected,
    ScoredToken,
    StopReason,
    Usage,
)
from server.core.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    NudgeError,
)
from server.core.messages import (
    Literally,
    Message,
    PromptPair,
    PromptText,
    Tool,
    ToolCall,
    joined,
)
from server.core.names import (
    Speaker,
    TokenIds,
)
from server.core.request import (
    UNLIMITED,
    AnswerRequest,
    EndCheck,
    Grammar,
    NudgingConfig,
    SamplingParams,
    ThinkingLimit,
)

__all__ = [
    "UNLIMITED",
    "AnswerRequest",
    "ConfigError",
    "ContextLengthExceeded",
    "EndCheck",
    "EngineUnavailable",
    "FinishReason",
    "Finished",
    "Grammar",
    "InvalidRequest",
    "Literally",
    "Message",
    "NudgeError",
    "NudgingConfig",
    "Piece",
    "PromptPair",
    "PromptText",
    "Rejected",
    "SamplingParams",
    "ScoredToken",
    "Speaker",
    "StopReason",
    "ThinkingLimit",
    "TokenIds",
    "Tool",
    "ToolCall",
    "Usage",
    "joined",
]
