"""The command line: ``nudge serve`` and ``nudge check-config``.

Knows: the terminal, and how the parts are put together. Does not know: a rule of any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
import uvicorn
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server import __version__, config, logs, tracing
from server.core import ConfigError, NudgeError

if TYPE_CHECKING:
    from server.api.gate import Gate

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="An OpenAI-compatible server that turns any base language model into a chat model.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The YAML file that names engines and models.")
]


def version(show: bool) -> None:
    if show:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Nudging: a small aligned model helps a big base model where it is uncertain."""


@app.command()
def serve(
    config_file: ConfigOption = config.DEFAULT_CONFIG,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: a free one.")] = None,
) -> None:
    """Start the engines and serve them over HTTP until Ctrl-C or SIGTERM."""
    settings = _load(config_file, server__host=host, server__port=port)
    if problems := _server_problems(settings.server):
        for problem in problems:
            _error(problem)
        raise typer.Exit(2)
    logs.configure(settings.server)
    raise typer.Exit(asyncio.run(_serve(settings, config_file)))


async def _serve(settings: config.Settings, config_file: Path) -> int:
    """Returns the exit code: 0 where it was told to end, 1 where it gave up."""
    from server.api.app import create_app
    from server.registry import Registry
    from server.supervisor import supervise

    try:
        # Before a minute is spent on loading models.
        listening = _listen(settings.server.host, settings.server.port)
    except OSError as error:
        _error(
            f"can't listen on {settings.server.host}:{settings.server.port}: "
            f"{error.strerror or error}; choose another with --port"
        )
        return 1
    registry = Registry(settings)
    server: _Server
    began = time.monotonic()

    def progress(engine: str, state: str, seconds: float) -> None:
        model = settings.engines[engine].model
        match state:
            case "loading":
                out.print(f"  loading {engine}  [dim]{model}[/dim]")
            case "ready":
                out.print(f"  [green]ready[/green]   {engine}  [dim]{seconds:.1f} s[/dim]")
            case _:
                out.print(f"  [red]failed[/red]  {engine}  [dim]{seconds:.1f} s[/dim]")

    async def start() -> None:
        out.print(f"[bold]nudge {__version__}[/bold]  {config_file}")
        try:
            await registry.start(progress)
            _say_ready(settings, listening.getsockname()[1], time.monotonic() - began)
            await supervise(registry, progress)
        except Exception as error:
            if isinstance(error, NudgeError):
                _error(str(error))
            else:
                logging.getLogger("nudge").exception("the engines could not be kept running")
            server.give_up()

    app = create_app(registry, start=start)
    password = settings.server.ssl_keyfile_password
    server = _Server(
        uvicorn.Config(
            app,
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
    return socket.create_server((host, port), family=family, backlog=2048)


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


@app.command("check-config")
def check_config(
    config_file: Annotated[Path, typer.Argument(help="The YAML file to check.")],
) -> None:
    """Read a configuration, say what it serves, and what is wrong with it. Loads no weights."""
    settings = _load(config_file)
    table = Table("served as", "base", "aligned", "γ", box=None, header_style="bold")
    for name, model in settings.models.items():
        base, aligned = settings.engines[model.base], settings.engines[model.aligned]
        table.add_row(*map(escape, (name, base.model, aligned.model, f"{model.nudging.gamma:g}")))
    problems = [
        *_template_problems(settings),
        *_engine_problems(settings),
        *_server_problems(settings.server),
    ]
    out.print(table)
    for problem in problems:
        _error(problem)
    if problems:
        raise typer.Exit(1)
    out.print("[green]ok[/green]")


def _template_problems(settings: config.Settings) -> list[str]:
    from server.prompts import base_template

    problems = []
    for name, model in settings.models.items():
        try:
            base_template(model.base_prompt)
        except ConfigError as error:
            problems.append(f"models.{name}.{error}")
    return problems


def _server_problems(settings: config.ServerSettings) -> list[str]:
    """Keys, a certificate or traces that can't be had: said before any model is loaded."""
    from server.api.access import Keys

    problems = []
    for check in (Keys.load, _check_certificate, tracing.check):
        try:
            check(settings)
        except ConfigError as error:
            problems.append(str(error))
    return problems


def _check_certificate(settings: config.ServerSettings) -> None:
    """Raises `ConfigError` where uvicorn could not use it."""
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if certificate is None:
        if key is not None or settings.ssl_keyfile_password is not None:
            raise ConfigError("server.ssl_keyfile has no effect without server.ssl_certfile")
        return
    for name, path in (("ssl_certfile", certificate), ("ssl_keyfile", key)):
        if path is not None and not path.is_file():
            raise ConfigError(f"server.{name}: there is no file {path}")
    secret = settings.ssl_keyfile_password
    # Without a password of its own OpenSSL would ask for one at the terminal.
    password = "" if secret is None else secret.get_secret_value()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: password)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(
            f"server.ssl_certfile: {certificate} and its key can't be used: {reason}. Both must "
            "be PEM; an encrypted key needs server.ssl_keyfile_password"
        ) from None


def _engine_problems(settings: config.Settings) -> list[str]:
    """Engine arguments that vLLM doesn't have. (Importing vLLM takes seconds.)"""
    if all(engine.backend != "vllm" for engine in settings.engines.values()):
        return []
    from server.engines.vllm import unknown_args

    return [
        f"engines.{name}.args: vLLM has no engine argument {arg!r}"
        for name, engine in settings.engines.items()
        if engine.backend == "vllm"
        for arg in unknown_args(engine.engine_args())
    ]


def _load(path: Path, **flags: object) -> config.Settings:
    try:
        return config.load(path, **flags)
    except ConfigError as error:
        _error(str(error))
        raise typer.Exit(2) from None


def _error(message: str) -> None:
    err.print(f"[red]error[/red] {escape(message)}", soft_wrap=True)


def run() -> None:
    app(prog_name="nudge")
