"""What can be wrong with a configuration by itself, before any model's files are looked at.

Knows: templates, keys, certificates, traces. Does not know: what a backend demands of its settings,
model files, the machine's memory.
"""

from __future__ import annotations

import ssl

from server import config
from server.api.access import Keys
from server.core import ConfigError
from server.engines import backends
from server.telemetry import tracing
from server.text.prompts import base_template


def problems(settings: config.Settings) -> list[str]:
    """All of it, a sentence each."""
    found = []
    for name, model in settings.models.items():
        try:
            base_template(model.base_prompt)
        except ConfigError as error:
            found.append(f"models.{name}.{error}")
    for backend, engines in backends.grouped(settings.engines):
        found += backend.problems(engines)
    return [*found, *server_problems(settings.server)]


def server_problems(settings: config.ServerSettings) -> list[str]:
    """Keys, a certificate or traces that can't be had."""
    found = []
    for check in (Keys.load, _check_certificate, tracing.check):
        try:
            check(settings)
        except ConfigError as error:
            found.append(str(error))
    return found


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
