"""A pytest plugin that runs Stable-Baselines3's (SB3) own tests with SimpleDDPG in the place of `DDPG` and `TD3`, and
those of sb3-contrib with it in the place of `TQC` and `CrossQ`.

Not here: a single test. They are those of a checkout of SB3 or sb3-contrib; the libraries are the installed ones:

    PYTHONPATH=tests/sb3_suite pytest -p stand_in --import-mode=importlib <checkout>/tests

Only the cases that reach one of these run. The run fails when none of them called the constructor of SimpleDDPG. With
`STAND_IN=DDPG` in the environment SB3's DDPG stands in instead: what it fails, nobody can ask of SimpleDDPG.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import sb3_contrib
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_simple_ddpg import SimpleDDPG

#: Arguments that TD3 has on top of DDPG. SB3's tests pass them to say that TD3 shall act as DDPG does.
ARGUMENTS_OF_TD3 = ("policy_delay", "target_policy_noise", "target_noise_clip")
#: What TQC has on top of that, and in its policy.
ARGUMENTS_OF_TQC = ("top_quantiles_to_drop_per_net", "ent_coef", "target_entropy")
POLICY_OF_TQC = ("n_quantiles", "n_critics")
SUBJECT: Any = stable_baselines3.DDPG if os.environ.get("STAND_IN") == "DDPG" else SimpleDDPG


class DDPG(SUBJECT):  # type: ignore[misc]
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


class TQC(TD3):
    """The same for TQC of sb3-contrib."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ARGUMENTS_OF_TQC:
            kwargs.pop(name, None)
        if "policy_kwargs" in kwargs:
            kwargs["policy_kwargs"] = {k: v for k, v in kwargs["policy_kwargs"].items() if k not in POLICY_OF_TQC}
        super().__init__(*args, **kwargs)


class CrossQ(TQC):
    """The same for CrossQ."""


STAND_INS = {"DDPG": DDPG, "TD3": TD3, "TQC": TQC, "CrossQ": CrossQ}

for name, stand_in in STAND_INS.items():
    # The tests import them from here, after this plugin.
    setattr(stable_baselines3 if hasattr(stable_baselines3, name) else sb3_contrib, name, stand_in)

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
    library = f"stable-baselines3 {stable_baselines3.__version__} in {PACKAGE}"
    return f"{SUBJECT.__name__} stands in for {', '.join(STAND_INS)}; {library}"


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
    terminalreporter.write_line(
        f"The constructor of {SUBJECT.__name__} ran in {sum(_cases.values())} of {len(_cases)} cases"
    )
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
