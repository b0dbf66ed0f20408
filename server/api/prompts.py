"""What the models read of a conversation that a request brings.

Knows: which tools the served model is told of. Does not know: how a prompt is rendered, any
dialect's fields.
"""

from __future__ import annotations

from server.api.ask import Chat, Tools
from server.api.errors import ApiError
from server.core import PromptPair
from server.serving.catalog import Served
from server.serving.registry import Registry


def seen(registry: Registry, tools: Tools | None, served: Served) -> Tools | None:
    """The tools that the served model is told of: none, where it is set to pass over them.

    Raises `ApiError` (400) where it is set to refuse them, or can't pass over these.
    """
    setting = registry.settings.models[served.name].tools
    if tools is None or setting not in ("refuse", "unseen"):
        return tools
    if setting == "refuse" or tools.demanded:
        raise ApiError(
            400,
            f"'tools' are not served by {served.name!r} (models.{served.name}.tools: {setting}), "
            "unless 'tool_choice' is 'none'",
            param="tools",
        )
    return None


def rendered(registry: Registry, served: Served, chat: Chat) -> PromptPair:
    """Both models' prompts. Raises as `seen` and `Registry.prompts` do."""
    tools = seen(registry, chat.tools, served)
    return registry.prompts(
        served,
        chat.messages,
        chat.kwargs,
        chat.end,
        () if tools is None else tools.offered,
        chat.effort,
        tools_needed=tools is not None and tools.demanded,
    )
