"""The benchmark's results as text and as pictures, and the machine that they come from.

Not here: how they are measured, and what each number means (`benchmark.py`).
"""

import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_simple_ddpg.benchmark.worker import COMPILED, EAGER, SB3, SB3_ONEDNN, SBX
from sb3_simple_ddpg.speed.cores import usable_cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colour and hatching of each competitor's bars, which can be told apart in grey too, and its mark.
_LOOKS = {
    EAGER: ("#7fb3e0", "//", "o"),
    COMPILED: ("#1f5f99", "", "s"),
    SB3: ("#bdbdbd", "", "D"),
    SB3_ONEDNN: ("#e3e3e3", "xx", "v"),
    SBX: ("#e8b04a", "..", "^"),
}
COLUMNS = (
    "workload", "competitor", "steps/s", "ratio to SB3", "to SBX", "update, ms", "floor, ms", "update/floor",
    "compile, s", "memory, MiB",
)  # fmt: skip


def cells(title: str, rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """
    :param title: of the workload
    :param rows: what `summarize` gave
    :return: the lines of the table, as text under COLUMNS
    """
    lines = []
    for name, row in rows.items():
        if row["missing"] or row["rate"] is None:
            lines.append([title, name, f"missing: {row['missing']}", *["-"] * (len(COLUMNS) - 3)])
            continue
        cold, cached = row["compile_s"], row["cached_compile_s"]
        compile_text = "-" if name != COMPILED or cold is None else f"{cold:.1f}"
        lines.append([
            title, name, _text(row["rate"], 0), _text(row["ratio"], 2), _median(row["ratio_to_sbx"]),
            _text(row["update_ms"], 2), _median(row["floor_ms"]), _text(row["update_over_floor"], 2),
            compile_text if cached is None else f"{compile_text}, cached {cached:.1f}",
            "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        ])  # fmt: skip
    return lines


def _text(spread: list[float] | None, digits: int) -> str:
    if spread is None:
        return "-"
    middle, low, high = (f"{value:.{digits}f}" for value in spread)
    return f"{middle} ({low}-{high})"


def _median(spread: list[float] | None) -> str:
    return "-" if spread is None else f"{spread[0]:.3g}"


def markdown(columns: tuple[str, ...], lines: list[list[str]], notes: list[str]) -> str:
    """
    :param columns: heads of the table
    :param lines: its cells
    :param notes: sentences under it
    :return: the table as GitHub shows it
    """
    table = [list(columns), ["---"] * len(columns), *lines]
    rows = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in table)
    return rows + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def machine() -> dict[str, Any]:
    """
    :return: processor, number of cores, system, and the command that was typed
    """
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    words = [word if os.sep not in word else f".../{Path(word).name}" for word in sys.argv[1:]]  # no one's folders
    command = " ".join([Path(sys.argv[0]).name, *words])
    return {"processor": processor, "cores": usable_cores(), "system": platform.platform(), "command": command}


def draw_table(results: dict[str, dict[str, dict[str, Any]]], title: str | None = None) -> "Figure":
    """
    Two panels: speed as bars, SB3's DDPG being 1, and the update's time in multiples of the floor.

    :param results: by title of the workload, what `summarize` gave
    :param title: of the picture
    :return: the figure
    """
    from matplotlib.figure import Figure

    names = [name for name in _LOOKS if any(name in rows and rows[name]["ratio"] for rows in results.values())]
    figure = Figure(figsize=(max(7, 1.9 * len(results)), 8), layout="constrained")  # without pyplot: no display
    speed, cost = figure.subplots(2, 1, sharex=True)
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        colour, hatch, mark = _LOOKS[name]
        for panel, key, digits in ((speed, "ratio", 2), (cost, "update_over_floor", 1)):
            found = {at: rows[name][key] for at, rows in enumerate(results.values()) if rows.get(name, {}).get(key)}
            x = [place + (number - (len(names) - 1) / 2) * width for place in found]
            middles, lows, highs = np.array(list(found.values())).reshape(-1, 3).T
            whiskers = [middles - lows, highs - middles]
            if panel is speed:
                speed.bar(x, middles, width, color=colour, hatch=hatch, edgecolor="0.2", label=name)
                speed.errorbar(x, middles, whiskers, fmt="none", ecolor="0.1", capsize=3, elinewidth=1)
            else:
                cost.errorbar(x, middles, whiskers, fmt=mark, color=colour, mec="0.2", ecolor="0.1")
            for at, middle, high in zip(x, middles, highs, strict=True):
                text = f"{middle:.{digits}f}"
                panel.annotate(text, (at, high), (0, 3), textcoords="offset points", ha="center", size=8)
    speed.axhline(1, color="0.1", linestyle="--", linewidth=1)
    cost.axhline(1, color="0.1", linestyle="--", linewidth=1)
    cost.annotate("floor", (0.005, 1), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", size=8)
    speed.set(ylabel="speed: steps per second,\nSB3 DDPG = 1", title=title)
    cost.set(ylabel="update, in multiples of the floor\n(collecting: of the environment)", yscale="log")
    cost.margins(y=0.15)
    cost.set_ylim(0.8)
    cost.yaxis.set_major_formatter("{x:g}")
    cost.set_xlim(-0.6, len(results) - 0.4)
    titles = [re.sub(r", (?!\d+\])", ",\n", name) for name in results]  # not inside [64, 64]
    cost.set_xticks(range(len(results)), titles, size=8)
    columns = max(1, min(len(names), max(3, len(results))))
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    return figure
