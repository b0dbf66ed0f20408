"""``nudge check-config``, and what ``nudge serve`` checks before it loads anything.

Knows: what can be wrong with a configuration. Does not know: what needs a model's files.
"""

from __future__ import annotations

import ssl

import typer
from rich.markup import escape
from rich.table import Table

from server import config, tracing
from server.cli.terminal import ConfigArgument, load, out, say_error
from server.core import ConfigError


def check_config(config_file: ConfigArgument) -> None:
    """Read a configuration, say what it serves, and what is wrong with it. Loads no weights."""
    settings = load(config_file)
    table = Table("served as", "base", "aligned", "γ", box=None, header_style="bold")
    for name, model in settings.models.items():
        base, aligned = settings.engines[model.base], settings.engines[model.aligned]
        table.add_row(*map(escape, (name, base.model, aligned.model, f"{model.nudging.gamma:g}")))
    problems = [
        *_template_problems(settings),
        *_engine_problems(settings),
        *server_problems(settings.server),
    ]
    out.print(table)
    for problem in problems:
        say_error(problem)
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


def server_problems(settings: config.ServerSettings) -> list[str]:
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
