"""``nudge serve``: the engines and the HTTP server, from start to exit code.

Knows: how the parts are put together, signals. Does not know: a rule of any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
import uvicorn
import uvloop

from server import __version__, config, doctor
from server.cli.terminal import ConfigOption, load, out, progress, say_error, say_warning
from server.core import NudgeError
from server.doctor import settings as checks
from server.engines import machine
from server.telemetry import logs

if TYPE_CHECKING:
    from server.api.admission import Gate


def serve(
    config_file: ConfigOption = config.DEFAULT_CONFIG,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: a free one.")] = None,
    skip_checks: Annotated[
        bool, typer.Option("--skip-checks", help="Load the models whatever the doctor says.")
    ] = False,
) -> None:
    """Start the engines and serve them over HTTP until Ctrl-C or SIGTERM."""
    settings = load(config_file, server__host=host, server__port=port)
    if not _can_start(settings, models=not skip_checks):
        raise typer.Exit(2)
    logs.configure(settings.server)
    raise typer.Exit(uvloop.run(_serve(settings, config_file)))


def _can_start(settings: config.Settings, *, models: bool) -> bool:
    """Says what is wrong before minutes are spent on loading. ``models``: with what needs their
    files and the machine; otherwise the server's own settings alone."""
    if models:
        report = doctor.examine(settings, machine.look())
        for finding in report.findings:
            if finding.level == "warning":
                say_warning(str(finding))
        problems = [str(finding) for finding in report.findings if finding.level == "error"]
    else:
        problems = checks.server_problems(settings.server)
    for problem in problems:
        say_error(problem)
    return not problems


async def _serve(settings: config.Settings, config_file: Path) -> int:
    """Returns the exit code: 0 where it was told to end, 1 where it gave up."""
    from server.api.app import create_app
    from server.api.connection import Connection
    from server.serving.engines import settle
    from server.serving.registry import Registry
    from server.serving.supervisor import supervise

    try:
        # Before a minute is spent on loading models.
        listening = _listen(settings.server.host, settings.server.port)
    except OSError as error:
        say_error(
            f"can't listen on {settings.server.host}:{settings.server.port}: "
            f"{error.strerror or error}; choose another with --port"
        )
        return 1
    registry = Registry(settings)
    server: _Server
    began = time.monotonic()

    said = progress(settings)

    async def start() -> None:
        out.print(f"[bold]nudge {__version__}[/bold]  {config_file}")
        try:
            await registry.start(said)
            settle()
            _say_ready(settings, listening.getsockname()[1], time.monotonic() - began)
            await supervise(registry.engines, settings.server, said)
        except Exception as error:
            if isinstance(error, NudgeError):
                say_error(str(error))
            else:
                logging.getLogger("nudge").exception("the engines could not be kept running")
            server.give_up()

    app = create_app(registry, start=start)
    password = settings.server.ssl_keyfile_password
    server = _Server(
        uvicorn.Config(
            app,
            http=Connection.within(settings.server.send_timeout_s),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
            ssl_certfile=settings.server.ssl_certfile,
            ssl_keyfile=settings.server.ssl_keyfile,
            ssl_keyfile_password=None if password is None else password.get_secret_value(),
        ),
        app.state.gate,
        settings.server.drain_s,
    )
    with listening:
        await server.serve(sockets=[listening])
    return int(server.gave_up)


class _Server(uvicorn.Server):
    """Ends by itself on SIGINT and SIGTERM, with an exit code, instead of dying of the signal
    once it has shut down. It listens, and refuses, while running answers finish; a second
    Ctrl-C ends those."""

    def __init__(self, options: uvicorn.Config, gate: Gate, drain_s: float) -> None:
        super().__init__(options)
        self.gave_up = False
        self._gate = gate
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None

    def give_up(self) -> None:
        """End without waiting for answers, as a failure: what it serves can't be had."""
        self.gave_up = True
        self._gate.clear()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        elif sig == signal.SIGINT:
            self._gate.clear()
            # A third one waits for nobody at all.
            self.force_exit = self.should_exit
            self.should_exit = True

    async def _drain(self) -> None:
        if answers := self._gate.running + self._gate.waiting:
            out.print(
                f"finishing {answers} answer{'' if answers == 1 else 's'}, up to "
                f"{self._drain_s:g} s; Ctrl-C again stops now"
            )
        await self._gate.drain(self._drain_s)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for each in signals:
            loop.add_signal_handler(each, self.handle_exit, each, None)
        try:
            yield
        finally:
            for each in signals:
                loop.remove_signal_handler(each)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    # A stream is many small packets. Each is to go out at once, and not when the client has
    # acknowledged the one before, which it may put off for 40 ms. Connections inherit this.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _say_ready(settings: config.Settings, port: int, seconds: float) -> None:
    host = settings.server.host
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    scheme = "http" if settings.server.ssl_certfile is None else "https"
    url = f"{scheme}://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"
    model = next(iter(settings.models))
    out.print(f"[bold green]ready[/bold green] in {seconds:.0f} s on {url}  (Ctrl-C stops)\n")
    question = "What is the capital of Galicor?" if model == "demo" else "Who are you?"
    guarded = settings.server.api_keys or settings.server.api_keys_file
    key = "-H 'Authorization: Bearer KEY' " if guarded else ""
    out.print(
        f"curl {url}/chat/completions -H 'Content-Type: application/json' {key}"
        f'-d \'{{"model": "{model}", "messages": [{{"role": "user", "content": '
        f'"{question}"}}]}}\'',
        soft_wrap=True,
        markup=False,
    )
