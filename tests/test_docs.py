"""README.md, docs/ and the notebooks say what is true: their Python runs, and what must be defined is.

Not here: the rows of docs/can_i_use.md (`test_can_i_use.py`), the pages as a browser shows them (`test_site.py`).
"""

import csv
import inspect
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from stable_baselines3.common.logger import configure

from sb3_simple_ddpg import SimpleDDPG, presets
from tests.environments import Bandit

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs" / "howto").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text("utf-8")]

#: Fewer timesteps than a reader would use: the claim is that it runs.
SHORTER = {"20_000": "300", "5_000": "200", "seeds=10": "seeds=2", "every=1_000": "every=100"}

#: What the notebooks' cell of the tag `parameters` is replaced by.
SHORT_SETTINGS = {
    "01_quickstart": "EPISODES, EVALUATION_EPISODES, SEED = 4, 2, 0",
    "02_theory_to_code": "TIMESTEPS, SEEDS = 600, 1",
    "03_what_can_go_wrong": "TIMESTEPS = 400",
}


def test_pages_with_python_are_found():
    names = {page.name for page in WITH_PYTHON}
    assert {"callbacks.md", "her.md", "custom_networks.md", "resume.md", "export.md", "from_sb3.md"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page", "env": "Pendulum-v1"}  # resume.md takes an env for given
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        exec(compile(block, page.name, "exec"), names)
    capsys.readouterr()
    if isinstance(names.get("model"), SimpleDDPG) and page.parent.name == "howto" and page.stem != "vecnormalize":
        assert names["model"].num_timesteps >= 300


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_with_short_settings(path: Path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    tagged[0].source = SHORT_SETTINGS[path.stem]
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_the_output_of_one_clean_run(path: Path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = json.dumps([output.get("data", {}).get("text/plain", output.get("text", "")) for output in outputs])
    assert not re.search(r"/(home|tmp|root|work)/", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_the_package_s_equations_and_states_none_of_its_own(path: Path):
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert "from sb3_simple_ddpg import" in code
    assert not re.search(r"def (td_target|critic_loss|actor_loss|soft_update|train_step|update)\b", code)
    assert not re.search(r"class \w+\((nn\.Module|th\.nn\.Module|OffPolicyAlgorithm)\)", code)


def test_no_page_calls_anything_simple():
    """Words that make a reader who does not understand feel at fault."""
    texts = {path.name: path.read_text("utf-8") for path in [*PAGES, ROOT / "README.md"]}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        texts[path.name] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = {name: re.findall(r"\b(?:simply|just|blazing)\b", text, re.IGNORECASE) for name, text in texts.items()}
    assert not {name: words for name, words in found.items() if words}


def test_every_logged_number_is_defined(tmp_path):
    """All keys of a run with every option that logs, and those that show up only when something went wrong."""
    model = SimpleDDPG(
        "MlpPolicy", Bandit(), learning_starts=5, critic_learning_rate=1e-3, on_non_finite="skip",
        policy_kwargs={"net_arch": [4]},
    )  # fmt: skip
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(20, log_interval=1)
    with (tmp_path / "progress.csv").open() as file:
        keys = set(next(csv.reader(file)))
    assert {"train/critic_loss", "rollout/ep_rew_mean", "train/n_skipped", "train/critic_learning_rate"} <= keys
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert not {key for key in keys if f"`{key}`" not in page}


def test_deviations_are_numbered_without_a_gap():
    page = (ROOT / "docs" / "deviations.md").read_text("utf-8")
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 20


def test_defaults_in_the_list_of_deviations_are_the_constructor_s():
    page = (ROOT / "docs" / "deviations.md").read_text("utf-8")
    ours = {int(row[0]): row[3] for row in re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \| (.*?) \|", page, re.MULTILINE)}
    defaults = {name: parameter.default for name, parameter in inspect.signature(SimpleDDPG).parameters.items()}
    assert str(defaults["learning_rate"]) in ours[6]
    assert str(defaults["tau"]) in ours[7]
    assert str(defaults["batch_size"]) in ours[8]
    assert str(defaults["learning_starts"]) in ours[9]
    assert str(defaults["action_noise"]) in ours[16]
    assert presets.ARTICLE["tau"] == 0.01
    for name in ("critic_learning_rate", "max_grad_norm", "stats_window_size", "compile_updates", "on_non_finite"):
        assert name in defaults
        assert name in ours[22]
