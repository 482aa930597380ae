"""README.md says what is true: its Python runs, and what it names exists.

Not here: its figures, which commands make.
"""

import re
from pathlib import Path

import pytest

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


def test_the_lines_of_algorithm_1_stand_in_the_comments_of_train():
    source = (README.parent / "sb3_simple_ddpg" / "simple_ddpg.py").read_text()
    positions = [source.index(f"# Line{line}") for line in (" 7,", "s 8-9:", " 10:", " 11:")]
    assert positions == sorted(positions)


def test_the_first_commands_of_the_readme_are_targets_of_the_makefile():
    commands = re.findall(r"^make ([a-z-]+)", README.read_text(), re.MULTILINE)
    assert commands[:2] == ["demo", "test"]
    makefile = (README.parent / "Makefile").read_text()
    for command in commands:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
