"""A search from its options to its verdict: `simple-ddpg tune`, and `tune` in Python.

Not here: the trials (`search.py`), the space (`space.py`), the confirmation's numbers (`verdict.py`).
"""

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import optuna
from optuna.trial import FrozenTrial

from sb3_simple_ddpg import presets
from sb3_simple_ddpg.benchmark.report import machine
from sb3_simple_ddpg.experiment import comparison, runs
from sb3_simple_ddpg.experiment import folder as experiment_folder
from sb3_simple_ddpg.experiment.engines import Engine, LocalEngine, RayEngine
from sb3_simple_ddpg.experiment.experiment import PACKAGES, read_experiment
from sb3_simple_ddpg.sb3 import zoo_file
from sb3_simple_ddpg.tuning import space as spaces
from sb3_simple_ddpg.tuning import study as studies
from sb3_simple_ddpg.tuning import verdict
from sb3_simple_ddpg.tuning.display import Display
from sb3_simple_ddpg.tuning.search import FIRST_SEED, Plan, Search
from sb3_simple_ddpg.tuning.verdict import Confirmed

if TYPE_CHECKING:
    from rich.console import Console

STORAGE, CONFIRMATION = "study.db", "confirmation"

#: Where nothing was given, neither now nor when the study was begun.
DEFAULTS: Final[dict[str, Any]] = {
    "env_id": "Pendulum-v1", "env_kwargs": {}, "space": ("default",), "settings": (), "trials": 30, "seeds": 3,
    "timesteps": 10_000, "eval_episodes": 10, "threads": 1, "confidence": 0.95, "confirm": 10, "threshold": (),
    "margin": (),
}  # fmt: skip

#: What may change when a study goes on.
FREE: Final = ("trials", "confirm", "threshold", "margin")


@dataclass(frozen=True)
class Tuned:
    """
    What a search found.

    :param better: whether the winner is shown better than the default on fresh seeds; None: nothing was confirmed
    :param settings: of the winner: arguments of SimpleDDPG, and `normalize_observations`
    :param preset: file that holds them, for `simple-ddpg train --preset`; None without a winner
    :param sentences: the result, in words
    :param confirmed: what fresh seeds say of the best few, the best first
    :param folder: that holds everything
    :param status: 0, or 1 where a run of the confirmation or every trial failed
    """

    better: bool | None
    settings: dict[str, Any]
    preset: Path | None
    sentences: list[str]
    confirmed: list[Confirmed]
    folder: Path
    status: int


def tune(
    env_id: str | None = None,
    folder: Path | str = Path("runs/tune"),
    *,
    trials: int | None = None,
    seeds: int | None = None,
    timesteps: int | None = None,
    space: Sequence[str] = (),
    settings: Sequence[str] = (),
    env_kwargs: Mapping[str, Any] | None = None,
    eval_every: int | None = None,
    eval_episodes: int | None = None,
    threads: int | None = None,
    confidence: float | None = None,
    confirm: int | None = None,
    threshold: Sequence[str] = (),
    margin: Sequence[str] = (),
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    ray_address: str | None = None,
    storage: str | None = None,
    resume: bool = False,
    console: "Console | None" = None,
    live: bool = True,
) -> Tuned:
    """
    Search for settings of SimpleDDPG, several seeds a trial, and confirm the best few on fresh seeds.

    :param env_id: name of a registered environment; Pendulum-v1 without it
    :param folder: to write; its name is that of the study
    :param trials: number of trials; 30 without it
    :param seeds: number of runs of each trial, with the same seeds in all of them; at least 2; 3 without it
    :param timesteps: of each run; 10,000 without it
    :param space: names of spaces, files and `name=range`; "default" without it
    :param settings: "name=value", for every run, those with the default settings included
    :param env_kwargs: arguments of the environment
    :param eval_every: timesteps between two evaluations, at each of which a trial may be stopped; a tenth of a run
        without it
    :param eval_episodes: number of deterministic episodes in each evaluation; 10 without it
    :param threads: of PyTorch in each run; 1 without it
    :param confidence: with which a trial is stopped before its end; 0.95 without it
    :param confirm: number of fresh seeds for the best few and the default; 0: none; 10 without it
    :param threshold: as for `simple-ddpg compare`, for the confirmation
    :param margin: as for `simple-ddpg compare`, for the confirmation
    :param engine: "local": processes of this machine; "ray": a Ray cluster
    :param jobs: number of runs at a time; None: the seeds of a trial side by side, and as many trials as there are
        cores for
    :param ray_address: of a running cluster; None: one is started on this machine
    :param storage: URL of the database that holds the study; None: an SQLite file in the folder
    :param resume: go on with a study, or share it with the process that began it; its settings are used
    :param console: to print on; None: the standard output
    :param live: show a display that changes, where the console can
    :return: what was found
    :raises ValueError: for anything that cannot work, before any run starts
    """
    from rich.console import Console

    folder = Path(folder)
    console = console or Console()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (resume or (folder / STORAGE).exists())):
        raise ValueError(f"--out {folder} is a file, or a folder that is not empty: name another one.")
    if ray_address is not None and engine != "ray":
        raise ValueError(f"--ray-address {ray_address} is for --engine ray, got --engine {engine}.")
    given = {
        "env_id": env_id, "env_kwargs": dict(env_kwargs) if env_kwargs is not None else None, "space": tuple(space),
        "settings": tuple(settings), "trials": trials, "seeds": seeds, "timesteps": timesteps,
        "eval_every": eval_every, "eval_episodes": eval_episodes, "threads": threads, "confidence": confidence,
        "confirm": confirm, "threshold": tuple(threshold), "margin": tuple(margin),
    }  # fmt: skip
    typed = {name: value for name, value in given.items() if value not in (None, ())}
    url = storage or f"sqlite:///{(folder / STORAGE).absolute()}"
    with studies.quiet():
        stored, database = _stored(folder, url, storage, resume)
        options = _options(typed, stored)
        plan = _plan(options)
        if not stored:
            spaces.check(spaces.distributions(plan.space), plan.settings, plan.env_id, plan.env_kwargs)
            _check_episodes_end(plan)
        runner: Engine = (
            RayEngine(ray_address, jobs, plan.threads) if engine == "ray" else LocalEngine(jobs, plan.threads)
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            database = database or studies.open_storage(url)
            if not stored:
                _begin(folder.name, database, plan, options)
            else:
                more = {**stored, "trials": options["trials"]}
                studies.load(folder.name, database).set_user_attr(studies.PLAN, more)
            study = _search(folder.name, database, plan, options, runner, jobs, console, live)
        finally:
            runner.stop()
        how = {"engine": engine, "jobs": jobs, "ray_address": ray_address}
        command = _command(options, storage, folder, {**how, "engine": engine if engine != "local" else None})
        return _conclude(study, plan, options, folder, command, console, live, how)


def _stored(
    folder: Path, url: str, storage: str | None, resume: bool
) -> tuple[dict[str, Any], optuna.storages.RDBStorage | None]:
    """The options of a study that was begun, empty for one that is new; and its storage, where there is one already."""
    if storage is None and not (folder / STORAGE).exists():
        if resume:
            raise ValueError(f"{folder} holds no study ({STORAGE}) to go on with: leave out --resume.")
        return {}, None
    database = studies.open_storage(url)
    known = folder.name in optuna.get_all_study_names(database)
    if known and not resume:
        raise ValueError(
            f"There is a study {folder.name!r} already: go on with it, or share it, with --resume; or name another "
            "folder with --out."
        )
    if not known:
        if resume:
            raise ValueError(f"{studies.hidden(url)} holds no study {folder.name!r}: leave out --resume.")
        return {}, database
    options: dict[str, Any] = dict(studies.load(folder.name, database).user_attrs.get(studies.PLAN, {}))
    if not options:
        raise ValueError(f"The study {folder.name!r} was not begun by `simple-ddpg tune`: name another folder.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}, database


def _options(typed: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    changed = [
        f"{name} was {stored[name]!r} and is now {value!r}"
        for name, value in typed.items()
        if stored
        and name not in FREE
        and (spaces.read_space(value) != stored[name] if name == "space" else value != stored[name])
    ]
    if changed:
        raise ValueError(
            f"The study was begun with other settings: {'; '.join(changed)}. Resume with those, or name another folder "
            "with --out."
        )
    options = {**DEFAULTS, **stored, **{name: value for name, value in typed.items() if not stored or name in FREE}}
    if not stored:
        options["space"] = spaces.read_space(options["space"])
        options.setdefault("eval_every", max(1, options["timesteps"] // 10))
    for name in ("trials", "timesteps", "eval_every", "eval_episodes", "threads"):
        if options[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {options[name]}.")
    if options["seeds"] < 2:
        raise ValueError(
            f"--seeds must be at least 2, got {options['seeds']}: one run says nothing about the spread, and a search "
            "by one seed finds lucky seeds. Three is a good number."
        )
    if options["eval_every"] > options["timesteps"]:
        raise ValueError(f"--eval-every must be at most --timesteps, got {options['eval_every']}: lower it.")
    if not 0.5 <= options["confidence"] < 1:
        raise ValueError(f"--confidence must be from 0.5 to below 1, got {options['confidence']}: 0.95 for example.")
    if options["confirm"] == 1 or not 0 <= options["confirm"] <= FIRST_SEED:
        raise ValueError(
            f"--confirm must be 0 or from 2 to {FIRST_SEED}, got {options['confirm']}: ten is a good number."
        )
    return options


def _plan(options: Mapping[str, Any]) -> Plan:
    names = ("env_id", "env_kwargs", "space", "seeds", "timesteps", "eval_every", "eval_episodes", "threads")
    return Plan(
        **{name: options[name] for name in names}, settings=tuple(options["settings"]), confidence=options["confidence"]
    )


def _check_episodes_end(plan: Plan) -> None:
    env = runs.EnvSettings(plan.env_id, kwargs=plan.env_kwargs)
    one = env.make_one()
    spec = one.spec
    one.close()
    if (spec is None or spec.max_episode_steps is None) and env.random_return(seed=0) is None:
        raise ValueError(
            f"{plan.env_id} sets no limit to an episode and no episode of random actions ended within 5,000 timesteps, "
            "so evaluation might never end: --env-kwargs max_episode_steps=1000, for example."
        )
    starts = spaces.arguments(plan.settings, {}, plan.env_id).get("learning_starts", 100)
    if starts >= plan.timesteps:
        raise ValueError(
            f"Nothing would be learned: learning_starts={starts} is not below --timesteps {plan.timesteps}. Give more "
            "timesteps, or --set learning_starts=100."
        )


def _begin(name: str, database: optuna.storages.RDBStorage, plan: Plan, options: Mapping[str, Any]) -> None:
    """A new study, whose first trial is the default's settings, as far as the space holds them."""
    study = optuna.create_study(study_name=name, storage=database, direction="maximize")
    study.set_user_attr(studies.PLAN, dict(options))
    found, _ = _default_of(plan)
    if found:
        study.enqueue_trial(found)


def _default_of(plan: Plan) -> tuple[dict[str, Any], bool]:
    return spaces.defaults(spaces.distributions(plan.space), plan.settings, plan.env_id, plan.env_kwargs)


def _search(
    name: str, database: optuna.storages.RDBStorage, plan: Plan, options: Mapping[str, Any], engine: Engine,
    jobs: int | None, console: "Console", live: bool,
) -> optuna.Study:  # fmt: skip
    study = studies.load(name, database)
    display = Display(console, live)

    def ended(trial: FrozenTrial) -> None:
        display.ended(trial, studies.load(name, database).get_trials(deepcopy=False))

    search = Search(plan, name, database, engine, jobs, ended)
    with display.shown():
        trials = study.get_trials(deepcopy=False)
        display.begin(trials, options["trials"], search.at_a_time, plan.seeds)
        search.run(options["trials"], options["confirm"] > 0, display.waiting)
    return study


def _conclude(
    study: optuna.Study, plan: Plan, options: Mapping[str, Any], folder: Path, command: str, console: "Console",
    live: bool, how: Mapping[str, Any],
) -> Tuned:  # fmt: skip
    trials = study.get_trials(deepcopy=False)
    over = studies.ended(trials)
    table = study.trials_dataframe(attrs=("number", "value", "duration", "params", "state"))
    experiment_folder.write_whole(folder / verdict.TRIALS, table.to_csv(index=False))
    failed = [trial for trial in over if studies.ERROR in trial.user_attrs]
    if over and len(failed) == len(over):
        error = failed[-1].user_attrs[studies.ERROR]
        console.print(error, markup=False, highlight=False)
        return Tuned(None, {}, None, ["Every trial failed."], [], folder, 1)
    if not options["confirm"]:
        said = ["Nothing was confirmed: a search alone flatters its best trial. --resume --confirm 10 does it."]
        return Tuned(None, {}, None, said, [], folder, 0)

    default, whole = _default_of(plan)
    texts = {
        verdict.name_of(trial): _texts(trial, plan) for trial in verdict.best_few(over, default if whole else None)
    }
    promised = {verdict.name_of(trial): trial.values[0] for trial in over if trial.values}
    status, confirmed, mean = 0, [], None
    if texts:
        confirmation = folder / CONFIRMATION
        try:
            with experiment_folder.locked(confirmation):
                pass
        except ValueError:
            said = [f"Another process confirms the best trials and will write {folder / verdict.PAGE}."]
            return Tuned(None, {}, None, said, [], folder, 0)
        status = _confirm(plan, options, texts, confirmation, console, live, how)
        experiment = read_experiment(confirmation)
        names = [name for name in experiment.plan["algorithms"] if name != verdict.DEFAULT]
        by_name = {verdict.name_of(trial): trial for trial in over}
        texts = {name: _texts(by_name[name], plan) for name in names}
        confirmed = verdict.confirm(experiment, {name: promised[name] for name in names})
        mean = verdict.mean_of_default(experiment)
    said = verdict.sentences(confirmed, options["confirm"]) if confirmed or not texts else [verdict.BROKEN]
    best = verdict.winner(confirmed)
    arguments = spaces.arguments(plan.settings, texts[best.name], plan.env_id) if best is not None else {}
    preset = _write_preset(folder / verdict.PRESET, plan, options, best, arguments) if best is not None else None
    pictures = verdict.draw(study, folder)
    title = f"Settings of SimpleDDPG for {plan.env_id.partition(':')[2] or plan.env_id}"
    shown = {each.name: texts[each.name] for each in confirmed}
    text = verdict.page(title, said, confirmed, shown, trials, pictures, _protocol(plan, options, command), mean)
    experiment_folder.write_whole(folder / verdict.PAGE, text)
    for sentence in said:
        console.print(f"- {sentence.replace('**', '')}", markup=False, highlight=False)
    better = best is not None and best.verdict == "better"
    return Tuned(better, arguments, preset, said, confirmed, folder, status)


def _texts(trial: FrozenTrial, plan: Plan) -> dict[str, str]:
    space = spaces.distributions(plan.space)
    return {name: spaces.as_text(trial.params[name], each) for name, each in space.items()}


def _confirm(
    plan: Plan, options: Mapping[str, Any], texts: Mapping[str, Mapping[str, str]], folder: Path, console: "Console",
    live: bool, how: Mapping[str, Any],
) -> int:  # fmt: skip
    """The default and the best few on fresh seeds, as one comparison; those confirmed before stay in it."""
    begun = (folder / experiment_folder.PLAN).exists()
    known = list(experiment_folder.read_plan(folder)["algorithms"]) if begun else []
    names = list(dict.fromkeys([*known, verdict.DEFAULT, *texts]))
    settings = [f"{name}.{each}" for name in names for each in plan.settings]
    settings += [f"{name}.{each}" for name in texts for each in spaces.assignments(texts[name])]
    request = comparison.Request(
        env=(plan.env_id,),
        env_kwargs=tuple(f"{name}={value!r}" for name, value in plan.env_kwargs.items()),
        algorithms=tuple(f"{name}=sb3_simple_ddpg:SimpleDDPG" for name in names),
        seeds=options["confirm"],
        first_seed=0,
        timesteps=plan.timesteps,
        settings=tuple(settings),
        eval_every=plan.eval_every,
        eval_episodes=plan.eval_episodes,
        threads=plan.threads,
        threshold=tuple(options["threshold"]),
        margin=tuple(options["margin"]),
    )
    return comparison.compare(request, folder, console, resume=begun, live=live, **how)


def _write_preset(
    path: Path, plan: Plan, options: Mapping[str, Any], best: Confirmed, arguments: Mapping[str, Any]
) -> Path:
    given = dict(arguments)
    normalize = bool(given.pop(presets.NORMALIZE, False))
    env = runs.EnvSettings(plan.env_id, kwargs=plan.env_kwargs).make_one()
    policy = runs.policy_for(env.observation_space)
    env.close()
    module, _, name = plan.env_id.rpartition(":")
    packages = f"{module} sb3_simple_ddpg.zoo".strip()
    digits = runs.digits_of([best.mean.estimate])
    comments = [
        f"Written by simple-ddpg tune. {best.sentence()}",
        f"{options['confirm']} fresh seeds, {plan.timesteps:,} timesteps: mean {best.mean.estimate:.{digits}f} (95 %: "
        f"{best.mean.low:.{digits}f} to {best.mean.high:.{digits}f}).",
        "",
        f"    simple-ddpg train --env {plan.env_id} --timesteps {plan.timesteps} --preset {path.name}",
        f"    python -m rl_zoo3.train --algo ddpg --env {name} -conf {path.name} --gym-packages {packages}",
    ]
    entry = zoo_file.entry(given, normalize, plan.timesteps, policy)
    zoo_file.write(path, plan.env_id, entry, comments)
    return path


def _command(options: Mapping[str, Any], storage: str | None, folder: Path, how: Mapping[str, Any]) -> str:
    """The whole search as one command; the user's own folders and passwords are nobody's business."""
    space = options["space"]
    shown = (
        ("default",)
        if space == spaces.read_space(("default",))
        else tuple(f"{name}={text}" for name, text in space.items())
    )
    values = {
        "env": options["env_id"],
        "env-kwargs": tuple(f"{name}={value!r}" for name, value in options["env_kwargs"].items()),
        **{name: options[name] for name in ("trials", "seeds", "timesteps")},
        "space": shown,
        "set": options["settings"],
        **{name: options[name] for name in ("eval_every", "eval_episodes", "threads", "confidence", *FREE[1:])},
        **how,
        "storage": None if storage is None else studies.hidden(storage),
        "out": folder.name,
    }
    words = ["simple-ddpg", "tune"]
    for name, value in values.items():
        if value not in (None, (), []):
            words += [f"--{name.replace('_', '-')}"]
            words += map(str, value) if isinstance(value, tuple | list) else [str(value)]
    return shlex.join(words)


def _protocol(plan: Plan, options: Mapping[str, Any], command: str) -> str:
    versions = {"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, "optuna")}}
    said = ", ".join(f"{name} {number}" for name, number in versions.items())
    where = machine()
    space = "\n".join(f"- `{name}`: {text}" for name, text in plan.space.items())
    level = plan.pruner().level
    return f"""```
{command}
```

{space}

- Each trial trains {plan.seeds} seeds, {FIRST_SEED} to {FIRST_SEED + plan.seeds - 1} in every trial, for
  {plan.timesteps:,} timesteps. It is worth the mean of their final returns. Optuna's TPE draws the settings; the first
  trial has the default's, as far as the space holds them.
- A trial is stopped where a paired one-sided t-test over its seeds finds it worse than the best trial so far at the
  same timestep: p at most {level:.2g} at each of {plan.looks} evaluations, {1 - plan.confidence:.2g} for all together.
- The {verdict.FEW} best trials and the default are run again on seeds 0 to {options["confirm"] - 1}, which the search
  did not see. p: two-sided Mann-Whitney tests against the default, Holm-corrected. *Better* or *worse*: p at most 0.05.
  *The same*: their means are shown to differ by less than a margin that was fixed before the runs. Otherwise it is
  *not to be told*.
- {where["processor"]}, cores: {where["cores"]}, {where["system"]}; {said}.
"""
