"""README.md says what is true: its Python runs, and what it names exists.

Not here: its figures, which commands make.
"""

import re
from pathlib import Path

import pytest

from sb3_simple_ddpg import SimpleDDPG, equations, policies

README = Path(__file__).parent.parent / "README.md"


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block.replace("20_000", "300"), {})  # fewer timesteps: the claim is that it runs
    capsys.readouterr()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README.read_text()))))
def test_files_that_the_readme_links_exist(link: str):
    assert (README.parent / link).exists()


def test_what_the_table_of_algorithm_1_names_exists():
    names = re.findall(
        r"`((?:SimpleDDPG|DDPGPolicy)\.\w+|td_target|critic_loss|actor_loss|soft_update)`", README.read_text()
    )
    assert len(set(names)) >= 10
    for name in names:
        place, _, attribute = name.rpartition(".")
        where = {"SimpleDDPG": SimpleDDPG, "DDPGPolicy": policies.DDPGPolicy, "": equations}[place]
        assert callable(getattr(where, attribute)), name


def test_the_reading_path_begins_with_the_whole_algorithm_and_the_loop():
    """In this order: algorithm, loop, equations, update, one by hand, what can go wrong, and bugs to find oneself."""
    path = README.read_text().split("## Learn DDPG here")[1].split("\n## ")[0]
    stations = (
        "theory.md#the-whole-algorithm", "theory.md#algorithm-1-as-one-loop", "equations.py", "SimpleDDPG._update",
        "test_one_update_equals_the_numbers_worked_out_by_hand", "03_what_can_go_wrong", "05_silent_bugs",
    )  # fmt: skip
    positions = [path.index(station) for station in stations]
    assert positions == sorted(positions)
    assert (
        "def test_one_update_equals_the_numbers_worked_out_by_hand"
        in (README.parent / "tests/test_update.py").read_text()
    )


def test_the_first_screen_shows_what_it_is_how_to_begin_and_where_to_go():
    """One sentence, two commands, the use in three lines, one picture, the reading path, the ways on: 50 lines."""
    screen = "\n".join(README.read_text().splitlines()[:50])
    sentence = screen.split("```")[0].partition("\n\n")[2]
    assert len(re.findall(r"[.!?](?=\s)", sentence)) == 1
    commands, python = re.findall(r"```(?:python)?\n(.*?)```", screen, re.DOTALL)
    assert commands == "make demo\nmake test\n"
    assert len([line for line in python.splitlines() if line]) == 3
    assert len(re.findall(r"<img|!\[", screen)) == 1
    positions = [screen.index(part) for part in (commands, python, "<img", "## Learn DDPG here", "## Where to go")]
    assert positions == sorted(positions)
    for page in ("play.md", "knobs.md", "theory.md", "index.md", "command_line.md"):
        assert f"docs/{page}" in screen, page


def test_the_lines_of_algorithm_1_stand_in_the_comments_of_train():
    source = (README.parent / "sb3_simple_ddpg" / "simple_ddpg.py").read_text()
    positions = [source.index(f"# Line{line}") for line in (" 7,", " 8:", " 9:", " 10:", " 11:")]
    assert positions == sorted(positions)


def test_the_first_commands_of_the_readme_are_targets_of_the_makefile():
    commands = re.findall(r"^make ([a-z-]+)", README.read_text(), re.MULTILINE)
    assert commands[:2] == ["demo", "test"]
    makefile = (README.parent / "Makefile").read_text()
    for command in commands:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
