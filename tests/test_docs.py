"""README.md, docs/ and the notebooks say what is true: code runs, links lead somewhere, lists are whole.

Not here: the Python of README.md (`test_readme.py`), the rows of docs/can_i_use.md (`test_can_i_use.py`), the pages as
a browser shows them (`test_site.py`).
"""

import ast
import csv
import gc
import inspect
import itertools
import json
import re
import shlex
import shutil
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from stable_baselines3 import DDPG
from stable_baselines3.common.logger import configure

from sb3_simple_ddpg import SimpleDDPG, equations, policies, presets
from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.experiment import engines
from sb3_simple_ddpg.experiment import report as comparison_report
from sb3_simple_ddpg.experiment.worker import execute_or_explain
from sb3_simple_ddpg.sb3 import plugin
from tests.environments import Bandit

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "howto").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def text_of(path: Path) -> str:
    """What a reader reads: of a notebook its markdown."""
    if path.suffix != ".ipynb":
        return path.read_text("utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def blocks_of(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language; "" for those that name none."""
    found = re.findall(r"^```(.*?)\n(.*?)^```$", text_of(path), re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


# --- Python ----------------------------------------------------------------------------------------------------------

WITH_PYTHON = [page for page in PAGES[1:] if blocks_of(page, "python")]

#: Fewer timesteps than a reader would use: the claim is that it runs.
SHORTER = {"20_000": "120", "10_000": "60", "5_000": "60", "seeds=10": "seeds=2", "every=1_000": "every=60"}
SHORTER |= {"trials=30": "trials=2", "seeds=3": "seeds=2", "confirm=10": "confirm=2"}


@pytest.fixture
def runs_in_this_process(monkeypatch):
    """A comparison starts a process for each run, and draws: that takes longer than the short runs of these tests."""
    monkeypatch.setattr(comparison_report, "draw", lambda *_: {})
    monkeypatch.setattr(engines, "usable_cores", lambda: 1)
    monkeypatch.setattr(engines.LocalEngine, "run", lambda _, job: execute_or_explain(cloudpickle.dumps(job)))


def test_pages_with_python_are_found():
    names = {page.name for page in WITH_PYTHON}
    assert {"callbacks.md", "her.md", "custom_networks.md", "resume.md", "export.md"} <= names
    assert {"from_sb3.md", "compare.md"} <= names


@pytest.mark.long
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys, runs_in_this_process):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page, "python"):
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        exec(compile(block, page.name, "exec"), names)
    capsys.readouterr()
    model = names.get("model")
    if isinstance(model, SimpleDDPG):
        # On the first page it is loaded at the end, on the second it learns in a loop of the page's own.
        assert model.num_timesteps >= 120 or page.stem in ("vecnormalize", "theory")
        model.logger.close()
    names.clear()
    gc.collect()  # files that an example leaves open are closed here, not in another test


# --- commands --------------------------------------------------------------------------------------------------------


def commands_of(page: Path) -> list[str]:
    """The lines of the blocks without a language; a backslash at the end joins two."""
    return [line for block in blocks_of(page, "") for line in block.replace("\\\n", " ").splitlines() if line.strip()]


WITH_COMMANDS = [page for page in [*PAGES, *NOTEBOOKS] if any("simple-ddpg " in each for each in commands_of(page))]

#: Names that a reader replaces, or whose making the page does not repeat.
PLACES = ("runs/RUN", "runs/RUN1", "runs/RUN2")


def shorter(words: list[str]) -> list[str]:
    """The arguments of the same command with a smaller budget."""
    command, *arguments = words
    if command == "benchmark":
        return [command, *arguments, "--quick", "--workloads", "collect"]
    if command in ("plot", "export", "diagnose"):
        return words
    if command == "evaluate":
        return [*words, "--episodes", "1"]
    if "--resume" in arguments:
        return [*words, "--eval-episodes", "1"] if command == "train" else words
    if command == "tune":
        tiny = {"--trials": "2", "--seeds": "2", "--timesteps": "120", "--confirm": "2"}
        tiny |= {"--eval-episodes": "1", "--eval-every": "60"}
        given = [place for place, word in enumerate(arguments) if word in tiny]
        kept = [word for place, word in enumerate(arguments) if not {place, place - 1} & set(given)]
        small = ["--set", "policy_kwargs.net_arch=[4]"] if "--space" not in arguments else []
        return [command, *kept, *small, *itertools.chain(*tiny.items()), "--jobs", "1", "--no-progress"]
    budget = {"--timesteps": "200", "--eval-episodes": "1"}
    budget |= {"--timesteps": "120", "--eval-every": "60", "--seeds": "2"} if command == "compare" else {}
    for option, value in {**budget, "--checkpoint-every": "100"}.items():
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
        elif option in budget:
            arguments += [option, value]
    return [command, *arguments, "--no-progress"]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "RUN"
    tiny = ["--set", "policy_kwargs.net_arch=[4]", "--eval-episodes", "1", "--no-progress"]
    assert cli.main(["train", "--timesteps", "200", *tiny, "--out", str(folder)]) == 0
    return folder


@pytest.mark.long
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_in_its_order(page, a_run, tmp_path, monkeypatch, capsys, runs_in_this_process):
    monkeypatch.chdir(tmp_path)
    done = 0
    for words in map(shlex.split, commands_of(page)):
        if words[0] != "simple-ddpg" or "--ray-address" in words:
            continue  # the others: test_other_commands_name_what_exists; a cluster: test_experiment.py
        for place in PLACES:
            if place in words and words[words.index(place) - 1] != "--out" and not Path(place).exists():
                shutil.copytree(a_run, place)
        for folder in (word for word in words if word.startswith("docs/") and (ROOT / word).is_dir()):
            shutil.copytree(ROOT / folder, folder, dirs_exist_ok=True)  # records that the project keeps
        healthy = (0, 1) if words[1] == "diagnose" else (0,)  # it may well find something in an agent of 200 timesteps
        assert cli.main(shorter(words[1:])) in healthy, (words, capsys.readouterr().err)
        done += 1
    assert done
    capsys.readouterr()
    gc.collect()


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_other_commands_name_what_exists(page):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    zoo_test = (ROOT / "tests" / "test_zoo.py").read_text("utf-8")
    for words in map(shlex.split, commands_of(page)):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[:2] == ["pip", "install"]:
            extra = re.search(r"\[(\w+)\]", words[2])
            assert extra is None or extra[1] in project["optional-dependencies"], words
        elif words[:2] == ["python", "-m"]:
            assert words[2].startswith("rl_zoo3."), words
            assert f'"{words[2].removeprefix("rl_zoo3.")}"' in zoo_test, words
        else:
            assert words[0] == "simple-ddpg", words


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_commands_in_sentences_have_only_options_that_exist(page):
    for words in map(shlex.split, re.findall(r"`(simple-ddpg [a-z][^`]*)`", text_of(page))):
        command = inspect.signature(getattr(cli, words[1])).parameters
        for option in [word for word in words if word.startswith("--")]:
            assert option[2:].replace("-", "_") in [*command, "help"], words


# --- links -----------------------------------------------------------------------------------------------------------


def links_of(path: Path) -> Iterator[tuple[Path, str]]:
    """Files of this repository that a page links, each with its anchor."""
    text = re.sub(r"^```.*?^```", "", text_of(path), flags=re.DOTALL | re.MULTILINE)
    for link in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        if not re.match(r"[a-z]+:", link):
            file, _, anchor = link.partition("#")
            yield ((path.parent / file).resolve() if file else path), anchor


def anchors_of(path: Path) -> set[str]:
    """As GitHub and MyST make them from the headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings_that_exist(page):
    for file, anchor in links_of(page):
        assert file.exists(), file
        assert not anchor or anchor in anchors_of(file), (file.name, anchor)


#: What a reader who knows only the article asks, where the answer is, and words of the answer.
QUESTIONS = {
    "where the target is computed": ("sb3_simple_ddpg/equations.py", "def td_target("),
    "where the critic's loss is computed": ("sb3_simple_ddpg/equations.py", "def critic_loss("),
    "where the actor's loss is computed": ("sb3_simple_ddpg/equations.py", "def actor_loss("),
    "where the target networks are moved": ("sb3_simple_ddpg/equations.py", "def soft_update("),
    "where noise is added, and in which unit": ("docs/theory.md", "## Exploration: where noise is added"),
    "where actions are scaled": ("docs/theory.md", "## Where actions are scaled"),
    "why a time limit is not terminal": ("docs/theory.md", "## A time limit is not terminal"),
    "what tau means": ("docs/theory.md", "## What tau means"),
    "what the whole algorithm is": ("docs/theory.md", "## The whole algorithm"),
    "where the loop is": ("docs/theory.md", "## Algorithm 1 as one loop"),
    "which weights move in which line": ("docs/theory.md", "## Which weights move in which line"),
    "why there is a replay buffer": ("docs/theory.md", "## Why a replay buffer"),
    "why there are target networks": ("docs/theory.md", "## Why target networks"),
    "what off-policy allows": ("docs/theory.md", "## What off-policy allows"),
    "what deterministic means": ("docs/theory.md", "## What deterministic means"),
    "what DDPG improves on": ("docs/theory.md", "## An improvement over what"),
    "which article is meant": ("README.md", "Deterministic Policy Gradient (DDPG): Theory and Implementation"),
    "where an update is worked out by hand": (
        "tests/test_update.py",
        "def test_one_update_equals_the_numbers_worked_out",
    ),
    "how to draw returns with the article's networks": ("README.md", "`simple-ddpg train --preset article`"),
    "how to use a custom network": ("docs/howto/custom_networks.md", "# Networks of your own"),
    "how to resume": ("docs/resume.md", "## Going on exactly where a run stopped"),
    "how to deploy": ("docs/export.md", "# Running a policy elsewhere"),
    "when not to use DDPG": ("README.md", "## When not to use DDPG"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_at_most_two_clicks_from_the_readme(question):
    file, words = QUESTIONS[question]
    one_click = {path for path, _ in links_of(README)}
    two_clicks = {path for page in one_click if page.suffix in (".md", ".ipynb") for path, _ in links_of(page)}
    assert ROOT / file in {README} | one_click | two_clicks
    assert words in (ROOT / file).read_text("utf-8")


def test_the_first_page_lists_every_question_and_every_page():
    index = text_of(ROOT / "docs" / "index.md")
    for topic in (
        "four equations",
        "noise",
        "scaled",
        "time limit",
        "tau",
        "figure",
        "network",
        "stop",
        "deploy",
        "not",
    ):
        assert re.search(rf"^\| .*{topic}", index, re.MULTILINE), topic
    shown = set(re.findall(r"^([\w/]+)$", index, re.MULTILINE))
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in PAGES[1:]} - {"index"}
    assert pages | {f"tutorials/{notebook.stem}" for notebook in NOTEBOOKS} <= shown


# --- notebooks -------------------------------------------------------------------------------------------------------

#: What the notebooks' cell of the tag `parameters` is replaced by.
SHORT_SETTINGS = {
    "01_quickstart": "EPISODES, EVALUATION_EPISODES, SEED = 4, 2, 0",
    "02_theory_to_code": "TIMESTEPS, SEEDS = 400, 1",
    "03_what_can_go_wrong": "TIMESTEPS = 480",
    "05_silent_bugs": "TIMESTEPS = 200",
    "04_compare_with_sb3": f"RECORDS, TIMESTEPS, SEEDS = {str(ROOT / 'docs' / 'results')!r}, 200, 2",
}


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_with_short_settings(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = [
        {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        for source in (tagged[0].source, SHORT_SETTINGS[path.stem])
    ]
    assert names[0] == names[1]
    tagged[0].source = SHORT_SETTINGS[path.stem]
    run(notebook, tmp_path)
    if path.stem == "05_silent_bugs":
        assert [answer.startswith("Not yet.") for answer in answers_of(notebook, "check")] == [True] * 5
        assert [answer.startswith("Right:") for answer in answers_of(notebook, "solution")] == [True] * 5


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute it in a folder, with the code that lies beside it."""
    for code in (ROOT / "notebooks").glob("*.py"):
        shutil.copy(code, folder)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()


def cells_of(notebook: nbformat.NotebookNode, role: str) -> dict[str, nbformat.NotebookNode]:
    """By number the cells with a tag such as check-1."""
    tags = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    return {tag.rpartition("-")[2]: cell for tag, cell in tags.items() if tag.startswith(f"{role}-")}


def answers_of(notebook: nbformat.NotebookNode, role: str) -> list[str]:
    return [cell.outputs[-1].data["text/plain"] for cell in cells_of(notebook, role).values()]


@pytest.mark.long
def test_the_check_says_right_where_the_solutions_stand_in_the_place_of_the_bugs(tmp_path):
    """The training, which draws the symptoms, is left out: it is the same with any function."""
    notebook = nbformat.read(ROOT / "notebooks" / "05_silent_bugs.ipynb", as_version=4)
    exercises, solutions = cells_of(notebook, "exercise"), cells_of(notebook, "solution")
    assert [*exercises] == [*solutions] == [*"12345"]
    for number, solution in solutions.items():
        exercises[number].source = solution.source.partition("\n\n\ncheck(")[0]
        assert exercises[number].source.startswith(f"def update_{number}(")
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith("symptoms(")]
    run(notebook, tmp_path)
    assert [answer.startswith("Right:") for answer in answers_of(notebook, "check")] == [True] * 5


def test_no_exercise_tells_its_bug():
    """Names and comments of the five versions, and the words before the solutions, give symptoms alone."""
    notebook = nbformat.read(ROOT / "notebooks" / "05_silent_bugs.ipynb", as_version=4)
    before = "\n".join(cell.source for cell in notebook.cells).partition("## Solutions")[0].lower()
    assert not re.findall(r"broadcast|twice|detach|requires_grad|double|residual", before)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_the_output_of_one_clean_run(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = json.dumps([output.get("data", {}).get("text/plain", output.get("text", "")) for output in outputs])
    assert not re.search(r"/(home|tmp|root|work)/", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_source_in_a_committed_notebook_is_the_package_s_of_now(path):
    """A function that changed since the last `make notebooks` would be shown as it was."""
    for cell in nbformat.read(path, as_version=4).cells:
        for name in re.findall(r"^show\(([\w.]+)\)$", cell.source, re.MULTILINE):
            shown: Any = {"equations": equations, "policies": policies, "SimpleDDPG": SimpleDDPG}
            module, *attributes = name.split(".")
            function = shown[module]
            for attribute in attributes:
                function = getattr(function, attribute)
            source = textwrap.dedent(inspect.getsource(function))
            assert source in cell.outputs[0]["data"]["text/markdown"], f"{name} has changed: run `make notebooks`."


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_the_package_s_equations_and_states_none_of_its_own(path):
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert "from sb3_simple_ddpg import" in code
    assert not re.search(r"def (td_target|critic_loss|actor_loss|soft_update|train_step|update)\b", code)
    assert not re.search(r"class \w+\((nn\.Module|th\.nn\.Module|OffPolicyAlgorithm)\)", code)


# --- words, numbers, lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_no_page_calls_anything_simple(page):
    """Words that make a reader who does not understand feel at fault."""
    assert not re.findall(r"\b(?:simply|just|blazing)\b", text_of(page), re.IGNORECASE)


def test_no_source_file_that_the_site_shows_calls_anything_simple():
    for path in sorted((ROOT / "sb3_simple_ddpg").rglob("*.py")):
        assert not re.findall(r"\b(?:simply|just|blazing)\b", path.read_text("utf-8"), re.IGNORECASE), path.name


def recorded_in_the_package() -> set[str]:
    """Every key that the package's code hands to a logger."""
    keys = set(plugin.STATISTICS)
    for path in (ROOT / "sb3_simple_ddpg").rglob("*.py"):
        keys |= set(re.findall(r'\brecord\(\s*"(\w+/\w+)"', path.read_text("utf-8")))
    return keys


def test_every_logged_number_is_defined_by_an_equation_and_none_that_is_not_logged(tmp_path):
    """Those of the package's code, and those that SB3 adds to a run with every option that logs."""
    policy_kwargs = {"net_arch": [4]}
    model = SimpleDDPG(
        "MlpPolicy", Bandit(), learning_starts=5, critic_learning_rate=1e-3, on_non_finite="skip",
        policy_kwargs=policy_kwargs,
    )  # fmt: skip
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(20, log_interval=1)
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        logged = set(next(csv.reader(file)))
    assert {"train/n_updates", "train/noise_scale", "rollout/n_skipped"} <= recorded_in_the_package()
    logged |= recorded_in_the_package()
    assert {"train/critic_loss", "rollout/ep_rew_mean", "train/n_skipped", "train/critic_learning_rate"} <= logged
    page = text_of(ROOT / "docs" / "metrics.md")
    defined = dict(re.findall(r"^\| `([^`]+)` \| (.*?) \| ", page, re.MULTILINE))
    assert all("$" in definition for definition in defined.values())
    of_sb3 = {"rollout/success_rate", "eval/mean_reward", "eval/mean_ep_length", "eval/success_rate"}
    assert set(defined) == logged | of_sb3


#: What a beginner who knows the article and basic Python meets on the pages of the reading path.
TERMS = """
action, actor-critic, actor, argmax, Box, batch, batch norm, bit for bit, bootstrapping, broadcast, callback,
clip, compiled, critic, deterministic, discount factor, DQN, eager, episode, exploration, features extractor,
fused, gradient step, hard update, HER, hidden layer, interval, IQM, learning rate, main network, n_envs,
n-step return, noise, observation, off-policy, on-policy, overestimation, p, policy, policy gradient, PPO,
preset, Q-value, random steps, ReLU, replay buffer, return, RL Zoo, rollout, SAC, saturation, SBX, schedule,
seed, soft update, state, tanh, target, target network, TD error, TD3, terminated, timestep, TQC, transition,
truncated, unit, VecNormalize, weight decay
"""


def test_the_glossary_explains_every_word_of_the_reading_path():
    page = text_of(ROOT / "docs" / "glossary.md")
    heads = " ; ".join(re.findall(r"^(.+)\n: ", page, re.MULTILINE))
    for term in re.split(r",\s+", TERMS.strip()):
        assert re.search(rf"(?<![\w-]){re.escape(term)}(?![\w-])", heads), term
    for letter in (r"\mu", r"\theta", "$L$", "$A$", "$d$"):
        assert letter in page, letter


def deviations() -> dict[int, list[str]]:
    """The cells of each row by its number: from, what, theirs, ours, why."""
    page = text_of(ROOT / "docs" / "deviations.md")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert all(len(row) == 6 for row in rows)
    return {int(number): cells for number, *cells in rows}


def test_deviations_are_one_list_numbered_without_a_gap():
    page = text_of(ROOT / "docs" / "deviations.md")
    numbers = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert list(map(int, numbers)) == list(range(1, len(numbers) + 1))
    assert len(re.findall(r"^\| ---", page, re.MULTILINE)) == 1
    origins = [cells[0] for cells in deviations().values()]
    assert sorted(set(origins)) == ["SB3", "article", "paper"]
    assert origins == sorted(origins, key=["paper", "article", "SB3"].index)


def test_defaults_in_the_list_of_deviations_are_the_constructor_s():
    rows = deviations()
    defaults = {name: parameter.default for name, parameter in inspect.signature(SimpleDDPG).parameters.items()}
    named = {
        6: "learning_rate",
        7: "tau",
        8: "batch_size",
        9: "learning_starts",
        16: "action_noise",
        28: "action_noise",
    }
    for number, name in named.items():
        assert str(defaults[name]) in rows[number][3], name
    theirs = inspect.signature(DDPG).parameters
    assert theirs["action_noise"].default is None
    for name in set(defaults) - set(theirs):
        assert f"`{name}`" in rows[29][3], name
    assert set(theirs) <= set(defaults)


def test_presets_in_the_list_of_deviations_are_the_presets():
    rows, paper, article = deviations(), presets.LILLICRAP2015, presets.ARTICLE
    assert rows[3][2] == str(paper["policy_kwargs"]["critic_optimizer_kwargs"]["weight_decay"])
    assert rows[4][2] == f"uniform in ±{paper['policy_kwargs']['last_layer_init']}"
    assert f"theta {paper['action_noise'].theta}, sigma {paper['action_noise'].sigma}" in rows[5][2]
    assert rows[6][2] == f"actor {paper['learning_rate']}, critic {paper['critic_learning_rate']}"
    assert rows[7][2] == str(paper["tau"])
    assert rows[8][2] == str(paper["batch_size"])
    assert np.isclose(1 - article["tau"], 0.99)
    assert "0.99 in the code" in rows[11][2]
    assert (article["train_freq"], article["gradient_steps"]) == ((1, "episode"), -1)  # 13
    layers = article["policy_kwargs"]["net_arch"]
    assert rows[14][2] == f"actor {'-'.join(map(str, layers['pi']))}, critic {'-'.join(map(str, layers['qf']))}"
    assert rows[15][2] == f"{article['batch_size']}; {article['learning_starts']:,}"


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "results.md"], ids=lambda page: page.stem)
def test_figures_in_tables_of_results_are_those_of_the_records(page):
    """README.md has two rows; docs/results.md one for every comparison with SB3's DDPG that was kept, whoever won."""
    folders = {path.parent.name: path for path in (ROOT / "docs" / "results").glob("*/summary.json")}
    summaries = {name: json.loads(path.read_text("utf-8")) for name, path in folders.items()}
    rows = re.findall(
        r"^\| \[([\w-]+), ([\d,]+)\]\((?:docs/)?results/([\w-]+)/summary.md\) \| (.*) \|$", text_of(page), re.M
    )
    kept = {name for name, each in summaries.items() if "ddpg" in each["plan"]["algorithms"]}
    assert {row[2] for row in rows} <= kept
    assert len(rows) == (2 if page == README else len(kept))
    for env_id, timesteps, name, cells in rows:
        plan, table = summaries[name]["plan"], summaries[name]["environments"][env_id]
        assert f"{plan['timesteps']:,}" == timesteps
        settings = "out of the box" if any(plan["differing"].values()) else "identical, with noise"
        means = [
            "{:.1f} ({:.1f} to {:.1f})".format(*table["algorithms"][each]["mean"]) for each in ("simple_ddpg", "ddpg")
        ]
        against = table["against"]["ddpg"]
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(*against["speed_ratio"])
        assert cells.split(" | ") == [settings, str(len(plan["seeds"])), *means, f"{against['p_value']:.2g}", ratio]


def test_the_article_s_experiment_has_its_settings_and_the_figures_of_its_records():
    (section,) = re.findall(
        r"^## The article's own experiment\n(.*?)^## ", text_of(ROOT / "docs" / "results.md"), re.M | re.S
    )
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.*) \|$", section, re.M))
    for place, seed in enumerate(rows["seed"].split(" | ")):
        folder = ROOT / "docs" / "article" / f"seed-{seed}"
        config, evaluation = (
            json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "evaluation.json")
        )
        assert (config["preset"], config["seed"], config["episodes"]) == ("article", int(seed), 100)
        assert config["arguments"]["policy_kwargs"] == presets.ARTICLE["policy_kwargs"]
        assert len((folder / "monitor.csv").read_text("utf-8").splitlines()) == 2 + 100  # two lines of header
        assert rows["mean return"].split(" | ")[place] == f"{evaluation['mean_return']:.1f}"
        assert rows["standard deviation over episodes"].split(" | ")[place] == f"{np.std(evaluation['returns']):.1f}"
    assert place == 4


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_no_page_calls_another_network_s_figure_the_article_s(page):
    """The article's networks are larger: its experiment is `--preset article`."""
    assert not re.findall(r"the article's figure|does what the article does", text_of(page))


#: "targets" is y. A network that follows another is a target network.
NETWORKS_CALLED_TARGETS = (
    r"\b[Tt]argets (?:follow|move|stay|lag|start|are moved|had the time)|\b[Tt]arget (?:has made up|is a copy)"
    r"|soft targets?\b|\b(?:with their|of the|to the|moments and) targets (?:in|stay|are those|from)\b"
)


@pytest.mark.parametrize(
    "path",
    [*PAGES, *NOTEBOOKS, *(ROOT / "sb3_simple_ddpg" / f"{name}.py" for name in ("equations", "policies"))],
    ids=lambda path: path.stem,
)
def test_targets_are_y_and_never_networks(path):
    assert not re.findall(NETWORKS_CALLED_TARGETS, text_of(path))


def test_readme_fits_on_two_screens():
    """Of 60 lines each, tables' rows counted as lines."""
    assert len(text_of(README).splitlines()) <= 120
