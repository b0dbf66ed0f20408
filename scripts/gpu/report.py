"""What the parts found, to a page and a plot.

A page of the docs where all of it was found on a GPU. What a CPU says of itself stays beside the
results: its times say nothing of a GPU.

Knows: the parts' files, tables. Does not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.benchmark.report import Row, draw

Result = dict[str, Any]
"""Of a part, as ``scripts.gpu.__main__.do`` leaves it."""

MPS = "-mps"
"""How those parts' names end that are another with MPS."""

ALONE = "base alone"
OUT_OF_TIME = 124
MIB = 2**20


def write(results: Sequence[Result], root: Path) -> list[Path]:
    """The files that were written; none without results."""
    if not results:
        return []
    on_gpu = all(each["machine"]["gpu"] for each in results)
    page = root / ("docs/benchmarks/gpu.md" if on_gpu else "measurements/gpu/report.md")
    plot = page.with_suffix(".svg")
    page.parent.mkdir(parents=True, exist_ok=True)
    plot.unlink(missing_ok=True)
    draw(rows(results), plot)
    drawn = plot.exists()
    page.write_text(markdown(results, plot.name if drawn else None), "utf-8")
    return [page, plot] if drawn else [page]


def markdown(results: Sequence[Result], plot: str | None) -> str:
    lines = ["# What was seen on a GPU", ""]
    if not all(each["machine"]["gpu"] for each in results):
        lines[0] = "# What was seen on a CPU"
        lines += [
            "**Not on a GPU.** These parts were run to see that they work; their times say nothing "
            "of a GPU.",
            "",
        ]
    lines += [*_where(results), "", *_outcomes(results)]
    if plot:
        lines += ["", f"![Tokens a second over those of the base model alone]({plot})"]
    for section in SECTIONS:
        mine = [each for each in results if section.shows(each)]
        if mine:
            lines += ["", f"## {section.title}", "", section.told]
        for each in mine:
            lines += ["", f"`{each['part']}`:", "", *section.shown(each["found"])]
            if about := each["found"].get("engines"):
                lines += ["", *(f"- {name}: {how}" for name, how in about.items())]
    return "\n".join(lines) + "\n"


def rows(results: Iterable[Result]) -> list[Row]:
    """All that was compared with a base model alone."""
    found = []
    for each in results:
        if each["code"] == 0:
            mine = [Row(**row) for row in (each["found"] or {}).get("rows", ())]
            mps = ", MPS" if each["part"].endswith(MPS) else ""
            found += [replace(row, pair=f"{row.pair}{mps}") for row in mine]
    return found


# -- the head --------------------------------------------------------------------------------------


def _where(results: Sequence[Result]) -> list[str]:
    """What it was found on and by which commands; where parts differ, which."""
    told: dict[str, list[str]] = {}
    for each in results:
        told.setdefault(_machine(each), []).append(each["part"])
    if len(told) == 1:
        lines = [f"{next(iter(told))}."]
    else:
        lines = [f"- {where}: {', '.join(parts)}." for where, parts in told.items()]
    commands: dict[str, list[str]] = {}
    for each in results:
        width, layers = each["size"]
        steps = f"NUDGE_GPU_STEPS={each['steps']} " if each["steps"] else ""
        command = f"{steps}scripts/gpu-check --width {width} --layers {layers}"
        commands.setdefault(command, []).append(each["part"])
    shown = [
        command if len(commands) == 1 else f"{command} --parts {' '.join(parts)}"
        for command, parts in commands.items()
    ]
    return [*lines, "", "```sh", *shown, "```"]


def _machine(each: Result) -> str:
    on = each["machine"]
    where = f"{on['gpu']} × {on['gpus']}" if on["gpu"] else f"{on['cpu']}, {on['cores']} cores"
    cuda = f" (CUDA {on['cuda']})" if on["cuda"] else ""
    return f"{each['date']}, {where}, vLLM {on['vllm']}, torch {on['torch']}{cuda}"


def _outcomes(results: Sequence[Result]) -> list[str]:
    found = []
    for each in results:
        said = [line.strip() for line in each["said"].splitlines() if line.strip()]
        last = said[-1].strip("= ").replace("|", "/")[:160] if said else ""
        if each["code"] == OUT_OF_TIME:
            outcome = "**out of time**"
        elif each["code"]:
            outcome = f"**failed** ({each['code']}): {last}"
        else:
            outcome = "done" if each["found"] else last
        found.append((each["part"], each["what"], outcome, each["seconds"]))
    return table("part | what | outcome | s:", found)


# -- the parts -------------------------------------------------------------------------------------


def table(head: str, lines: Iterable[Sequence[Any]]) -> list[str]:
    """``head``: titles, with a colon behind those of figures."""
    titles = [title.strip() for title in head.split("|")]
    rules = ["--:" if title.endswith(":") else "---" for title in titles]
    made = [[title.rstrip(":") for title in titles], *lines]
    shown = [f"| {' | '.join(map(str, cells))} |" for cells in made]
    return [shown[0], f"|{'|'.join(rules)}|", *shown[1:]]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _steps(found: dict[str, Any]) -> list[str]:
    return table(
        "scheduling | rows: | off: | on: | on / off:",
        [
            (
                each["scheduling"],
                each["rows"],
                _ms(each["off"]),
                _ms(each["on"]),
                f"**{each['on'] / each['off']:.2f}**",
            )
            for each in found["ms"]
        ],
    )


def _handover(found: dict[str, Any]) -> list[str]:
    lines = []
    for streams, each in found["streams"].items():
        steps = each["base_step_ms"] + each["aligned_step_ms"]
        for to in ("base", "aligned"):
            its = each[f"to_{to}"]
            last, gap = its.get("last_ms"), its.get("gap_ms")
            beyond = None if last is None else last - steps
            spread = "" if last is None else f" ({_ms(its['last_p90_ms'])})"
            lines.append(
                (
                    streams,
                    to,
                    its["handovers"],
                    f"{_ms(last)}{spread}",
                    _ms(steps),
                    "" if beyond is None else f"**{_ms(beyond)}**",
                    _ms(its.get("end_ms")),
                    _ms(each[f"{to}_step_ms"]),
                    _ms(gap),
                )
            )
    head = "at once: | to | hand-overs: | last to first (p90): | two steps: | beyond: "
    return table(f"{head}| end to first: | its step alone: | here:", lines)


def _guide(found: dict[str, Any]) -> list[str]:
    waits = {(share, streams): share_of for share, streams, share_of in found["waits"]}
    groups: dict[tuple[float, int], dict[str, Row]] = {}
    for row in (Row(**each) for each in found["rows"]):
        groups.setdefault((row.share, row.streams), {})[row.system] = row
    systems = [name for name in next(iter(groups.values())) if name != ALONE]
    lines = [
        (
            f"{share:.0%}",
            streams,
            f"{waits[share, streams]:.0%}",
            f"{its[ALONE].figures['tokens_per_s']:.0f}",
            *(_ratio(its[name]) for name in systems),
        )
        for (share, streams), its in groups.items()
    ]
    head = "nudged: | at once: | steps that wait: | base alone, tok/s: | "
    took = ", ".join(f"{_ms(ms)} ms with {n}" for n, ms in found["aligned_step_ms"].items())
    return [
        *table(head + " | ".join(f"{name}:" for name in systems), lines),
        "",
        f"A step of the aligned model: {took}.",
    ]


def _memory(found: dict[str, Any]) -> list[str]:
    lines = []
    for device, each in found.items():
        planned = {name: size / MIB for name, size in each["planned"].items()}
        whose = ", ".join(f"{name} {size:.0f}" for name, size in planned.items())
        taken = "" if each["taken"] is None else f"{each['taken'] / MIB:.0f}"
        lines.append((device, taken, f"{sum(planned.values()):.0f}", whose))
    return table("device | taken, MiB: | planned: | of which", lines)


def _bench(found: dict[str, Any]) -> list[str]:
    return table(
        "pair | about: | at once: | system | ratio: | tok/s: | nudged:",
        [
            (
                row.pair,
                f"{row.share:.0%}",
                row.streams,
                row.system,
                _ratio(row),
                f"{row.figures['tokens_per_s']:.0f}",
                f"{row.figures['nudged_share']:.0%}",
            )
            for row in (Row(**each) for each in found["rows"])
        ],
    )


def _one_engine(found: dict[str, Any]) -> list[str]:
    same, of = found["same"]
    return [
        f"{found['pair']}; γ {found['gamma']}, {found['drafted']} tokens a draft. One text by "
        f"either way in {same} of {of} answers, one at a time.",
        "",
        *table(
            "at once: | system | ratio: | tok/s: | base steps a token: | nudged:",
            [
                (
                    row.streams,
                    row.system,
                    _ratio(row),
                    f"{row.figures['tokens_per_s']:.0f}",
                    f"{row.figures['base_steps']:.2f}",
                    f"{row.figures['nudged_share']:.0%}",
                )
                for row in (Row(**each) for each in found["rows"])
            ],
        ),
    ]


def _ratio(row: Row) -> str:
    spread = f" ({row.lowest:.2f} to {row.highest:.2f})" if row.lowest != row.highest else ""
    return f"**{row.ratio:.2f}**{spread}"


def _waits(found: dict[str, Any]) -> list[str]:
    return ["```", *found["lines"], "```"] if found.get("lines") else ["Nothing was named."]


@dataclass(frozen=True)
class Section:
    """parts: whose findings it shows; and theirs with MPS."""

    title: str
    parts: tuple[str, ...]
    shown: Callable[[dict[str, Any]], list[str]]
    told: str

    def shows(self, each: Result) -> bool:
        mine = each["part"].removesuffix(MPS) in self.parts
        return bool(mine and each["code"] == 0 and each["found"])


SECTIONS = (
    Section(
        "Memory",
        ("memory",),
        _memory,
        "What the demo pair's engines took, beside the doctor's plan.",
    ),
    Section(
        "What waits for the GPU",
        ("waits",),
        _waits,
        "Lines of this project's processors that vLLM warned of.",
    ),
    Section(
        "A step",
        ("steps",),
        _steps,
        "Milliseconds a step of the random base model, with one alternative reported: off, when "
        "the logits processor has nothing to do; on, when it looks at p1.",
    ),
    Section(
        "Hand-over",
        ("handover",),
        _handover,
        "Milliseconds, medians. From one model's last token of a turn to the other's first, beside "
        "a step of either, in which the one stops and the other begins, with as many rows and "
        "nobody else at work; beyond: what is above these two. End: from when the stop is known. "
        "Here: from a token to the next while both models write.",
    ),
    Section(
        "A guide in the step",
        ("guide",),
        _guide,
        "Tokens a second over those of the base model alone: of one engine that waits for a step "
        "of the aligned model whenever an answer of its batch is nudged, and of two engines whose "
        "sessions hand over. The guide isn't there, it is only waited for, so its figure is the "
        "most that such a guide can reach.",
    ),
    Section(
        "Both models in one engine",
        ("one-engine",),
        _one_engine,
        "Tokens a second over those of the base model alone, of the trained demo pair, whose base "
        "model has so many further weights that change nothing; greedy.",
    ),
    Section(
        "Nudged answers",
        ("bench",),
        _bench,
        "Tokens a second over those of the base model alone. Systems: as in [the CPU's](cpu.md).",
    ),
)
