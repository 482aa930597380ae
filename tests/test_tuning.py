"""`simple-ddpg tune`: what is drawn, when a trial is stopped, what survives a kill, what the verdict says.

Not here: comparisons (`test_comparison.py`), engines (`test_experiment.py`), and how well it tunes (docs/tune.md).
"""

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib
import numpy as np
import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from sb3_simple_ddpg import presets
from sb3_simple_ddpg.command_line.cli import main
from sb3_simple_ddpg.experiment import experiment, report
from sb3_simple_ddpg.experiment.post import LocalPost, RayPost
from sb3_simple_ddpg.experiment.worker import Job, execute
from sb3_simple_ddpg.exploration import OrnsteinUhlenbeck
from sb3_simple_ddpg.sb3 import zoo_file
from sb3_simple_ddpg.tuning import pruner, search, tune, tuning, verdict
from sb3_simple_ddpg.tuning import space as spaces
from sb3_simple_ddpg.tuning import study as studies
from tests.test_comparison import made_up
from tests.test_experiment import BANDIT, SMALL, HereEngine
from tests.test_hyperparams import BUILD

FOLDER = Path(__file__).parent.parent / "docs" / "tune"
TINY = ["policy_kwargs.net_arch=[8]", "buffer_size=500", "batch_size=8", "learning_starts=10"]


# --- spaces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4..3e-3", FloatDistribution(1e-4, 3e-3, log=True)),  # more than a decade
        ("3e-4..3e-3", FloatDistribution(3e-4, 3e-3, log=True)),  # a decade
        ("0.9..0.999", FloatDistribution(0.9, 0.999)),
        ("-1..100", IntDistribution(-1, 100)),  # no logarithm below 0
        ("1..5", IntDistribution(1, 5)),
        ("16 .. 512", IntDistribution(16, 512, log=True)),
        ("0..1.0", FloatDistribution(0.0, 1.0)),
        ("[64,64] | [400,300]", CategoricalDistribution(["[64,64]", "[400,300]"])),
        ("None", CategoricalDistribution(["None"])),
    ],
)
def test_a_range_is_read_as_typed(text, expected):
    assert spaces.distributions({"x": text}) == {"x": expected}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["nope"], "no space of that name. Write default"),
        (["gone.yml"], "gone.yml cannot be read"),
        (["gamma=0.9..0.5"], "gamma=0.9..0.5: the first number must be lower"),
        (["gamma=a..b"], "'a' is no number"),
        (["gamma=0.9|0.9"], "each choice must be there once"),
        (["gamma="], "each choice must be there once"),
        (["gama=0.5..0.9"], "no argument 'gama': did you mean gamma"),
        (["gamma=0.5..2"], "gamma must be in"),
        (["learning_starts=10|100"], None),
        (["replay_buffer_class=NStepReplayBuffer|ReplayBuffer"], "cannot be written to a file of RL Zoo's form"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(items, message):
    def read():
        spaces.check(spaces.distributions(spaces.read_space(items)), TINY, BANDIT, {})

    if message is None:
        read()
    else:
        with pytest.raises(ValueError, match=message):
            read()


def test_the_default_space_holds_the_default_and_single_lines_may_be_changed(tmp_path):
    ranges = spaces.read_space(["default"])
    assert set(ranges) == {
        "learning_rate", "critic_learning_rate", "tau", "batch_size", "policy_kwargs.net_arch", "action_noise",
        "n_steps", "normalize_observations", "policy_kwargs.last_layer_init",
    }  # fmt: skip
    start, whole = spaces.defaults(spaces.distributions(ranges), [], BANDIT, {})
    assert whole
    assert start == {
        "learning_rate": 1e-3, "critic_learning_rate": 1e-3, "tau": 0.005, "batch_size": "256",
        "policy_kwargs.net_arch": "[400,300]", "action_noise": 0.1, "n_steps": 1,
        "normalize_observations": "False", "policy_kwargs.last_layer_init": "None",
    }  # fmt: skip
    (tmp_path / "own.yml").write_text("tau: 0.01..0.02\n")
    own = spaces.read_space(["default", str(tmp_path / "own.yml"), "n_steps=1..2"])
    assert (own["tau"], own["n_steps"], own["batch_size"]) == ("0.01..0.02", "1..2", ranges["batch_size"])
    start, whole = spaces.defaults(spaces.distributions(own), [], BANDIT, {})
    assert (whole, "tau" in start, start["n_steps"]) == (False, False, 1)


def test_numbers_have_four_digits_and_stay_within_their_range():
    distribution = FloatDistribution(0.5, 0.99996)
    assert spaces.as_text(0.123456789, FloatDistribution(0.0, 1.0)) == "0.1235"
    assert spaces.as_text(0.999943, distribution) == "0.9999"
    assert spaces.as_text(0.999957, distribution) == "0.99996"  # four digits of it are 1, which is too much
    given = spaces.arguments(["tau=0.5"], {"tau": "0.1235", "policy_kwargs.net_arch": "[8]"}, BANDIT)
    assert given == {"tau": 0.1235, "policy_kwargs": {"net_arch": [8]}}


# --- when a trial is stopped -----------------------------------------------------------------------------------------


def curves(*returns: float, at: int = 10) -> dict[str, dict[str, float]]:
    return {str(1000 + number): {str(at): value} for number, value in enumerate(returns)}


def test_p_is_that_of_the_paired_t_test_worked_out_by_hand():
    """Differences -1, -2, -3: t = -2 sqrt(3); of two degrees of freedom P(T <= t) = 1/2 + t / (2 sqrt(2 + t^2))."""
    p = pruner.p_worse(curves(9, 18, 27), curves(10, 20, 30), 10)
    assert p == pytest.approx(0.5 - 12**0.5 / (2 * 14**0.5))  # 0.0371
    assert pruner.p_worse(curves(10, 20, 30), curves(9, 18, 27), 10) == pytest.approx(1 - p)
    assert pruner.p_worse(curves(1, 2, 3), curves(2, 3, 4), 10) == 0.0
    assert pruner.p_worse(curves(1, 2, 3), curves(1, 2, 3), 10) == 1.0
    assert pruner.p_worse(curves(1), curves(100), 10) == 1.0  # one pair has no spread
    assert pruner.p_worse(curves(1, 2, 3), curves(9, 9, 9, at=20), 10) == 1.0  # never at another timestep


@pytest.mark.parametrize(("looks", "stops"), [(1, True), (2, False)])
def test_the_level_is_shared_by_all_looks(looks, stops):
    """p is 0.037: below 0.05 of one look, above 0.025 of each of two."""
    study = optuna.create_study(direction="maximize", pruner=pruner.PairedSeedsPruner(0.95, looks))
    first = study.ask()
    first.report(1.0, 10)
    first.set_user_attr(pruner.CURVES, curves(10, 20, 30))
    assert not first.should_prune()  # there is nobody to compare it with
    study.tell(first, 20.0)
    second = study.ask()
    second.set_user_attr(pruner.CURVES, curves(9, 18, 27))
    second.report(1.0, 10)
    assert second.should_prune() is stops


@pytest.mark.parametrize(("behind", "low", "high"), [(0.0, 0.0, 0.05), (-20.0, 0.9, 1.0)])
def test_settings_as_good_as_the_best_are_stopped_no_more_often_than_stated(behind, low, high):
    """Nine looks at three seeds whose returns wander, as those of one run do; `behind` is in standard deviations."""
    random = np.random.default_rng(0)
    level = pruner.PairedSeedsPruner(0.95, 9).level
    stopped = 0
    for _ in range(100):
        own, best = np.cumsum(random.normal(size=(2, 3, 9)), axis=2) / np.sqrt(np.arange(1, 10))
        looks = [pruner.p_worse(curves(*own[:, at] + behind), curves(*best[:, at]), 10) for at in range(9)]
        stopped += min(looks) <= level
    assert low <= stopped / 100 <= high + 0.05  # two standard errors of 100 cases


# --- the study -------------------------------------------------------------------------------------------------------


def test_interrupted_trials_are_put_back_once_with_the_runs_that_were_finished():
    study = optuna.create_study(direction="maximize")
    space = {"tau": FloatDistribution(0.0, 1.0)}
    params = {"tau": 0.25}
    run = {"evaluations": []}
    for attributes in (
        {},
        {"error": "why"},
        {"surplus": True},
        {"run 1000": run, "curves": {}, "begun": True, "stopped": {}},
    ):
        study.add_trial(create_trial(state=TrialState.FAIL, params=params, distributions=space, user_attrs=attributes))
    with studies.quiet():
        studies.put_back(study)
        studies.put_back(study)
    new = study.get_trials()[4:]
    assert [trial.user_attrs for trial in new] == [{"instead_of": 0}, {"instead_of": 3, "run 1000": run}]
    assert [(trial.state, trial.params) for trial in new] == [(TrialState.WAITING, params)] * 2
    # The failed one and the two that wait take a place; with two places there is none for the last.
    assert [trial.number for trial in studies.counting(study.get_trials())] == [1, 4, 5]
    assert [studies.is_surplus(number, study.get_trials(), 2) for number in (1, 4, 5)] == [False, False, True]
    # Two processes have put the same trial back at one moment.
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"instead_of": 3}))
    assert studies.is_surplus(6, study.get_trials(), 10)


def test_no_two_trials_draw_the_same_whichever_process_draws():
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage)
    drawn = []
    for _ in range(6):
        trial = studies.load("s", storage).ask({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
        drawn += trial.params.values()
    assert len(set(drawn)) == 12


# --- trials, without training ----------------------------------------------------------------------------------------


class Played:
    """An engine whose runs train nothing: an evaluation at timestep t of a setting is gamma t and a little more."""

    jobs = 3

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.done: list[tuple[float, int, int]] = []  # gamma, seed, where it ended
        self.wait_to_be_stopped: tuple[float, ...] = ()  # at timestep 50
        self.hold = lambda job, done: None

    def run(self, job: Job):
        assert job.after_evaluation is not None
        gamma, evaluations = job.arguments["gamma"], []
        self.hold(job, self.done)
        for timestep in range(0, job.timesteps + 1, job.eval_every):
            if gamma == 0.125 and job.seed == 1001 and timestep >= 50:
                return {"error": "Traceback\nFloatingPointError: no number"}
            value = timestep * (gamma + 0.01 * (hash((gamma, job.seed)) % 7))
            evaluations.append([timestep, 0.0, [value, value], None])
            goes_on = not timestep or job.after_evaluation(job.seed, evaluations[-1])
            deadline = time.monotonic() + 60
            while goes_on and gamma in self.wait_to_be_stopped and timestep == 50 and time.monotonic() < deadline:
                time.sleep(0.01)
                goes_on = job.after_evaluation(job.seed, evaluations[-1])
            if not goes_on:
                break
            time.sleep(self.pause)
        self.done.append((gamma, job.seed, evaluations[-1][0]))
        return {"evaluations": evaluations, "wall_time_s": 1.0, "host": "h"}

    def stop(self) -> None:
        pass


@pytest.fixture
def played(monkeypatch) -> Played:
    engine = Played()
    monkeypatch.setattr(tuning, "LocalEngine", lambda *_: engine)
    monkeypatch.setattr(search, "POLL", 0.005)
    return engine


def tuned(folder: Path, **kwargs):
    given = {"trials": 4, "seeds": 3, "timesteps": 100, "confirm": 0, "settings": TINY, "space": ["gamma=0.99|0.25"]}
    return tune(BANDIT, folder, **({**given, **kwargs} if not kwargs.get("resume") else kwargs))


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    with studies.quiet():
        return studies.load(folder.name, studies.open_storage(f"sqlite:///{folder / 'study.db'}")).get_trials()


def test_a_worse_setting_is_stopped_and_an_equal_one_is_not(played, tmp_path, capsys):
    played.wait_to_be_stopped = (0.25,)
    tuned(tmp_path / "s", trials=6)
    trials = trials_of(tmp_path / "s")
    assert trials[0].params == {"gamma": "0.99"}  # the default begins
    states = {params: {t.state for t in trials if t.params["gamma"] == params} for params in ("0.99", "0.25")}
    assert states == {"0.99": {TrialState.COMPLETE}, "0.25": {TrialState.PRUNED}}
    for trial in trials:
        if trial.state is TrialState.PRUNED:
            assert trial.user_attrs["stopped"]["at"] <= 50
            assert trial.user_attrs["stopped"]["p"] <= 0.05 / 9
            assert trial.user_attrs["stopped"]["best"] in [t.number for t in trials if t.params["gamma"] == "0.99"]
    assert {end for gamma, _, end in played.done if gamma == 0.99} == {100}
    assert max(end for gamma, _, end in played.done if gamma == 0.25) <= 50
    assert {seed for _, seed, _ in played.done} == {1000, 1001, 1002}
    printed = capsys.readouterr().out
    assert "6 trials of 3 seeds, 1 at a time" in printed
    assert "worse than trial 0 (p = " in printed
    assert "of search left" in printed


def test_a_failure_ends_its_trial_and_not_the_study(played, tmp_path, capsys):
    found = tuned(tmp_path / "s", trials=5, space=["gamma=0.99|0.125"])
    assert found.status == 0
    trials = trials_of(tmp_path / "s")
    assert {(trial.params["gamma"], trial.state) for trial in trials} == {
        ("0.99", TrialState.COMPLETE), ("0.125", TrialState.FAIL),
    }  # fmt: skip
    assert "failed (seed 1001: FloatingPointError: no number)" in capsys.readouterr().out
    assert tuned(tmp_path / "t", trials=2, space=["gamma=0.125"]).status == 1


def test_stopped_and_resumed_no_finished_run_is_repeated(played, tmp_path, monkeypatch):
    """Ctrl-C when two of the three runs of the second trial are finished."""
    arrived, released = threading.Event(), threading.Event()

    def hold(job, done):
        if len(done) == 5 and not arrived.is_set():
            arrived.set()
            released.wait(10)
            raise RuntimeError("The comparison was stopped.")  # as LocalEngine does

    def wait(*args, **kwargs):
        if threading.current_thread() is threading.main_thread() and arrived.wait(0.2):
            time.sleep(0.1)  # for the records to be stored
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = search.wait
    played.hold, played.stop = hold, released.set
    monkeypatch.setattr(search, "wait", wait)
    monkeypatch.setattr(search._Lent, "jobs", 1, raising=False)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "s", jobs=1, trials=3)
    before = list(played.done)
    assert len(before) == 5
    monkeypatch.setattr(search, "wait", original)
    played.hold, played.stop = lambda job, done: None, lambda: None
    tuned(tmp_path / "s", resume=True, jobs=1)
    assert len(played.done) == 9  # three trials of three seeds
    (stand_in,) = (trial for trial in trials_of(tmp_path / "s") if "instead_of" in trial.user_attrs)
    gamma = float(stand_in.params["gamma"])
    assert [each[:2] for each in before[3:]] == [(gamma, 1000), (gamma, 1001)]
    assert played.done[5][:2] == (gamma, 1002)
    assert len(studies.ended(trials_of(tmp_path / "s"))) == 3
    tuned(tmp_path / "s", resume=True)
    assert len(played.done) == 9
    tuned(tmp_path / "s", resume=True, trials=4)
    assert len(played.done) == 12


def test_a_trial_of_a_process_that_is_not_heard_of_is_taken_over(played, tmp_path, monkeypatch):
    tuned(tmp_path / "s", trials=1)
    with studies.quiet():
        storage = studies.open_storage(f"sqlite:///{tmp_path / 's' / 'study.db'}")
        study = studies.load("s", storage)
        with pytest.warns(UserWarning, match=r"supposed to be used with Study\.optimize"):
            trial = study.ask({"gamma": CategoricalDistribution(["0.99", "0.25"])})
        trial.set_user_attr("begun", True)
        storage.record_heartbeat(trial._trial_id)
    monkeypatch.setattr(studies, "GRACE", 10_000)  # whatever else this machine does
    tuned(tmp_path / "s", resume=True, trials=2, confirm=0)
    assert len(played.done) == 3  # the other's place is taken as long as it may live
    monkeypatch.setattr(studies, "GRACE", 1)
    time.sleep(2.1)  # the database counts in whole seconds
    tuned(tmp_path / "s", resume=True)
    assert len(played.done) == 6
    assert [trial.user_attrs.get("instead_of") for trial in trials_of(tmp_path / "s")] == [None, None, 1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seeds": 1}, "--seeds must be at least 2, got 1"),
        ({"trials": 0}, "--trials must be at least 1"),
        ({"confirm": 1}, "--confirm must be 0 or from 2"),
        ({"confidence": 1.0}, "--confidence must be from 0.5"),
        ({"eval_every": 101}, "at most --timesteps"),
        ({"settings": []}, "learning_starts=100 is not below --timesteps 100"),
        ({"settings": ["gama=1"]}, "did you mean gamma"),
        ({"ray_address": "auto"}, "is for --engine ray"),
        ({"storage": "nonsense"}, "--storage nonsense cannot be opened"),
        ({"env_kwargs": {"bst": 1}}, "did you mean best"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(played, tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tuned(tmp_path / "s", **kwargs)
    assert not (tmp_path / "s").exists()
    assert played.done == []


def test_a_study_goes_on_as_it_was_begun_or_not_at_all(played, tmp_path):
    with pytest.raises(ValueError, match="holds no study"):
        tuned(tmp_path / "s", resume=True)
    tuned(tmp_path / "s", trials=1)
    with pytest.raises(ValueError, match="There is a study 's' already"):
        tuned(tmp_path / "s")
    with pytest.raises(ValueError, match="timesteps was 100 and is now 50"):
        tuned(tmp_path / "s", resume=True, timesteps=50)
    with pytest.raises(ValueError, match=r"space was .* and is now"):
        tuned(tmp_path / "s", resume=True, space=["gamma=0.5|0.9"])
    assert len(played.done) == 3


# --- with training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A whole search by the command line, its runs in this process."""
    engine, out = HereEngine(), tmp_path_factory.mktemp("tuned") / "found"
    args = ["tune", "--env", BANDIT, "--timesteps", "30", "--eval-every", "15", "--eval-episodes", "1"]
    args += ["--trials", "3", "--seeds", "2", "--confirm", "2", "--set", *TINY, "--margin", f"{BANDIT}=0.1"]
    args += ["--space", "learning_rate=1e-4..1e-2", "normalize_observations=False|True", "n_steps=1..3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "LocalEngine", lambda *_: engine)
        patch.setattr(experiment, "_engine", lambda *_: engine)
        patch.setattr(search, "POLL", 0.01)
        patch.setattr(report, "draw", lambda *_: {})
        assert main([*args, "--confidence", "0.999", "--out", str(out)]) == 0
        first = list(engine.done)
        assert main(["tune", "--resume", "--out", str(out)]) == 0
        assert len(engine.done) == len(first)
    return out, first


def test_search_and_confirmation_share_no_seed(result):
    _, jobs = result
    searched = [job for job in jobs if job.algorithm.name == "simple_ddpg"]
    confirmed = [job for job in jobs if job.algorithm.name != "simple_ddpg"]
    assert {job.seed for job in searched} == {1000, 1001}
    assert {job.seed for job in confirmed} == {0, 1}
    # The default's own trial was the first; it is confirmed as the default.
    assert (len(searched), len(confirmed)) == (6, 6)
    assert searched[0].arguments["learning_rate"] == 0.001
    assert searched[0].arguments["n_steps"] == 1
    arguments = {job.algorithm.name: job.arguments for job in confirmed}
    assert arguments["default"] == {
        "policy_kwargs": {"net_arch": [8]}, "buffer_size": 500, "batch_size": 8, "learning_starts": 10,
    }  # fmt: skip
    assert arguments["trial-1"] in [job.arguments for job in searched]


def test_the_page_shows_the_verdict_the_optimism_and_how_it_was_done(result):
    out, _ = result
    page = (out / "summary.md").read_text()
    for part in (
        "**Not better than the default**, as far as 2 fresh seeds show",
        "| default | - |",
        "not to be told |",
        "Optimism of the search: its best trial",
        "3 trials: 3 came to their end",
        "--space learning_rate=1e-4..1e-2",
        "p at most 0.001 at each of 1 evaluations",
        "optuna ",
    ):
        assert part in page, part
    for name in verdict.PICTURES:
        assert f"({name}.png)" in page
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "trials.csv").read_text().splitlines()) == 4
    assert (out / "confirmation" / "summary.md").exists()


def test_drawing_a_study_leaves_the_style_of_other_pictures_as_it_was(tmp_path):
    """Optuna's pictures set Matplotlib's style for the whole process."""
    study = optuna.create_study(direction="maximize")
    for value in (1.0, 2.0, 3.0):
        study.add_trial(create_trial(value=value, params={"x": value}, distributions={"x": FloatDistribution(0, 5)}))
    before = dict(matplotlib.rcParams)
    assert verdict.draw(study, tmp_path) == [*verdict.PICTURES]
    assert dict(matplotlib.rcParams) == before


def test_the_preset_is_what_was_confirmed_and_train_and_compare_take_it(result, monkeypatch, tmp_path, capsys):
    out, jobs = result
    name, settings = presets.choose_preset(str(out / "preset.yml"), BANDIT)
    assert name == str(out / "preset.yml")
    assert settings.pop("policy") == "MlpPolicy"
    same = [job.algorithm.name for job in jobs if {**job.arguments} == settings or _equal(job.arguments, settings)]
    assert any(each.startswith("trial-") for each in same)
    small = ["--timesteps", "20", "--eval-episodes", "1", "--no-progress", "--out", str(tmp_path / "run")]
    assert main(["train", "--env", BANDIT, "--preset", name, *small]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["arguments"]["learning_rate"] == settings["learning_rate"]
    engine = HereEngine()
    monkeypatch.setattr(experiment, "_engine", lambda *_: engine)
    monkeypatch.setattr(report, "draw", lambda *_: {})
    compared = ["--env", BANDIT, "--timesteps", "20", "--seeds", "2", "--algorithms", "simple_ddpg", "ddpg"]
    out = ["--out", str(tmp_path / "compared"), "--set", "ddpg.learning_starts=10"]
    assert main(["compare", *compared, "--preset", f"simple_ddpg={name}", *out]) == 0
    assert _equal(engine.done[0].arguments, settings)


def _equal(arguments, settings) -> bool:
    left_out = {"policy": "MlpPolicy", "normalize_observations": False}
    return {**left_out, **arguments} == {**left_out, **settings}


def test_a_run_ends_where_it_is_told_to(tmp_path):
    post = LocalPost(tmp_path)
    job = Job(spaces.simple_ddpg(), SMALL, BANDIT, 7, 40, 10, 1, after_evaluation=post)
    assert [each[0] for each in execute(job)["evaluations"]] == [0, 10, 20, 30, 40]
    taken = post.take()
    assert [(seed, evaluation[0]) for seed, evaluation in taken] == [(7, 10), (7, 20), (7, 30), (7, 40)]
    assert post.take() == []
    post.stop()
    assert [each[0] for each in execute(job)["evaluations"]] == [0, 10]


# --- the verdict -----------------------------------------------------------------------------------------------------


def judged(**finals: list[float]):
    made = made_up(
        {"default": finals.pop("default"), **{name.replace("_", "-"): each for name, each in finals.items()}}
    )
    made.plan["margins"] = {"Pendulum-v1": 100.0}
    promised = {name.replace("_", "-"): max(each) for name, each in finals.items()}
    confirmed = verdict.confirm(made, promised)
    return confirmed, verdict.sentences(confirmed, 10)


def test_the_verdict_is_better_the_same_or_not_to_be_told():
    default = list(np.linspace(-400.0, -300.0, 10))
    better = list(np.linspace(-160.0, -140.0, 10))
    noisy = list(np.linspace(-1000.0, 100.0, 10))
    confirmed, said = judged(default=default, trial_1=better, trial_2=[each + 1 for each in default], trial_3=noisy)
    assert [(each.name, each.said) for each in confirmed] == [
        ("trial-1", "better"), ("trial-2", "the same"), ("trial-3", "not to be told"),
    ]  # fmt: skip
    assert said[0] == "**Better than the default: trial-1**, shown on 10 fresh seeds."
    # The best of the search is the noisy one: 100 promised, the mean of its fresh runs -450.
    assert "Optimism of the search: its best trial, trial-3, reached 100.0" in said[-1]
    assert said[-1].endswith("550.0 less.")
    assert verdict.winner(confirmed).name == "trial-1"
    confirmed, said = judged(default=better, trial_1=default)
    assert said[0] == "**Not better than the default**, as far as 10 fresh seeds show."
    assert "trial-1 is worse than the default" in said[1]
    assert verdict.sentences([], 10) == [verdict.NOBODY]
    assert verdict.winner([]) is None


def test_holm_takes_back_what_one_of_several_trials_shows_by_chance():
    """Four against four, all separated: p = 2 / 70 alone; of two tests the smallest p possible is 4 / 70."""
    low = [-400.0, -300.0, -200.0, -100.0]
    assert judged(default=low, trial_1=[each + 500 for each in low])[0][0].verdict == "better"
    both = judged(default=low, trial_1=[each + 500 for each in low], trial_2=[each + 400 for each in low])[0]
    assert [each.verdict for each in both] == ["too few runs"] * 2


# --- files of RL Zoo's form ------------------------------------------------------------------------------------------


def test_a_preset_file_gives_back_what_was_written(tmp_path):
    relu = spaces.arguments([], {"policy_kwargs.activation_fn": "Tanh", "policy_kwargs.net_arch": "[8]"}, BANDIT)
    for arguments, normalize in (
        ({"learning_rate": 3e-5, "action_noise": 0.25, "n_steps": 3, "train_freq": (1, "episode")}, True),
        ({**relu, "action_noise": OrnsteinUhlenbeck(0.5)}, False),
        ({"action_noise": None, "policy_kwargs": {"last_layer_init": None, "net_arch": {"pi": [8], "qf": [4]}}}, False),
    ):
        path = tmp_path / "preset.yml"
        zoo_file.write(path, f"module:{'X-v0'}", zoo_file.entry(arguments, normalize, 100), ["why"])
        assert path.read_text().startswith("# why\nX-v0:\n  n_timesteps: 100\n")
        assert zoo_file.read(path, "module:X-v0") == ({"policy": "MlpPolicy", **arguments}, normalize)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("normalize: true", "would normalise rewards too"),
        ("n_envs: 4", "n_envs=4: leave it out, and use --n-envs"),
        ("noise_type: pink", "noise_type='pink' is unknown"),
        ("policy_kwargs: \"dict(net_arch=__import__('os').getcwd())\"", "cannot be read"),
        ("policy_kwargs: dict(activation_fn=nn.Nope)", "no layer nn.Nope"),
    ],
)
def test_what_only_rl_zoo_has_is_refused_and_nothing_is_executed(tmp_path, entry, message):
    path = tmp_path / "preset.yml"
    path.write_text(f"X-v0:\n  {entry}\n")
    with pytest.raises(ValueError, match=message):
        presets.choose_preset(str(path), "X-v0")
    with pytest.raises(ValueError, match="has no entry for Y-v0, nor a default: it has X-v0"):
        presets.choose_preset(str(path), "Y-v0")


def test_rl_zoo_s_own_entry_is_the_preset_of_that_name():
    """The numbers of presets.RL_ZOO, which are typed from that file."""
    zoo = pytest.importorskip("rl_zoo3")
    path = Path(zoo.__path__[0]) / "hyperparams" / "ddpg.yml"
    path = path if path.exists() else Path(zoo.__path__[0]).parent / "hyperparams" / "ddpg.yml"
    found, normalize = zoo_file.read(path, "Pendulum-v1")
    expected = presets.RL_ZOO["Pendulum-v1"]
    assert {name: found[name] for name in expected} == expected
    assert not normalize


@pytest.mark.slow
def test_rl_zoo_builds_what_the_preset_says(tmp_path):
    arguments = {"learning_rate": 3e-4, "critic_learning_rate": 2e-3, "action_noise": 0.25, "n_steps": 3}
    arguments["policy_kwargs"] = {"net_arch": [8], "last_layer_init": 0.003}
    zoo_file.write(tmp_path / "p.yml", "Pendulum-v1", zoo_file.entry(arguments, True, 777), [])
    command = [sys.executable, "-c", BUILD, str(tmp_path / "p.yml"), "Pendulum-v1"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])["Pendulum-v1"]
    assert {name: found[name] for name in ("n_timesteps", "noise", "noise_std", "layers", "rate", "critic_rate")} == {
        "n_timesteps": 777, "noise": "NormalActionNoise", "noise_std": 0.25, "layers": [8], "rate": 3e-4,
        "critic_rate": 2e-3,
    }  # fmt: skip
    assert (found["normalised"], found["n_steps"], found["class"]) == (True, 3, "SimpleDDPG")


# --- several processes -----------------------------------------------------------------------------------------------

#: A process that shares a study of `Played` runs, and notes each that is finished; "new" begins it, and stays in the
#: middle of its second trial until somebody kills it.
SHARES = """
import sys, time
from pathlib import Path
from sb3_simple_ddpg.tuning import search, study, tune, tuning
from tests.test_tuning import TINY, BANDIT, Played

folder, log, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "resume"

class Noted(Played):
    def run(self, job):
        while not resume and len(self.done) == 4:
            time.sleep(1)
        record = super().run(job)
        with log.open("a") as file:
            file.write(f"{job.arguments['gamma']} {job.seed} {len(record['evaluations'])}\\n")
        return record

tuning.LocalEngine = lambda *_: Noted(0.03)
search.POLL, study.HEARTBEAT, study.GRACE = 0.005, 1, 6
given = {"trials": 5, "seeds": 3, "timesteps": 100, "settings": TINY, "space": ["gamma=0.5..0.99"]}
tune(BANDIT, folder, confirm=0, confidence=0.9999, jobs=1, resume=resume, **({} if resume else given))
"""


@pytest.mark.long
def test_processes_share_a_study_and_one_that_is_killed_loses_no_finished_run(tmp_path):
    def start(log: str, how: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SHARES, str(tmp_path / "s"), str(tmp_path / log), how]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})

    def lines(*logs: str) -> list[str]:
        paths = [tmp_path / log for log in logs if (tmp_path / log).exists()]
        return [line for path in paths for line in path.read_text().splitlines()]

    def wait_for(condition) -> None:
        deadline = time.monotonic() + 200
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    killed = start("a", "new")
    other = None
    try:
        wait_for(lambda: len(lines("a")) == 4)  # in the middle of a trial
        other = start("b", "resume")
        wait_for(lambda: lines("b"))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert other.wait(200) == 0
        # Without patience it leaves the dead one's trial alone; a third takes it over.
        time.sleep(7.5)  # its last sign of life is then older than GRACE
        assert start("c", "resume").wait(200) == 0
    finally:
        for process in (killed, other):
            if process is not None:
                process.kill()
                process.wait()
    trials = trials_of(tmp_path / "s")
    over = studies.ended(trials)
    assert len(over) == 5
    assert all(trial.state is TrialState.COMPLETE for trial in over)
    assert len({trial.params["gamma"] for trial in over}) == 5
    done = [line for line in lines("a", "b", "c") if line.endswith(" 11")]
    assert len(done) == len(set(done)) == 15


@pytest.mark.long
def test_a_ray_cluster_does_the_trials_and_tells_a_run_to_stop(tmp_path):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    found = tune(
        BANDIT, tmp_path / "s", trials=2, seeds=2, timesteps=30, eval_every=10, eval_episodes=1, settings=TINY,
        space=["learning_rate=1e-4..1e-2"], confirm=0, engine="ray", jobs=2,
    )  # fmt: skip
    assert found.status == 0
    trials = trials_of(tmp_path / "s")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert all(trial.user_attrs["run 1000"]["node"] for trial in trials)
    assert not ray.is_initialized()
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        post = RayPost()
        call = ray.remote(lambda post, evaluation: post(5, evaluation))
        assert ray.get(call.remote(post, [10, 0.0, [1.0], None])) is True
        post.stop()
        assert ray.get(call.remote(post, [20, 0.0, [2.0], None])) is False
        assert post.take() == [(5, [10, 0.0, [1.0], None]), (5, [20, 0.0, [2.0], None])]
        assert post.take() == []
        post.close()
    finally:
        ray.shutdown()


def test_without_optuna_the_error_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in [name for name in sys.modules if name.startswith("sb3_simple_ddpg.tuning")]:
        monkeypatch.delitem(sys.modules, name)
    package = importlib.import_module("sb3_simple_ddpg")
    monkeypatch.delattr(package, "tuning")
    assert main(["tune", "--out", "nowhere"]) == 2
    assert 'pip install "sb3-simple-ddpg[tune]"' in capsys.readouterr().err


def test_the_page_says_what_the_records_say():
    spec = importlib.util.spec_from_file_location("tune_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, mark, written = module.PAGE.read_text("utf-8").partition(module.MARK)
    assert mark
    assert written.strip() == module.found().strip()


def test_the_default_space_is_a_file_of_the_package():
    assert yaml.safe_load(spaces.SPACES["default"].read_text())["n_steps"] == "1..5"
