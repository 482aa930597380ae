"""The searches that docs/tune.md shows. `make tuned` runs them and writes what they found, an hour on two cores.

Not here: a search of its own. Each is one `simple-ddpg tune`, which goes on where it was stopped.
"""

import argparse
import shutil
from pathlib import Path
from typing import Final

from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.experiment import report
from sb3_simple_ddpg.tuning import verdict

HERE: Final = Path(__file__).parent
PAGE, MARK = HERE.parent / "tune.md", "<!-- what follows is written by make tuned -->"

#: Of each search: its folder, what stands above it, and its options.
SEARCHES: Final = {
    "scaled-pendulum": (
        "Pendulum with observations times 1,000, which the defaults do not solve",
        ("--env", "sb3_simple_ddpg.scaled_pendulum:SimpleDDPG/PendulumScaled-v1", "--threshold", "-200"),
    ),
    "pendulum": (
        "Pendulum-v1, for which 3,000 timesteps are few: the defaults are still learning",
        ("--env", "Pendulum-v1"),
    ),
}
BUDGET: Final = ("--trials", "30", "--seeds", "3", "--timesteps", "3000", "--confirm", "10")

#: What stays of a search, and of its confirmation.
KEPT: Final = (verdict.PAGE, verdict.PRESET, verdict.TRIALS, *(f"{name}.png" for name in verdict.PICTURES))
CONFIRMED: Final = ("summary.md", "summary.json", "evaluations.csv", *(f"{name}.png" for name in report.PICTURES))


def run(name: str, work: Path) -> None:
    """
    :param name: of a search
    :param work: folder of unfinished searches
    """
    folder = work / name
    begun = (folder / "study.db").exists()
    options = ("--resume",) if begun else (*SEARCHES[name][1], *BUDGET)
    if cli.main(["tune", *options, "--out", str(folder), "--no-progress"]):
        raise SystemExit(f"{name} failed.")
    for file in (*KEPT, *(f"confirmation/{file}" for file in CONFIRMED)):
        (HERE / name / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / file, HERE / name / file)


def found() -> str:
    """
    :return: what the searches that are there found, in their own words
    """
    parts = []
    for name, (title, _) in SEARCHES.items():
        if (HERE / name / verdict.PAGE).exists():
            page = (HERE / name / verdict.PAGE).read_text("utf-8")
            result = page.partition("## Result\n")[2].partition("\n## ")[0].strip()
            trials = page.partition("## The search\n")[2].partition("\n- ")[0].strip()
            command = page.partition("```\n")[2].partition("\n```")[0]
            parts += [
                f"### {title}",
                f"```\n{command}\n```",
                result,
                trials,
                f"[The whole page](tune/{name}/summary.md).",
            ]
    if not parts:
        return ""
    toctree = "```{toctree}\n:glob:\n:maxdepth: 1\n:hidden:\n\ntune/*/summary\ntune/*/confirmation/summary\n```"
    head = "`make tuned` ran both searches and wrote this; two cores did nothing else during the first."
    return "\n" + "\n\n".join(["## What it found", head, *parts, toctree]) + "\n"


def main() -> None:
    """Run what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/tune"), help="folder of unfinished searches")
    parser.add_argument("--only", nargs="*", help="names of the searches to run; all without it")
    given = parser.parse_args()
    for name in SEARCHES:
        if given.only is None or name in given.only:
            run(name, given.work)
    above, mark, _ = PAGE.read_text("utf-8").partition(MARK)
    PAGE.write_text(f"{above}{mark}\n{found()}", "utf-8")


if __name__ == "__main__":
    main()
