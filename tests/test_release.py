"""What is shipped fits together: one version, a workflow of the Makefile's targets, complete metadata, light imports.

Not here: building the packages, which `make dist` does.
"""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import sb3_simple_ddpg

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
EXPORT_LIBRARIES = {"onnx", "onnxruntime", "onnxscript"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;]", requirement)[0].lower() for requirement in requirements}


def test_the_version_stands_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sb3_simple_ddpg.__version__"}
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert metadata.version("sb3-simple-ddpg") == sb3_simple_ddpg.__version__


def commands() -> list[str]:
    return [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]


def test_the_workflow_runs_nothing_but_targets_of_the_makefile():
    assert commands()
    for command in commands():
        make, *targets = command.split()
        assert make == "make"
        for target in targets:
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    targets = {target for command in commands() for target in command.split()[1:]}
    ci_run = re.findall(r"^make (.+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert targets >= {"lint", "typecheck", "test", "dist", *ci_run[0].split()}


def test_the_workflow_tests_every_python_that_the_package_names():
    tested = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    classifiers = PROJECT["project"]["classifiers"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    assert tested == named == ["3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"] == f">={tested[0]}"
    assert WORKFLOW[True] == {"push": {"branches": ["main"]}, "pull_request": None}  # YAML reads "on" as true
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_export_libraries_are_an_extra_and_no_core_dependency():
    assert names(PROJECT["project"]["optional-dependencies"]["export"]) == EXPORT_LIBRARIES
    assert not names(PROJECT["project"]["dependencies"]) & EXPORT_LIBRARIES


def test_everything_that_an_extra_names_is_pinned():
    pinned = names((ROOT / "constraints.txt").read_text().splitlines())
    pinned |= {name.replace("_", "-") for name in pinned}
    left_out = {"sb3-simple-ddpg", "gymnasium"}  # itself; and the extras of Gymnasium, which the tests do without
    for extra, requirements in PROJECT["project"]["optional-dependencies"].items():
        assert names(requirements) - left_out <= pinned, extra
    assert names(PROJECT["project"]["dependencies"]) <= pinned


def test_citation_names_the_paper_and_the_license_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["project"]["license"]
    assert "1509.02971" in citation["references"][0]["url"]


def test_pre_commit_runs_the_tools_of_make_lint_and_typecheck():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = " ".join(hook["entry"] for hook in repository["hooks"])
    assert repository["repo"] == "local"
    for command in re.findall(r"\$\(BIN\)/(ruff check|ruff format --check|mypy)$", MAKEFILE, re.MULTILINE):
        assert f".venv/bin/{command}" in entries


def test_security_page_names_every_call_that_reads_a_pickle_and_the_one_that_reads_none():
    page = (ROOT / "SECURITY.md").read_text()
    rows = {row.split("|")[1].strip(): row for row in page.splitlines() if row.startswith("| `")}
    dangerous = [calls for calls, row in rows.items() if "**no**" in row]
    assert any("SimpleDDPG.load" in calls for calls in dangerous)
    assert any("load_replay_buffer" in calls and "VecNormalize.load" in calls for calls in dangerous)
    assert [calls for calls, row in rows.items() if "**yes**" in row] == ["`export.load_policy`"]
    assert (ROOT / "tests" / "test_policy_file.py").exists()


@pytest.mark.parametrize(
    "pattern", ["tests", "docs", ".github", ".ci", "CHANGELOG.md", "SECURITY.md", "constraints.txt"]
)
def test_source_distribution_holds_what_a_packager_needs(pattern: str):
    assert pattern in (ROOT / "MANIFEST.in").read_text().split()


def test_importing_export_loads_none_of_its_libraries():
    program = (
        "import sys, sb3_simple_ddpg.export.policy_file, sb3_simple_ddpg.export.onnx_file\n"
        f"print(sorted({EXPORT_LIBRARIES!r} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
