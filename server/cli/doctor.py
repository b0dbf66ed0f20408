"""``nudge doctor``: what would go wrong with a configuration, and how its memory is divided.

Knows: how a report is shown. Does not know: what is checked.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.markup import escape
from rich.table import Table

from server import config, doctor
from server.cli.terminal import ConfigArgument, out
from server.core import ConfigError
from server.doctor.memory import Device
from server.engines import machine
from server.engines.report import Finding, gib, sentence

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def size(text: str) -> int:
    """Bytes, of ``24GiB`` or a number."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
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
            gpus = dict.fromkeys(wanted, machine.Memory(gpu_memory))
            here = replace(here, gpus=gpus, planned=True)
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
        text = finding.text
        if finding.advice:
            text = f"{sentence(text)}\n→ {sentence(finding.advice)}"
        findings.add_row(level, escape(finding.where), escape(text))
    out.print(findings)
    for device in report.devices:
        about = "of unknown size" if device.memory is None else gib(device.memory.total)
        longest = max(tenant.chat for tenant in device.tenants)
        plan = f"({about}), about, for {chats} chats of {longest} tokens"
        out.print(f"\n[bold]memory of {device.name}[/bold] {plan}")
        out.print(_plan(device, chats))
    errors, warnings = (
        sum(finding.level == level for finding in report.findings) for level in ("error", "warning")
    )
    verdict = f"[red]{_count(errors, 'error')}[/]" if errors else "[green]ok[/]"
    out.print(f"\n{verdict}, {_count(warnings, 'warning')}")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _plan(device: Device, chats: int) -> Table:
    head = ("engine", "weights", "to compute", "KV cache", "tokens", "chats", "asked for")
    table = Table(*head, box=None, header_style="bold", pad_edge=False)
    for each in device.tenants:
        table.add_row(
            escape(each.name),
            "?" if each.weights is None else gib(each.weights),
            gib(each.allowance),
            "?" if each.cache is None else gib(each.cache),
            "?" if each.tokens is None else f"{each.tokens}",
            "?" if each.chats is None else f"{each.chats}",
            gib(chats * each.chat * each.token) if each.token else "?",
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
                "total": device.memory and device.memory.total,
                "free": device.memory and device.memory.free,
                "engines": [
                    {
                        "engine": each.name,
                        "weights": each.weights,
                        "to_compute": each.allowance,
                        "kv_cache": each.cache,
                        "kv_bytes_per_token": each.token,
                        "context": each.context,
                        "chat": each.chat,
                        "tokens": each.tokens,
                        "chats": each.chats,
                        "exact": each.exact,
                    }
                    for each in device.tenants
                ],
            }
            for device in report.devices
        ],
    }
