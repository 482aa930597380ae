"""The study: which trials there are, who does them, and what becomes of those whose process was killed. On Optuna.

Not here: the runs of a trial (`search.py`), and the space (`space.py`).

Any number of processes share a study through its storage, and each gets its trials there. What tells how far it is:

    counts        a trial that runs, has ended, or failed with an error; each takes one of the places
    interrupted   failed without an error: its process was stopped, or died (no heartbeat). It takes no place; another
                  trial with the same settings, and with the runs that were finished, waits in its stead
    surplus       begun when there was no place any more, since several processes began one at the same moment
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from sb3_simple_ddpg.tuning.pruner import PairedSeedsPruner

#: A process that runs a trial says so every so many seconds; one that has not for so many is taken for dead.
HEARTBEAT, GRACE = 10, 60

#: Attributes of a trial.
ERROR, SURPLUS, INSTEAD_OF, BEGUN, STOPPED, RUN = "error", "surplus", "instead_of", "begun", "stopped", "run "

#: Attribute of a study.
PLAN: Final = "plan"

_ENDED: Final = (TrialState.COMPLETE, TrialState.PRUNED)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, Optuna neither logs nor warns of what it calls experimental: we print what matters."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """
    :param url: of a database, as SQLAlchemy writes it: sqlite:///study.db, postgresql://user@host/name
    :return: the storage, whose trials are known to live by their heartbeats
    :raises ValueError: when it cannot be opened
    """
    # Two processes wait for each other instead of giving up after five seconds.
    options = {"connect_args": {"timeout": 100}} if url.startswith("sqlite") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        raise ValueError(
            f"--storage {hidden(url)} cannot be opened ({type(error).__name__}: {str(error).splitlines()[0]}): write a "
            "URL of SQLAlchemy's, such as sqlite:///study.db or postgresql://user:password@host/name, whose driver is "
            "installed."
        ) from error


def hidden(url: str) -> str:
    """
    :param url: of a storage
    :return: the same without its password
    """
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


class SeededSampler(BaseSampler):
    """
    Optuna's TPE (Bergstra et al. 2011; multivariate as in Falkner et al. 2018), the number of the trial being its seed.

    A sampler with one seed would draw the first trials of each process alike; one without would draw others each time.
    """

    def __init__(self) -> None:
        self._current: tuple[int, TPESampler] | None = None

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if self._current is None or self._current[0] != trial.number:
            self._current = trial.number, TPESampler(seed=trial.number, multivariate=True, constant_liar=True)
        return self._current[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As Optuna's."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna's."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 - whatever the distribution gives
        """As Optuna's."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


def load(name: str, storage: optuna.storages.RDBStorage, pruner: PairedSeedsPruner | None = None) -> optuna.Study:
    """
    :param name: of the study
    :param storage: that holds it
    :param pruner: that stops trials
    :return: the study, for one thread
    """
    return optuna.load_study(
        study_name=name, storage=storage, sampler=SeededSampler(), pruner=pruner or optuna.pruners.NopPruner()
    )


def counting(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """
    :param trials: of a study
    :return: those that take a place, by their numbers
    """
    # Of two that stand in for the same trial, since two processes put it back at one moment, the first.
    stand_ins: dict[Any, int] = {}
    for trial in trials:
        if (replaced := trial.user_attrs.get(INSTEAD_OF)) is not None and _takes_a_place(trial):
            stand_ins.setdefault(replaced, trial.number)
    return [
        trial
        for trial in trials
        if _takes_a_place(trial) and stand_ins.get(trial.user_attrs.get(INSTEAD_OF), trial.number) == trial.number
    ]


def _takes_a_place(trial: FrozenTrial) -> bool:
    return trial.state is not TrialState.FAIL or ERROR in trial.user_attrs


def ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """
    :param trials: of a study
    :return: those that came to their end, were stopped, or failed
    """
    return [trial for trial in counting(trials) if trial.state in _ENDED or trial.state is TrialState.FAIL]


def is_surplus(number: int, trials: Sequence[FrozenTrial], places: int) -> bool:
    """
    :param number: of a trial that begins
    :param trials: of its study
    :param places: how many trials the study is to have
    :return: whether the trial has no place, all others that began no later being counted first
    """
    numbers = [trial.number for trial in counting(trials)]
    return number not in numbers or numbers.index(number) >= places


def is_interrupted(trial: FrozenTrial) -> bool:
    """
    :param trial: of a study
    :return: whether its process was stopped, or died
    """
    return trial.state is TrialState.FAIL and not {ERROR, SURPLUS} & trial.user_attrs.keys()


def put_back(study: optuna.Study) -> None:
    """
    Let trials whose process is gone be done again, from the runs that were finished.

    :param study: of those trials
    """
    optuna.storages.fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        # A process that died between a trial's beginning and its first heartbeat leaves no other trace.
        silent = trial.state is TrialState.RUNNING and BEGUN not in trial.user_attrs
        if silent and datetime.now() - (trial.datetime_start or datetime.now()) > timedelta(seconds=GRACE):
            with contextlib.suppress(RuntimeError, ValueError):  # somebody else has done so
                study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    replaced = {trial.user_attrs.get(INSTEAD_OF) for trial in trials}
    for trial in trials:
        if is_interrupted(trial) and trial.number not in replaced:
            runs = {name: value for name, value in trial.user_attrs.items() if name.startswith(RUN)}
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={**runs, INSTEAD_OF: trial.number},
                    system_attrs=trial.system_attrs,
                )
            )
