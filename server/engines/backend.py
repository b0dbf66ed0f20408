"""What a backend is: the settings of its engines, how one is started, and what is asked before.

A backend is one folder (or file) beside this one, which makes its `Backend`, and one row of the
table (`server.engines.backends`). Everybody else reads that row: the configuration,
`server.serving`, the doctor, evaluation. What a running engine can do, it says itself
(`server.engines.base.Ability`).

Does not know: any backend, the policy, HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from server.engines.base import Engine
from server.engines.machine import Machine, Tenant
from server.engines.report import Notes
from server.text.tokenizer import Tokenizer


class Frozen(BaseModel):
    """Settings: nothing unknown, and nothing that changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class EngineSettings(Frozen):
    """One engine of a configuration: what those of all backends have.

    backend: its row in `server.engines.backends`; narrowed to that by each backend.
    model: a folder, or a name at the hub.
    folders, files: settings that may name such, which are looked up beside the configuration.
    """

    folders: ClassVar[tuple[str, ...]] = ("model", "tokenizer")
    files: ClassVar[tuple[str, ...]] = ()

    backend: str
    model: str

    @property
    def second(self) -> str | None:
        """The aligned model that it holds besides (`server.engines.fused`), if it does."""
        return None

    @property
    def longer(self) -> int:
        """By how many ids that one's prompt may be longer; under 0: it must be the same."""
        return -1

    def gpus(self) -> list[str]:
        """The GPUs of this machine that it runs on, where it runs on any."""
        return []


S = TypeVar("S", bound=EngineSettings)


def later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported when it is first called: of a row, what needs
    libraries that take seconds to import."""

    def call(*args: Any) -> Any:
        return getattr(import_module(module), name)(*args)

    return call


@dataclass(slots=True)
class Examined:
    """What is known of an engine before it is started; None and nothing where it isn't.

    ends: ids that end its text. context: ids that a session can hold. parameters: of its model.
    kind: its ``model_type``.
    tenants: what it takes, by device: a GPU's index, or "cpu".
    """

    tokenizer: Tokenizer | None = None
    ends: tuple[int, ...] = ()
    context: int | None = None
    parameters: int | None = None
    kind: str | None = None
    tenants: dict[str, Tenant] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Backend(Generic[S]):
    """One row. Its functions get engines of this backend alone, by their names.

    settings: their class; the default of its ``backend`` is the row's name.
    start: the engine of a name, with its settings and how many of this backend there are on the
        machine. Raises `ConfigError`, `EngineUnavailable`.
    examine: what would go wrong, found without loading a weight; ``length`` is that of the chats
        that memory is planned for.
    conflicts: what can't be set together, found when the configuration is read.
    problems: what else is wrong with the settings by themselves, whatever the models' files say.
    hardware: what its engines compute on here, in words.
    """

    settings: type[S]
    start: Callable[[str, S, int], Awaitable[Engine]]
    examine: Callable[[Mapping[str, S], Machine, int, Notes], dict[str, Examined]]
    hardware: Callable[[], str]
    conflicts: Callable[[Mapping[str, S]], Iterator[str]] = lambda _: iter(())
    problems: Callable[[Mapping[str, S]], Iterator[str]] = lambda _: iter(())
