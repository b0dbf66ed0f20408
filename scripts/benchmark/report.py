"""Figures to files: JSON with all of them, a table, a plot.

Knows: rows and formats. Does not know: how anything was measured.
"""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt


@dataclass(frozen=True)
class Row:
    """One system on one pair, at one share of nudged tokens and one number of streams.

    ratio: tokens a second over the base model's alone, of the same repeat: median; lowest and
        highest.
    figures: medians of `measure.Run.figures`.
    """

    pair: str
    share: float
    gamma: float
    streams: int
    system: str
    ratio: float
    lowest: float
    highest: float
    figures: Mapping[str, float]


def write(
    output: str, rows: Sequence[Row], found_on: Mapping[str, Any], args: Mapping[str, Any]
) -> list[Path]:
    """The files that were written."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(ending) for ending in (".json", ".md", ".svg")]
    date = datetime.date.today().isoformat()
    everything = {
        "date": date,
        "arguments": dict(args),
        "machine": found_on,
        "rows": [asdict(row) for row in rows],
    }
    files[0].write_text(json.dumps(everything, indent=1) + "\n")
    files[1].write_text(_markdown(rows, found_on, args, date, files[2].name))
    draw(rows, files[2])
    return files


def _markdown(
    rows: Sequence[Row],
    found_on: Mapping[str, Any],
    args: Mapping[str, Any],
    date: str,
    plot: str,
) -> str:
    where = found_on["gpu"] or f"{found_on['cpu']}, {found_on['cores']} cores"
    given = " ".join(map(_flag, args, args.values()))
    lines = [
        "# Benchmark",
        "",
        f"{date}, {where}, vLLM {found_on['vllm']}, torch {found_on['torch']}, "
        f"{found_on['seconds']} s in all. The command:",
        "",
        "```sh",
        f"scripts/bench {given}",
        "```",
        "",
        "Ratio: tokens a second over those of the base model alone in the same repeat; the median "
        f"of {args['repeats']} repeats, run in turn, and (lowest to highest). Steps, prefilled and "
        "discarded tokens are per token of an answer; CPU is the server's own process, seconds for "
        "1,000 tokens; bytes, of a token, are those between it and engines elsewhere. `+ 16`: with "
        "`end_lookahead` 16. Strategies: ADRs 0001, 0012, 0015 and 0030.",
        "",
        f"![Ratios]({plot})",
    ]
    for pair, about in found_on["about"].items():
        lines += ["", f"## {pair}: {about}"]
        mine = [row for row in rows if row.pair == pair]
        for share, streams in dict.fromkeys((row.share, row.streams) for row in mine):
            group = [row for row in mine if (row.share, row.streams) == (share, streams)]
            wire = any(row.figures["wire"] for row in group)
            lines += [
                "",
                f"About {share:.0%} nudged{_by(group[0].gamma)}, {streams} at once:",
                "",
                "| system | ratio | tok/s | nudged | TTFT ms | ITL p50 / p99 ms | base steps "
                f"| aligned steps | prefilled | discarded | CPU |{' bytes |' if wire else ''}",
                f"|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|{'--:|' if wire else ''}",
            ]
            for row in group:
                f = row.figures
                lines.append(
                    f"| {row.system} | **{row.ratio:.2f}** ({row.lowest:.2f} to {row.highest:.2f}) "
                    f"| {f['tokens_per_s']:.0f} | {f['nudged_share']:.0%} | {f['ttft_ms']:.0f} "
                    f"| {f['itl_p50_ms']:.1f} / {f['itl_p99_ms']:.0f} | {f['base_steps']:.2f} "
                    f"| {f['aligned_steps']:.2f} | {f['prefilled']:.2f} | {f['discarded']:.2f} "
                    f"| {f['cpu_s_per_1k']:.2f} |"
                    + (f" {f['wire']:.0f} |" if f["wire"] else " |" if wire else "")
                )
    if lengths := found_on.get("lengths"):
        lines += [
            "",
            "## The length of an answer",
            "",
            "Strategy C, random weights, 4 at once. A token should cost the same in a long answer.",
            "",
            "| tokens of an answer | tok/s | prefilled | base steps | CPU |",
            "|--:|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {each['max_tokens']} | {each['tokens_per_s']:.0f} | {each['prefilled']:.2f} "
            f"| {each['base_steps']:.2f} | {each['cpu_s_per_1k']:.2f} |"
            for each in lengths
        ]
    if found_on.get("http"):
        lines += _http(found_on)
    return "\n".join(lines) + "\n"


def _by(gamma: float) -> str:
    """Nothing where a schedule decided."""
    return f" (γ = {gamma:.4g})" if gamma else ""


def _flag(name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    return f"{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _http(found_on: Mapping[str, Any]) -> list[str]:
    """The server's own cost."""
    lines = [
        "",
        "## The HTTP server",
        "",
        "The demo pair's aligned model, streamed answers of 64 tokens: through this server, "
        "through vLLM's own OpenAI server, and from vLLM's engine with no server at all. CPU: the "
        "server's process, without its engines; without a server, the process that asks.",
        "",
        "| at once | system | tok/s | ratio | TTFT ms | CPU s / 1,000 tokens |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    rows = found_on["http"]
    for row in rows:
        reference = next(
            each["runs"]
            for each in rows
            if each["streams"] == row["streams"] and each["system"] == rows[2]["system"]
        )
        speed, ttft, cpu = (
            statistics.median(run[name] for run in row["runs"])
            for name in ("tokens_per_s", "ttft_ms", "cpu_s_per_1k")
        )
        ratio = statistics.median(
            run["tokens_per_s"] / other["tokens_per_s"]
            for run, other in zip(row["runs"], reference, strict=True)
        )
        lines.append(
            f"| {row['streams']} | {row['system']} | {speed:.0f} | {ratio:.2f} | {ttft:.0f} "
            f"| {cpu:.2f} |"
        )
    memory = ", ".join(f"{value:.0f} MiB {name}" for name, value in found_on["server_mib"].items())
    return [*lines, "", f"Memory of this server's process, without its engines: {memory}."]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Ratios as bars: a panel for each pair and share, a group for each number of streams. The
    aligned model alone is another scale."""
    mpl.rcParams["svg.hashsalt"] = "nudge"  # the same figures give the same file
    shown = [row for row in rows if row.system not in ("base alone", "aligned alone")]
    panels = list(dict.fromkeys((row.pair, round(row.share, 1)) for row in shown))
    if not panels:
        return
    systems = list(dict.fromkeys(row.system for row in shown))
    shades = plt.get_cmap("tab20").colors
    colours = dict(zip(systems, (*shades[::2], *shades[1::2]), strict=False))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.4 * columns, 3.2 * lines + 1), squeeze=False, sharey=True
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (pair, share) in zip(axes.flat, panels, strict=False):
        mine = [row for row in shown if (row.pair, round(row.share, 1)) == (pair, share)]
        counts = list(dict.fromkeys(row.streams for row in mine))
        own = [system for system in systems if any(row.system == system for row in mine)]
        width = 0.8 / len(own)
        for number, system in enumerate(own):
            group = [row for row in mine if row.system == system]
            places = [
                counts.index(row.streams) + (number - len(own) / 2 + 0.5) * width for row in group
            ]
            ratios = [row.ratio for row in group]
            axis.bar(places, ratios, width, color=colours[system], label=system)
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(counts)), [f"{count} at once" for count in counts])
        axis.set_title(f"{pair}, about {share:.0%} nudged", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    for row in axes:
        row[0].set_ylabel("tokens a second / base alone", fontsize=9)
    handles = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
