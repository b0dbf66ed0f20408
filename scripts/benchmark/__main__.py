"""``scripts/bench``: every system on the same questions, in turn, several times over.

Knows: which systems are compared, and in which order. Does not know: how one is measured or shown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.benchmark import fused, http, pairs, replay, report, scheduled
from scripts.benchmark.elsewhere import Elsewhere, Way, running
from scripts.benchmark.measure import (
    BASE,
    Run,
    System,
    compared,
    gamma_for,
    machine,
    prompts,
    run,
    with_lookahead,
)
from server.serving.registry import Registry

ALIGNED = System("aligned alone", role="aligned")
AUTHORS = System("A: authors' alternation", policy="reference")
REQUESTS = System("B: a request a turn")
RESUMABLE = System("C: one resumable request", resumable=True)
EAGER = System("C, eager", resumable=True, eager=True)
VERIFIED = System("D: checked drafts", resumable=True, verify=8)
AHEAD = [with_lookahead(each, 16) for each in (REQUESTS, RESUMABLE, EAGER, VERIFIED)]
SYSTEMS = {
    # Random weights never agree, so that a draft is of no use to them.
    "random": [BASE, ALIGNED, AUTHORS, REQUESTS, RESUMABLE, EAGER, *AHEAD[:3]],
    "deepened": [BASE, ALIGNED, AUTHORS, RESUMABLE, VERIFIED, AHEAD[1], AHEAD[3]],
    "demo": [BASE, ALIGNED, AUTHORS, REQUESTS, RESUMABLE, EAGER, VERIFIED, *AHEAD],
}
WAYS = [Way(stops, rtt_ms) for stops in ("plugin", "stream") for rtt_ms in (0, 1, 10)]
ELSEWHERE = [BASE, REQUESTS, *(System(str(way), way=way) for way in WAYS)]
DRAFTED = (1, 2, 4, 8)
REPLAYED = [BASE, AUTHORS, REQUESTS, RESUMABLE]

out = Console(highlight=False)


def chosen(systems: list[System], begin: list[str]) -> list[System]:
    """Those whose names begin so, or all; the base model alone, which they are measured by, too."""
    return [
        each for each in systems if each is BASE or not begin or each.name.startswith(tuple(begin))
    ]


async def compare(
    registry: Registry,
    pair: pairs.Pair,
    args: argparse.Namespace,
    shares: list[float],
    systems: list[System],
    there: Mapping[Way, Elsewhere] = MappingProxyType({}),
) -> list[report.Row]:
    """there: the pair's engines elsewhere, for those systems that have them there."""
    rows: list[report.Row] = []
    for share in shares:
        gamma, got, length = await gamma_for(registry, pair, share)
        out.print(
            f"{pair.name}: γ = {gamma:.4g} nudges {got:.0%} of the tokens, {length} an answer"
        )
        total = len(args.streams) * args.repeats * len(systems)
        columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=out) as bar:
            task = bar.add_task("", total=total)
            for streams in args.streams:
                runs: dict[System, list[Run]] = {system: [] for system in systems}
                asked = prompts(max(args.answers, streams))
                # In turn, so that whatever slows the machine for a while slows all of them.
                for _ in range(args.repeats):
                    for system in systems:
                        bar.update(task, description=f"{streams} at once, {system.name}")
                        # One model alone knows no end: as long as the nudged answers are.
                        most = length if system.role else pair.max_tokens
                        its = there.get(system.way) if system.way else None
                        before = await its.wire() if its else 0
                        where = its.registry if its else registry
                        done = await run(where, pair, system, gamma, asked, streams, most)
                        done.wire = await its.wire() - before if its else 0
                        runs[system].append(done)
                        bar.advance(task)
                rows += compared(pair.name, share, gamma, streams, runs)
    return rows


async def replayed(
    registry: Registry, pair: pairs.Pair, args: argparse.Namespace
) -> list[report.Row]:
    """The authors' published schedules."""
    rows = []
    for streams in args.streams:
        plans = replay.schedules(max(args.answers, streams), 96)
        asked = list(zip(prompts(len(plans)), plans, strict=True))
        runs: dict[System, list[Run]] = {system: [] for system in REPLAYED}
        for _ in range(args.repeats):
            for system in REPLAYED:
                out.print(f"  replayed, {streams} at once, {system.name}")
                runs[system].append(await replay.replay(registry, pair, system, asked, streams))
        words = [sum(each) for each in zip(*(span for plan in plans for span in plan), strict=True)]
        rows += compared(f"{pair.name}, replayed", words[0] / sum(words), 0.0, streams, runs)
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
            "random": lambda: pairs.random(
                Path(folder),
                args.width,
                args.layers,
                args.ratio,
                dtype=args.dtype,
                kv_cache_memory_bytes=args.cache_mib * 2**20,
            ),
            "deepened": lambda: pairs.deepened(Path(folder), args.depth),
            "demo": pairs.demo,
        }
        for name in args.pairs:
            pair = made[name]()
            about[pair.name] = pair.about
            out.print(f"[bold]{pair.name}[/bold]: {pair.about}")
            registry = Registry(pair.settings)
            await registry.start(lambda engine, state, _: out.print(f"  {state} {engine}"))
            try:
                shares = args.shares if name == "random" else args.shares[:1]
                if args.here:
                    systems = chosen(SYSTEMS[name], args.systems)
                    mine = await compare(registry, pair, args, shares, systems)
                    rows += mine
                    if name == "random" and not args.systems:
                        rows += await replayed(registry, pair, args)
                        about[f"{pair.name}, replayed"] = "schedules of the authors' public answers"
                        extra["lengths"] = await lengths(registry, pair, mine[0].gamma)
                if name == "random" and args.elsewhere:
                    async with running(pair, Path(folder), WAYS) as there:
                        systems = chosen(ELSEWHERE, args.systems)
                        found = await compare(registry, pair, args, args.shares, systems, there)
                    rows += [replace(row, pair=f"{pair.name}, elsewhere") for row in found]
                    about[f"{pair.name}, elsewhere"] = "the same models on two `vllm serve`"
            finally:
                await registry.aclose()
        if args.http:
            pair = pairs.demo()
            out.print("[bold]HTTP[/bold]: the demo pair's aligned model through three ways")
            registry = Registry(pair.settings)
            await registry.start()
            try:
                extra |= await http.compare(registry, args.streams, args.repeats)
            finally:
                await registry.aclose()
    written = report.write(
        args.output,
        rows,
        machine() | {"seconds": round(time.monotonic() - began), "about": about} | extra,
        vars(args),
    )
    out.print(f"wrote {', '.join(str(each) for each in written)}")


async def fuse(args: argparse.Namespace) -> None:
    """The table of ``--fused``, printed."""
    lines = [fused.HEADER, "|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for pair in (pairs.demo(), pairs.deepened(Path(folder), args.depth)):
            registry = Registry(pair.settings)
            await registry.start()
            try:
                lines += await fused.rows(registry, pair, 0.4, DRAFTED, args.ratio)
            finally:
                await registry.aclose()
    lines += scheduled.rows(DRAFTED, args.ratio)
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    add = parser.add_argument
    names = ["random", "deepened", "demo"]
    add("--pairs", nargs="*", default=names[:2], choices=names)
    add("--systems", nargs="+", default=[], help="only those whose names begin so, as C: does")
    add("--shares", nargs="+", type=float, default=[0.1, 0.3], help="of nudged tokens")
    add("--streams", nargs="+", type=int, default=[1, 16], help="answers at once")
    add("--answers", type=int, default=4, help="in a run, at least one for each stream")
    add("--repeats", type=int, default=2, help="of every run; medians are shown")
    add("--width", type=int, default=768, help="hidden size of the random base model")
    add("--layers", type=int, default=8, help="layers of the random base model")
    add("--ratio", type=int, default=8, help="weights of the random base model over the aligned's")
    add("--dtype", default="float32", help="of the random pair")
    add("--cache-mib", type=int, default=512, help="KV cache of either of the random pair")
    add("--depth", type=int, default=64, help="layers of the deepened base model")
    yes = argparse.BooleanOptionalAction
    add("--here", action=yes, default=True, help="engines in this process")
    add("--elsewhere", action=yes, default=True, help="the random pair's on two vllm serve")
    add("--http", action=yes, default=True, help="the server's own cost")
    add("--fused", action="store_true", help="only: what both models in one engine would cost")
    add("--output", default="docs/benchmarks/cpu", help="path of the files, without an ending")
    args = parser.parse_args()
    uvloop.run(fuse(args) if args.fused else bench(args))


if __name__ == "__main__":
    main()
