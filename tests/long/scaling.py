"""How the cost of an update grows with batch size, buffer size and width, and that of a step with the environments.

Not here: who is measured, and how (`sb3_simple_ddpg/benchmark`).

    python -m tests.long.scaling --repeats 5 --out runs/scaling
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from sb3_simple_ddpg.benchmark import benchmark, report
from sb3_simple_ddpg.benchmark.benchmark import Settings, Workload
from sb3_simple_ddpg.benchmark.worker import SB3, SBX

_BASE = Workload("scaling", "", net_arch=(256, 256))
#: What grows in the scaling mode, how far, and the workload at each size.
AXES: dict[str, tuple[tuple[int, ...], Callable[[int], Workload]]] = {
    "batch size": ((32, 64, 128, 256, 512, 1024, 2048, 4096), lambda size: replace(_BASE, batch_size=size)),
    "buffer size": (
        (10_000, 30_000, 100_000, 300_000, 1_000_000),
        lambda size: replace(_BASE, buffer_size=size, filled=True),
    ),
    "environments": ((1, 4, 16, 64), lambda size: replace(_BASE, n_envs=size, gradient_steps=0)),
    "width": ((64, 128, 256, 512, 1024), lambda size: replace(_BASE, net_arch=(size, size))),
}


def run(settings: Settings, folder: Path, console: Console) -> None:
    """
    Measure the cost of an update (of a step, where environments grow) as the work grows; write scaling.json, .md, .png.

    :param settings: of the run
    :param folder: to write, which exists
    :param console: to print on
    """
    points: list[dict[str, Any]] = []
    for axis, (sizes, make_workload) in AXES.items():
        for size in sizes[:2] if settings.quick else sizes:
            console.print(f"Measuring {axis} {size} ...")
            workload = make_workload(size)
            competitors = tuple(name for name in workload.competitors if name != SBX)
            rows = benchmark.summarize(benchmark.measure(workload, settings, competitors))
            points.append({"axis": axis, "size": size, "competitors": rows})
            benchmark._write_json(folder / "scaling.json", settings, {"points": points})
    lines = [line for each in points for line in report.cells(f"{each['axis']} {each['size']}", each["competitors"])]
    versions = {name: row["versions"] for name, row in points[0]["competitors"].items() if row["versions"]}
    benchmark._tell("scaling", report.COLUMNS, lines, benchmark._notes(settings, versions, {}), folder, console)
    figure = draw_scaling(points, benchmark.QUICK if settings.quick else None)
    figure.savefig(folder / "scaling.png", dpi=150)


def draw_scaling(points: list[dict[str, Any]], title: str | None = None) -> Figure:
    """
    A panel for each thing that grows: milliseconds against size, both logarithmic, with the floor.

    :param points: what `run_scaling` writes
    :param title: of the picture
    :return: the figure
    """
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    axes = list(dict.fromkeys(point["axis"] for point in points))
    for panel, axis in zip(panels.flat, axes, strict=False):
        of_axis = [point for point in points if point["axis"] == axis]
        for name, (colour, _, mark) in report._LOOKS.items():
            _line(panel, of_axis, name, "cost_ms", name, marker=mark, color=colour, markeredgecolor="0.2")
        environments = axis == "environments"
        floor = "floor: the environments alone" if environments else "floor: ten products"
        _line(panel, of_axis, SB3, "floor_ms", floor, linestyle="--", color="0.1")
        what = "ms for a step of one environment" if environments else "ms for an update"
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=what)
        panel.minorticks_off()
        panel.set_xticks(*[[point["size"] for point in of_axis]] * 2)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(title or "")
    return figure


def _line(
    panel: Axes,
    points: list[dict[str, Any]],
    competitor: str,
    key: str,
    label: str,
    **style: Any,
) -> None:
    """One line with its range; nothing where a competitor is missing."""
    drawn = [
        (point["size"], *point["competitors"][competitor][key])
        for point in points
        if competitor in point["competitors"] and point["competitors"][competitor][key]
    ]
    if drawn:
        sizes, middles, lows, highs = zip(*drawn, strict=True)
        panel.plot(sizes, middles, label=label, markersize=5, **style)
        panel.fill_between(sizes, lows, highs, color=style["color"], alpha=0.15)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two sizes of each, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(chosen.repeats, target_s=0.1 if chosen.quick else 0.5, compile_times=False, quick=chosen.quick)
    run(settings, chosen.out, Console(width=200))
