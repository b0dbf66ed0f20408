"""``nudge doctor``: what would go wrong with a configuration, and how its memory is divided.

Knows: how a report is shown. Does not know: what is checked.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from server import config, doctor
from server.cli.terminal import ConfigArgument, out
from server.core import ConfigError
from server.doctor import machine
from server.doctor.files import gib
from server.doctor.memory import Device
from server.doctor.report import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
_UNITS = {"": 1, "MIB": 2**20, "GIB": 2**30, "MB": 10**6, "GB": 10**9}


def size(text: str) -> int:
    """Bytes, of ``24GiB`` or a number."""
    match = re.fullmatch(r"([0-9.]+) *([a-zA-Z]*)", text.strip())
    try:
        if match is None:
            raise ValueError(text)
        return int(float(match[1]) * _UNITS[match[2].upper()])
    except (ValueError, KeyError):
        raise typer.BadParameter(f"{text!r} is no size; write it as 24GiB") from None


def diagnose(
    config_file: ConfigArgument,
    chats: Annotated[
        int, typer.Option(min=1, help="Plan the memory for so many chats at once.")
    ] = doctor.CHATS,
    length: Annotated[
        int, typer.Option(min=1, help="Tokens of each chat, prompt and answer.")
    ] = doctor.LENGTH,
    gpu_memory: Annotated[
        int | None,
        typer.Option(
            parser=size,
            metavar="SIZE",
            help="Plan for GPUs of this size (24GiB), not for those here.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Look at a configuration, its models' files, their fit and the memory. Loads no weights.

    Exit code 1 where something would keep the server from starting.
    """
    try:
        settings = config.load(config_file)
    except ConfigError as problem:
        report = doctor.Report((Finding("error", "", str(problem)),))
    else:
        here = machine.look()
        if gpu_memory is not None:
            wanted = {gpu for engine in settings.engines.values() for gpu in engine.gpus()}
            here = replace(
                here, gpus={gpu: machine.Gpu(gpu_memory) for gpu in wanted}, planned=True
            )
        report = doctor.examine(settings, here, chats=chats, length=length)
    if as_json:
        typer.echo(json.dumps(_as_json(report), indent=2))
    else:
        _show(report, chats)
    if not report.ok:
        raise typer.Exit(1)


def _show(report: doctor.Report, chats: int) -> None:
    findings = Table(box=None, show_header=False, pad_edge=False)
    findings.add_column(no_wrap=True)
    findings.add_column(no_wrap=True)
    findings.add_column(overflow="fold")
    for finding in report.findings:
        level = f"[{_COLOURS[finding.level]}]{finding.level}[/]"
        text = escape(finding.text) + (f".\n→ {escape(finding.advice)}." if finding.advice else "")
        findings.add_row(level, escape(finding.where), text)
    out.print(findings)
    for device in report.devices:
        about = "of unknown size" if device.total is None else gib(device.total)
        out.print(
            f"\n[bold]memory of {device.name}[/bold] ({about}), for {chats} chats of "
            f"{max(tenant.chat for tenant in device.tenants)} tokens"
        )
        out.print(_plan(device, chats))
    errors, warnings = (
        sum(finding.level == level for finding in report.findings) for level in ("error", "warning")
    )
    verdict = f"[red]{_count(errors, 'error')}[/]" if errors else "[green]ok[/]"
    out.print(f"\n{verdict}, {_count(warnings, 'warning')}")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _plan(device: Device, chats: int) -> Table:
    table = Table(
        *("engine", "weights", "to compute", "KV cache", "tokens", "chats", "asked for", ""),
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for row in device.rows():
        tenant = row.tenant
        cache, tokens, held = row.cache, row.tokens, row.chats
        table.add_row(
            escape(tenant.name),
            gib(tenant.weights) if tenant.weights else "?",
            gib(row.allowance),
            "?" if cache is None else gib(max(0, cache)),
            "?" if tokens is None else f"{tokens}",
            "?" if held is None else f"{held}",
            gib(chats * tenant.blocks(tenant.chat)) if tenant.token else "?",
            f"[dim]{tenant.note}[/dim]",
        )
    return table


def _as_json(report: doctor.Report) -> dict[str, Any]:
    """Sizes in bytes; null where something isn't known."""
    return {
        "ok": report.ok,
        "findings": [
            {
                "level": finding.level,
                "where": finding.where,
                "message": finding.text,
                "advice": finding.advice,
            }
            for finding in report.findings
        ],
        "memory": [
            {
                "device": device.name,
                "total": device.total,
                "free": device.free,
                "engines": [
                    {
                        "engine": row.tenant.name,
                        "weights": row.tenant.weights or None,
                        "to_compute": row.allowance,
                        "kv_cache": row.cache,
                        "kv_bytes_per_token": row.tenant.token or None,
                        "block_size": row.tenant.block,
                        "context": row.tenant.context,
                        "chat": row.tenant.chat,
                        "tokens": row.tokens,
                        "chats": row.chats,
                        "exact": row.tenant.exact,
                    }
                    for row in device.rows()
                ],
            }
            for device in report.devices
        ],
    }
