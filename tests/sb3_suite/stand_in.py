"""A pytest plugin that runs Stable-Baselines3's (SB3) own tests with SimpleDDPG in the place of `DDPG` and `TD3`.

Not here: a single test. They are those of a checkout of SB3; the library under them is the installed one:

    PYTHONPATH=tests/sb3_suite pytest -p stand_in --import-mode=importlib <checkout of SB3>/tests

Only the cases that reach `DDPG` or `TD3` run. The run fails when none of them called the constructor of SimpleDDPG.
"""

from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_simple_ddpg import SimpleDDPG

#: Arguments that TD3 has on top of DDPG. SB3's tests pass them to say that TD3 shall act as DDPG does.
ARGUMENTS_OF_TD3 = ("policy_delay", "target_policy_noise", "target_noise_clip")


class DDPG(SimpleDDPG):
    """SimpleDDPG under the name of SB3's class, which SB3's tests read in file names; it notes who calls it."""

    running_test: pytest.Item | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if DDPG.running_test is not None:
            DDPG.running_test.user_properties.append(("stand_in", type(self).__name__))
        super().__init__(*args, **kwargs)

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) < 4:  # the log's name is the fourth
            kwargs.setdefault("tb_log_name", type(self).__name__)
        return super().learn(*args, **kwargs)


class TD3(DDPG):
    """The same for TD3."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ARGUMENTS_OF_TD3:
            kwargs.pop(name, None)
        super().__init__(*args, **kwargs)


STAND_INS = {"DDPG": DDPG, "TD3": TD3}

for name, stand_in in STAND_INS.items():
    setattr(stable_baselines3, name, stand_in)  # SB3's tests import both from here, after this plugin

PACKAGE = Path(stable_baselines3.__file__).parent

_cases: dict[str, bool] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the SB3 of the checkout."""
    if PACKAGE.is_relative_to(config.rootpath):
        raise pytest.UsageError(
            f"The SB3 under test must be the installed one, got {PACKAGE}: start pytest in another folder, and not as "
            "`python -m pytest`, which imports from the folder that it is started in."
        )


def pytest_report_header() -> str:
    """Say which SB3 is tested."""
    return f"SimpleDDPG stands in for DDPG and TD3 of stable-baselines3 {stable_baselines3.__version__} in {PACKAGE}"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out whole files that name neither algorithm: some of them import what only other tests need (Atari)."""
    if collection_path.suffix == ".py" and not any(name in collection_path.read_text("utf-8") for name in STAND_INS):
        return True
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the cases that reach a stand-in."""
    kept = [item for item in items if _reaches_stand_in(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note during which test the constructor of a stand-in runs."""
    DDPG.running_test = item
    yield
    DDPG.running_test = None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count; the properties of a report also come back from the workers of pytest-xdist."""
    if report.when == "call" and not report.skipped:
        _cases[report.nodeid] = any(name == "stand_in" for name, _ in report.user_properties)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in how many cases it ran, and in which it did not (SB3 leaves some combinations out by an early return)."""
    terminalreporter.write_line(f"The constructor of SimpleDDPG ran in {sum(_cases.values())} of {len(_cases)} cases")
    for nodeid in (nodeid for nodeid, constructed in _cases.items() if not constructed):
        terminalreporter.write_line(f"  not in {nodeid}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that tested nothing has failed."""
    is_worker = hasattr(session.config, "workerinput")
    if not is_worker and not session.config.option.collectonly and not any(_cases.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _reaches_stand_in(item: pytest.Item) -> bool:
    """Whether a stand-in is among the case's parameters or, when no algorithm is, in the code of the test."""
    assert isinstance(item, pytest.Function)
    names = set(_names(item.function.__code__))
    used = {name: value for name, value in item.function.__globals__.items() if name in names}
    algorithms = set()
    for parameter in item.callspec.params.values() if hasattr(item, "callspec") else ():
        algorithms |= set(_algorithms(parameter))
        if isinstance(parameter, str):  # the key of a table of algorithms
            for table in (value for value in used.values() if isinstance(value, dict)):
                algorithms |= set(_algorithms(table.get(parameter)))
    return any(issubclass(algorithm, DDPG) for algorithm in algorithms or _algorithms(list(used.values())))


def _algorithms(value: object) -> Iterator[type[BaseAlgorithm]]:
    if isinstance(value, type) and issubclass(value, BaseAlgorithm):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _algorithms(part)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
