"""Imports point one way: no circle, and nothing reaches up. Types and imports inside functions count too."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_simple_ddpg

PACKAGE = Path(sb3_simple_ddpg.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))

#: Who may import the algorithm: those that run it. All others know the agent by `sb3/agent.py`.
ABOVE_THE_ALGORITHM = ("experiment", "benchmark", "command_line", "zoo", "__init__", "statistics", "plotting")


def modules() -> dict[str, Path]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports(path: Path, names: set[str]) -> set[str]:
    """The modules of the package that a file imports, anywhere in it; a room's own `__init__` is no import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sb3_simple_ddpg":
            base = ".".join((node.module or "").split(".")[1:])
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                if inner in names:
                    found.add(inner)
                elif base in names:
                    found.add(base)
                elif f"{base}.__init__" in names:
                    found.add(f"{base}.__init__")
                elif not base:
                    found.add("__init__")
                else:
                    raise AssertionError(f"{path}: {node.module}.{alias.name} is no module of the package.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("sb3_simple_ddpg"), f"{path}: write from sb3_simple_ddpg... import"
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    paths = modules()
    return {name: imports(path, set(paths)) for name, path in paths.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for other in sorted(graph[name]):
                if found := walk(other, [*way, name]):
                    return found
            done.add(name)
        return []

    for name in graph:
        if found := walk(name, []):
            return found
    return []


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_modules_import_each_other_in_a_circle(graph: dict[str, set[str]]):
    assert circle(graph) == []


def test_only_who_runs_the_algorithm_imports_it(graph: dict[str, set[str]]):
    who = {name for name, imported in graph.items() if "simple_ddpg" in imported}
    assert {name.split(".")[0] for name in who} <= set(ABOVE_THE_ALGORITHM)


def test_nothing_but_the_package_s_main_imports_the_command_line(graph: dict[str, set[str]]):
    who = {name for name, imported in graph.items() if any(other.startswith("command_line") for other in imported)}
    assert {name.split(".")[0] for name in who} == {"__main__", "command_line"}


def test_the_equations_import_pytorch_and_its_private_names_alone(graph: dict[str, set[str]]):
    assert graph["equations"] <= {"speed.torch_private"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_in_one_line_what_it_is(room: str):
    text = (PACKAGE / room / "__init__.py").read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring is not None
    assert 20 < len(docstring) <= 120
    assert "\n" not in docstring


def test_the_files_of_the_algorithm_are_short():
    lengths = {
        name: len((PACKAGE / f"{name}.py").read_text("utf-8").splitlines())
        for name in ("equations", "simple_ddpg", "exploration", "presets")
    }
    assert max(lengths.values()) <= 300, lengths


def test_an_update_is_at_most_14_statements_without_a_branch():
    tree = ast.parse((PACKAGE / "simple_ddpg.py").read_text("utf-8"))
    update = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_update")
    statements = [node for node in ast.walk(update) if isinstance(node, ast.stmt)][1:]  # without the function itself
    statements = [node for node in statements if not isinstance(node, ast.With) and node is not update.body[0]]
    assert len(statements) <= 14, len(statements)
    assert not any(isinstance(node, ast.If | ast.For | ast.While | ast.Try | ast.IfExp) for node in ast.walk(update))


@pytest.mark.long
def test_every_module_is_imported_in_the_opposite_order_too():
    names = [each.name for each in pkgutil.walk_packages(sb3_simple_ddpg.__path__, "sb3_simple_ddpg.")]
    # zoo.py changes SB3's table of algorithms, so all this happens in a process of its own.
    names = [name for name in names if not name.endswith("__main__")]
    program = f"import importlib\nfor name in {names[::-1]!r}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert len(names) > 50


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("sb3_simple_ddpg", ["SimpleDDPG", "MlpPolicy", "CnnPolicy", "MultiInputPolicy"]),
        ("sb3_simple_ddpg.equations", ["td_target", "critic_loss", "actor_loss", "soft_update"]),
        ("sb3_simple_ddpg.policies", ["Actor", "Critic", "DDPGPolicy"]),
        ("sb3_simple_ddpg.exploration", ["OrnsteinUhlenbeck", "GaussianNoise"]),
        ("sb3_simple_ddpg.presets", ["ARTICLE", "PENDULUM", "ROBUST"]),
        ("sb3_simple_ddpg.export", ["export_onnx", "save_policy", "load_policy"]),
        ("sb3_simple_ddpg.experiment", ["run_experiment"]),
        ("sb3_simple_ddpg.checkpoint", ["ExactCheckpointCallback"]),
        ("sb3_simple_ddpg.statistics", ["iqm"]),
        ("sb3_simple_ddpg.plotting", ["plot_returns"]),
    ],
)
def test_public_names_are_where_users_type_them(path: str, names: list[str]):
    module = importlib.import_module(path)
    assert all(hasattr(module, name) for name in names), path
