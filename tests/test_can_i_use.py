"""docs/can_i_use.md says what is true: every row names tests, and every test that it names exists.

Not here: the tests that the page names.
"""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "can_i_use.md").read_text("utf-8")
ANSWERS = {"yes", "refused", "better than SB3", "no option"}

# What the page must answer, and the section that does: features of SB3's DDPG, RL Zoo, and SB3's own tests.
TOPICS = {
    "Observation spaces and policies": ["Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Images", "float64"],
    "Action spaces and noise": ["float64", "not symmetric", "Discrete"],
    "Vectorised environments and wrappers": [
        "DummyVecEnv", "SubprocVecEnv", "`gradient_steps`, also -1", "in episodes", "VecNormalize", "set_env",
        "VecFrameStack", "VecMonitor", "VecTransposeImage", "VecCheckNan", "VecVideoRecorder", "Gymnasium",
        "TimeFeatureWrapper",
    ],
    "Replay buffers": ["HER", "in subprocesses", "n-step", "optimize_memory_usage", "class of your own"],
    "Callbacks and helpers": [
        "EvalCallback", "StopTrainingOnRewardThreshold", "StopTrainingOnNoModelImprovement",
        "StopTrainingOnMaxEpisodes", "CheckpointCallback", "EveryNTimesteps", "LogEveryNTimesteps", "ProgressBar",
        "self.locals", "says stop", "evaluate_policy", "check_env", "Monitor",
    ],
    "Loggers and plots": ["TensorBoard", "CSV", "JSON", "results_plotter"],
    "Saving, loading and learning on": [
        "exclude", "include", "custom_objects", "set_parameters", "set_env", "another number of environments",
        "Policy and actors alone", "device", "buffer_size=1", "without an environment", "load_replay_buffer",
        "reset_num_timesteps=False", "Batch norm", "Dropout",
    ],
    "From and to SB3's DDPG": ["from_sb3", "to_sb3", "Learning on", "`SimpleDDPG.load` of an SB3 zip", "TD3 or SAC"],
    "Deployment": ["ONNX", "no code", "VecFrameStack"],
    "RL Zoo": ["rl_zoo3.train", "rl_zoo3.enjoy", "-optimize"],
    "SB3's own tests": ["DDPG and TD3"],
    "Left out on purpose": [
        "Twin critics", "delayed updates", "target smoothing", "gSDE", "Prioritised replay", "Recurrent policies",
        "Discrete actions", "Mixed precision",
    ],
}  # fmt: skip


def sections() -> dict[str, str]:
    """Each second-level heading with what stands below it."""
    _, *parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of every table, without the two lines on top of each."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("feature", "---")]


ROWS = rows_of(PAGE)


def named_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\b(test_\w+\.py)::(test_\w+)", text)


def functions_in(file: str) -> set[str]:
    """Names of the test functions at the top of a file; those in a string are none."""
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("file", sorted({file for file, _ in named_tests(PAGE)}))
def test_every_test_named_on_the_page_exists(file: str):
    assert {name for other, name in named_tests(PAGE) if other == file} <= functions_in(file)


def test_every_row_has_an_answer_and_names_a_test():
    assert len(ROWS) > 100
    for row in ROWS:
        assert len(row) == 4, row
        assert row[1] in ANSWERS, row
        assert named_tests(row[2]), row


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_a_section_with_a_row_for_each_feature(topic: str):
    features = [row[0] for row in rows_of(sections()[topic])]
    for name in TOPICS[topic]:
        assert any(name in feature for feature in features), name


def test_rl_zoo_commands_load_the_plugin_and_make_targets_exist():
    block = re.search(r"```\n(.*?)```", sections()["RL Zoo"], re.DOTALL)
    assert block is not None
    commands = block.group(1).replace("\\\n", "").splitlines()
    assert [re.findall(r"rl_zoo3\.\w+|-optimize", command) for command in commands] == [
        ["rl_zoo3.train"],
        ["rl_zoo3.enjoy"],
        ["rl_zoo3.train", "-optimize"],
    ]
    assert all("--algo ddpg" in command and "--gym-packages sb3_simple_ddpg.zoo" in command for command in commands)
    makefile = (TESTS.parent / "Makefile").read_text("utf-8")
    targets = re.findall(r"`make ([\w-]+)", PAGE)
    assert set(targets) == {"sb3-suite", "test-sb3-versions"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
