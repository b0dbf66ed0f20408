"""``scripts/bench``: every system on the same questions, in turn, several times over.

Knows: which systems are compared, and in which order. Does not know: how one is measured or shown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.benchmark import pairs, report
from scripts.benchmark.measure import (
    Run,
    System,
    gamma_for,
    machine,
    memory_mib,
    prompts,
    run,
    with_lookahead,
)
from server.registry import Registry

BASE = System("base alone", role="base")
ALIGNED = System("aligned alone", role="aligned")
AUTHORS = System("A: authors' alternation", policy="reference")
REQUESTS = System("B: a request a turn")
RESUMABLE = System("C: one resumable request", resumable=True)
SYSTEMS = [
    BASE,
    ALIGNED,
    AUTHORS,
    REQUESTS,
    with_lookahead(REQUESTS, 16),
    RESUMABLE,
    with_lookahead(RESUMABLE, 16),
]

out = Console(highlight=False)


async def compare(
    registry: Registry, pair: pairs.Pair, args: argparse.Namespace, shares: list[float]
) -> list[report.Row]:
    rows: list[report.Row] = []
    for share in shares:
        gamma, got = await gamma_for(registry, pair, share)
        out.print(f"{pair.name}: γ = {gamma:.4g} nudges {got:.0%} of the tokens")
        total = len(args.streams) * args.repeats * len(SYSTEMS)
        columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=out) as bar:
            task = bar.add_task("", total=total)
            for streams in args.streams:
                runs: dict[System, list[Run]] = {system: [] for system in SYSTEMS}
                asked = prompts(max(args.answers, 2 * streams))
                # In turn, so that whatever slows the machine for a while slows all of them.
                for _ in range(args.repeats):
                    for system in SYSTEMS:
                        bar.update(task, description=f"{streams} at once, {system.name}")
                        done = await run(registry, pair, system, gamma, asked, streams)
                        runs[system].append(done)
                        bar.advance(task)
                rows += _rows(pair, share, gamma, streams, runs)
    return rows


def _rows(
    pair: pairs.Pair, share: float, gamma: float, streams: int, runs: dict[System, list[Run]]
) -> list[report.Row]:
    rows = []
    for system, mine in runs.items():
        figures = [each.figures() for each in mine]
        median = {name: statistics.median(each[name] for each in figures) for name in figures[0]}
        ratios = [
            own.tokens_per_s / base.tokens_per_s for own, base in zip(mine, runs[BASE], strict=True)
        ]
        rows.append(
            report.Row(
                pair.name,
                share,
                gamma,
                streams,
                system.name,
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                median,
            )
        )
    return rows


async def lengths(registry: Registry, pair: pairs.Pair, gamma: float) -> list[dict[str, float]]:
    """Whether a token costs more, the longer the answer is."""
    found = []
    for tokens in (64, 256, 1024):
        done = await run(registry, pair, RESUMABLE, gamma, prompts(4), 4, max_tokens=tokens)
        found.append({"max_tokens": tokens, **done.figures()})
    return found


async def bench(args: argparse.Namespace) -> None:
    began = time.monotonic()
    rows: list[report.Row] = []
    about: dict[str, str] = {}
    extra: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "random": lambda: pairs.random(Path(folder), args.width, args.layers, args.ratio),
            "demo": pairs.demo,
        }
        for name in args.pairs:
            pair = made[name]()
            about[pair.name] = pair.about
            out.print(f"[bold]{pair.name}[/bold]: {pair.about}")
            registry = Registry(pair.settings)
            await registry.start(lambda engine, state, _: out.print(f"  {state} {engine}"))
            try:
                idle = memory_mib()
                mine = await compare(registry, pair, args, args.shares)
                rows += mine
                if pair.fixed:
                    extra["lengths"] = await lengths(registry, pair, mine[0].gamma)
                extra[f"rss_mib_{pair.name}"] = {"idle": idle, "after": memory_mib()}
            finally:
                await registry.aclose()
    written = report.write(
        args.output,
        rows,
        machine() | {"seconds": round(time.monotonic() - began), "about": about} | extra,
        vars(args),
    )
    out.print(f"wrote {', '.join(str(each) for each in written)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--pairs", nargs="+", default=["random", "demo"], choices=["random", "demo"])
    add("--shares", nargs="+", type=float, default=[0.1, 0.3], help="of nudged tokens")
    add("--streams", nargs="+", type=int, default=[1, 4, 16], help="answers at once")
    add("--answers", type=int, default=8, help="in a run, at least two for each stream")
    add("--repeats", type=int, default=3, help="of every run; medians are shown")
    add("--width", type=int, default=384, help="hidden size of the random base model")
    add("--layers", type=int, default=6, help="layers of the random base model")
    add("--ratio", type=int, default=8, help="weights of the random base model over the aligned's")
    add("--output", default="docs/benchmarks/cpu", help="path of the files, without an ending")
    uvloop.run(bench(parser.parse_args()))


if __name__ == "__main__":
    main()
