"""Many runs to records: what is refused, what is recorded, what survives. Not here: tables, pictures, statistics."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.experiment import algorithms, engines, experiment, runs
from sb3_simple_ddpg.experiment import folder as experiment_folder
from sb3_simple_ddpg.experiment.experiment import run_experiment
from sb3_simple_ddpg.experiment.worker import Job, execute, execute_or_explain
from sb3_simple_ddpg.exploration import ColoredNoise, OrnsteinUhlenbeck
from tests.environments import Bandit

BANDIT = "tests.environments:TestBandit-v0"
SMALL = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 500, "batch_size": 8, "learning_starts": 10}


class DrawsGlobally(Bandit):
    """Uses NumPy's global random stream, as careless environments do."""

    def reset(self, **kwargs):
        self.best = 1.0 + np.random.rand()
        return super().reset(**kwargs)


class Endless(Bandit):
    """Never ends."""

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


gym.register("TestDrawsGlobally-v0", DrawsGlobally)
gym.register("TestForEver-v0", Endless)


class Fails(SimpleDDPG):
    """Fails with seed 1, as a bug of the user's would."""

    def learn(self, *args, **kwargs):
        if self.seed == 1:
            raise ZeroDivisionError("seed 1 does not work")
        return super().learn(*args, **kwargs)


class AlwaysFails(SimpleDDPG):
    """Fails with every seed."""

    def learn(self, *args, **kwargs):
        raise ZeroDivisionError("no seed works")


class Dies(SimpleDDPG):
    """Seed 1 ends its process, as the kernel does when memory runs out; unless the file that `allow` names exists."""

    allow = Path(os.environ.get("TEST_DIES_ALLOW", "/nowhere"))

    def learn(self, *args, **kwargs):
        if self.seed == 1 and not self.allow.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().learn(*args, **kwargs)


class HereEngine:
    """Does the runs in this process, one after the other: the same code without the seconds that a process takes."""

    jobs = 1

    def __init__(self) -> None:
        self.done: list[Job] = []

    def run(self, job: Job):
        self.done.append(job)
        return execute_or_explain(cloudpickle.dumps(job))

    def stop(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch) -> HereEngine:
    engine = HereEngine()
    monkeypatch.setattr(experiment, "_engine", lambda *_: engine)
    return engine


def small(names=("simple_ddpg", "ddpg"), seeds=2, timesteps=40, **kwargs):
    kwargs.setdefault("settings", dict.fromkeys(dict.fromkeys(each.partition("=")[0] for each in names), SMALL))
    return run_experiment(list(names), [BANDIT], seeds, timesteps, eval_every=20, eval_episodes=3, **kwargs)


def test_records_are_tidy_and_complete(here):
    found = small()
    assert list(found.episodes.columns) == [
        "algorithm", "env_id", "seed", "timestep", "episode_return", "wall_time_s",
    ]  # fmt: skip
    # An episode of the bandit is one step: 40 of them in each of 2 x 2 runs.
    assert len(found.episodes) == 160
    assert found.episodes.groupby(["algorithm", "seed"]).timestep.apply(list).tolist() == [list(range(1, 41))] * 4
    # Evaluations before training, at 20 and at 40.
    assert found.evaluations.groupby(["algorithm", "seed"]).timestep.apply(list).tolist() == [[0, 20, 40]] * 4
    assert found.runs.final_return.tolist() == found.evaluations[found.evaluations.timestep == 40].mean_return.tolist()
    assert (found.runs.wall_time_s > 0).all()
    assert found.failures == []


def test_algorithms_take_turns_seed_by_seed(here):
    small()
    assert [(job.seed, job.algorithm.name) for job in here.done] == [
        (0, "simple_ddpg"), (0, "ddpg"), (1, "simple_ddpg"), (1, "ddpg"),
    ]  # fmt: skip


def test_with_identical_settings_simple_ddpg_and_sb3_s_ddpg_do_the_same(here):
    """Same seed, noise and settings: the same actions in all 40 steps, up to rounding, and the same evaluations."""
    found = small(settings={"simple_ddpg": SMALL, "ddpg": {**SMALL, "action_noise": 0.1}})
    by_name = {name: frame.episode_return.to_numpy() for name, frame in found.episodes.groupby("algorithm")}
    assert by_name["ddpg"] == pytest.approx(by_name["simple_ddpg"], abs=1e-4)
    assert found.plan["differing"] == {BANDIT: {}}


def test_out_of_the_box_the_noise_differs_and_is_said():
    chosen = algorithms.find_algorithms(["simple_ddpg", "ddpg", "sac"])
    effective = {each.name: algorithms.effective_settings(each, BANDIT, {}) for each in chosen}
    differing = algorithms.differing(effective, {each.name: {} for each in chosen})
    assert differing["action_noise"] == {"simple_ddpg": 0.1, "ddpg": None, "sac": None}
    assert differing["net_arch"] == {"simple_ddpg": [400, 300], "ddpg": [400, 300], "sac": [256, 256]}
    assert differing["learning_rate"] == {"simple_ddpg": 1e-3, "ddpg": 1e-3, "sac": 3e-4}
    assert differing.keys() == {"action_noise", "net_arch", "learning_rate"}


def test_a_setting_that_only_one_has_is_listed_where_it_was_set():
    chosen = algorithms.find_algorithms({"plain": SimpleDDPG, "clipped": SimpleDDPG, "td3": TD3})
    given = {"plain": {}, "clipped": {"max_grad_norm": 1.0}, "td3": {}}
    effective = {each.name: algorithms.effective_settings(each, BANDIT, given[each.name]) for each in chosen}
    differing = algorithms.differing(effective, given)
    assert differing["max_grad_norm"] == {"plain": None, "clipped": 1.0, "td3": "-"}
    assert "policy_delay" not in differing  # nobody set it: it is what TD3 is


def test_evaluation_leaves_the_random_streams_alone(here):
    """Evaluated often or seldom, a run is the same, in an environment that draws from NumPy's global stream too."""
    env_id = "tests.test_experiment:TestDrawsGlobally-v0"
    often, seldom = (
        run_experiment(["simple_ddpg"], [env_id], 1, 60, settings={"simple_ddpg": SMALL}, eval_every=every)
        for every in (3, 60)
    )
    assert len(often.evaluations) == 21
    assert len(seldom.evaluations) == 2
    assert often.episodes.episode_return.tolist() == seldom.episodes.episode_return.tolist()


def test_a_run_is_that_of_learn_with_the_same_seed(here):
    found = small(["simple_ddpg"], seeds=[3])
    model = SimpleDDPG("MlpPolicy", Bandit(), seed=3, **SMALL).learn(40)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    assert found.episodes.episode_return.tolist() == pytest.approx(returns, abs=1e-6)  # Monitor rounds to 6 digits


def test_evaluations_start_alike_for_all_algorithms_and_differ_between_seeds(here):
    """Before training the bandit's return tells the untrained actor; Pendulum's tells the start as well."""
    found = run_experiment(
        ["simple_ddpg", "ddpg"], ["Pendulum-v1"], 2, 20, settings={"simple_ddpg": SMALL, "ddpg": SMALL}, eval_every=20
    )
    before = found.evaluations[found.evaluations.timestep == 0]
    one, two = (before[before.algorithm == name].mean_return.tolist() for name in ("simple_ddpg", "ddpg"))
    assert one == pytest.approx(two)  # one seed gives both the same weights, too
    assert one[0] != one[1]


def test_seconds_leave_evaluation_out(here, monkeypatch):
    def slow(*args, **kwargs):
        time.sleep(0.5)
        return [1.0], [1]

    monkeypatch.setattr(runs, "evaluate_policy", slow)
    begin = time.perf_counter()
    found = small(["simple_ddpg"], seeds=1)
    others = time.perf_counter() - begin - found.runs.evaluation_time_s[0]
    assert found.runs.evaluation_time_s[0] >= 1.5  # three evaluations
    assert found.episodes.wall_time_s.max() <= found.runs.wall_time_s[0] < others  # on a busy machine too


#: Half a second of a processor's time, whatever else runs there.
WORKS = "import time\nwhile time.process_time() < 0.5: pass"


class StartsAProcess(SimpleDDPG):
    """Works in another process while it trains, as a compiler does."""

    def learn(self, *args, **kwargs):
        subprocess.run([sys.executable, "-S", "-c", WORKS], check=True)
        return super().learn(*args, **kwargs)


class HasAWorker(SimpleDDPG):
    """Works in a process that PyTorch's compiler keeps."""

    def learn(self, *args, **kwargs):
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.process_pool().submit(exec, WORKS).result()
        return super().learn(*args, **kwargs)


class StartsAProcessForEvaluation(Bandit):
    """Works in another process at each reset."""

    def reset(self, **kwargs):
        subprocess.run([sys.executable, "-S", "-c", WORKS], check=True)
        return super().reset(**kwargs)


@pytest.mark.parametrize("name", ["StartsAProcess", pytest.param("HasAWorker", marks=pytest.mark.long)])
def test_processor_seconds_count_the_processes_that_a_run_starts(here, name):
    found = small([f"a=tests.test_experiment:{name}", "b=sb3_simple_ddpg:SimpleDDPG"], seeds=1)
    assert found.failures == []
    seconds = found.runs.set_index("algorithm").cpu_time_s
    assert seconds["a"] >= 0.5
    # A clock tick is a hundredth of a second.
    assert 0 < seconds["b"] < 0.5


def test_processor_seconds_leave_out_the_processes_of_an_evaluation(here):
    gym.register("TestStartsAProcess-v0", StartsAProcessForEvaluation, max_episode_steps=10)
    chosen = algorithms.find_algorithms(["simple_ddpg"])[0]
    job = Job(chosen, SMALL, BANDIT, 0, 20, 20, 1)
    make = runs.EnvSettings.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            runs.EnvSettings, "make", lambda self, n_envs: make(runs.EnvSettings("TestStartsAProcess-v0"), n_envs)
        )
        record = execute(job)
    assert record["evaluation_time_s"] >= 1.0  # two evaluations of one reset at least
    assert record["cpu_time_s"] < 0.5


def test_dictionaries_of_the_caller_stay_as_they_are(here):
    """SB3's DDPG writes n_critics into policy_kwargs; the next algorithm must not find it there."""
    shared = {"policy_kwargs": {"net_arch": [8]}, "replay_buffer_kwargs": {}, "learning_starts": 10, "n_steps": 2}
    small(["ddpg", "simple_ddpg"], settings={"ddpg": shared, "simple_ddpg": shared})
    assert shared == {
        "policy_kwargs": {"net_arch": [8]}, "replay_buffer_kwargs": {}, "learning_starts": 10, "n_steps": 2,
    }  # fmt: skip


def test_a_failed_run_is_reported_and_the_others_go_on(here, tmp_path):
    found = small(["broken=tests.test_experiment:Fails"], seeds=3, folder=tmp_path)
    assert [failure["seed"] for failure in found.failures] == [1]
    assert "ZeroDivisionError: seed 1 does not work" in found.failures[0]["error"]
    assert found.runs.seed.tolist() == [0, 2]
    assert [path.name for path in (tmp_path / "failed").iterdir()] == [
        "broken--tests.environments-TestBandit-v0--seed1.json"
    ]


def test_arguments_of_an_environment_are_those_of_training_and_evaluation(here, tmp_path):
    kwargs = {BANDIT: {"best": 1.0, "low": -2.0}}
    found = small(["simple_ddpg"], seeds=1, env_kwargs=kwargs, folder=tmp_path)
    model = SimpleDDPG("MlpPolicy", Bandit(**kwargs[BANDIT]), seed=0, **SMALL).learn(40)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    assert found.episodes.episode_return.tolist() == pytest.approx(returns, abs=1e-6)  # Monitor rounds to 6 digits
    action, _ = model.predict(np.zeros(1, np.float32))
    # The last evaluation stands before the last update, of which there were 30. With best=2 it would be one less.
    assert found.runs.final_return.item() == pytest.approx(1 - abs(action.item() - 1.0), abs=0.1)
    assert found.plan["env_kwargs"] == kwargs
    # Uniform actions in [-2, 3]: the mean of |a - 1| is (9 + 4) / 2 / 5 = 1.3, within four standard errors of 20.
    assert found.plan["random_returns"][BANDIT] == pytest.approx(-0.3, abs=4 * 0.85 / 20**0.5)
    with pytest.raises(ValueError, match=r"env_kwargs of .* was .*'best': 1.0.* and is now .*'best': 0.5"):
        small(["simple_ddpg"], seeds=1, env_kwargs={BANDIT: {"best": 0.5}}, folder=tmp_path, resume=True)


def test_an_argument_of_one_environment_goes_before_one_of_all_wherever_it_stands():
    typed = iter(["Pendulum-v1.g=5", "g=3", "max_episode_steps=4"])  # read once, as from the command line
    assert algorithms.env_kwargs_from(typed, ["Pendulum-v1"]) == {"Pendulum-v1": {"g": 5, "max_episode_steps": 4}}


GOAL = "tests.environments:TestGoal-v0"


def test_success_is_recorded_where_the_environment_tells(here, tmp_path):
    """The bandit's one action is good in all episodes of an evaluation or in none."""
    told = run_experiment(["ddpg"], [GOAL], 2, 40, settings={"ddpg": SMALL}, eval_every=20, folder=tmp_path)
    evaluations = told.evaluations
    assert evaluations.success_rate.tolist() == [float(each >= 0.5) for each in evaluations.mean_return]
    assert told.runs.final_success_rate.tolist() == evaluations.success_rate[evaluations.timestep == 40].tolist()
    silent = small(["ddpg"], seeds=1)
    assert silent.evaluations.success_rate.isna().all()
    assert silent.runs.final_success_rate.isna().all()
    # Records of before success was noted.
    for path in (tmp_path / "results").iterdir():
        record = json.loads(path.read_text())
        record["evaluations"] = [evaluation[:3] for evaluation in record["evaluations"]]
        path.write_text(json.dumps(record))
    old = experiment.read_experiment(tmp_path)
    assert old.evaluations.mean_return.tolist() == evaluations.mean_return.tolist()
    assert old.evaluations.success_rate.isna().all()


def test_a_folder_of_before_there_were_arguments_of_environments_goes_on(here, tmp_path):
    small(["simple_ddpg"], seeds=1, folder=tmp_path)
    plan = json.loads((tmp_path / "config.json").read_text())
    del plan["env_kwargs"]
    (tmp_path / "config.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="env_kwargs of"):
        small(["simple_ddpg"], seeds=2, env_kwargs={BANDIT: {"best": 1.0}}, folder=tmp_path, resume=True)
    assert len(small(["simple_ddpg"], seeds=2, folder=tmp_path, resume=True).runs) == 2


def test_resume_runs_what_failed_again_and_nothing_else(here, tmp_path, monkeypatch):
    names = ["broken=tests.test_experiment:Fails"]
    small(names, seeds=3, folder=tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    monkeypatch.setattr(Fails, "learn", SimpleDDPG.learn)
    here.done.clear()
    found = small(names, seeds=3, folder=tmp_path, resume=True)
    assert [job.seed for job in here.done] == [1]
    assert found.runs.seed.tolist() == [0, 1, 2]
    assert list((tmp_path / "failed").iterdir()) == []
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    assert {name: after[name] for name in before} == before


def test_resume_may_add_seeds_and_algorithms(here, tmp_path):
    small(["simple_ddpg"], seeds=1, folder=tmp_path)
    here.done.clear()
    found = small(seeds=2, folder=tmp_path, resume=True)
    assert sorted(job.key for job in here.done) == [
        ("ddpg", BANDIT, 0), ("ddpg", BANDIT, 1), ("simple_ddpg", BANDIT, 1),
    ]  # fmt: skip
    assert len(found.runs) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": 60}, "timesteps was 40 and is now 60"),
        ({"seeds": [1]}, "seeds lacks 0"),
        ({"names": ["ddpg"]}, "algorithms lacks simple_ddpg"),
        ({"settings": {"simple_ddpg": {**SMALL, "gamma": 0.5}}}, "simple_ddpg.gamma was 0.99 and is now 0.5"),
        ({"names": ["simple_ddpg=stable_baselines3:DDPG"]}, "simple_ddpg was 'sb3_simple_ddpg:SimpleDDPG' and is now"),
    ],
)
def test_resume_with_other_settings_is_refused_with_the_difference(here, tmp_path, changes, message):
    first = {"names": ["simple_ddpg"], "seeds": [0, 1], "folder": tmp_path}
    small(**first)
    here.done.clear()
    with pytest.raises(ValueError, match=message):
        small(**{**first, "resume": True, **changes})
    assert here.done == []


def test_a_folder_that_holds_a_comparison_is_not_written_into(here, tmp_path):
    small(["simple_ddpg"], seeds=1, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a comparison already: go on with --resume"):
        small(["simple_ddpg"], seeds=1, folder=tmp_path)


def test_resume_without_a_comparison_is_refused(here, tmp_path):
    with pytest.raises(ValueError, match="holds no comparison that could be resumed"):
        small(["simple_ddpg"], seeds=1, folder=tmp_path, resume=True)


def test_two_processes_cannot_write_into_one_folder(here, tmp_path):
    with (
        experiment_folder.locked(tmp_path),
        pytest.raises(ValueError, match="Another process writes into"),
    ):
        small(["simple_ddpg"], seeds=1, folder=tmp_path)
    assert here.done == []
    small(["simple_ddpg"], seeds=1, folder=tmp_path)  # free again
    assert len(here.done) == 1


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_file(here, tmp_path, monkeypatch):
    small(["simple_ddpg"], seeds=1, folder=tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\): free space"):
        experiment_folder.save_record(tmp_path, {"algorithm": "a", "env_id": "b", "seed": 0})
    assert len(list((tmp_path / "results").iterdir())) == 1
    monkeypatch.undo()
    # What a killed process left behind goes when the folder is next used.
    (tmp_path / "results" / ".x.json.123.tmp").write_text("half")
    with experiment_folder.locked(tmp_path):
        assert len(list((tmp_path / "results").iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_a_clear_error(here, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        small(["simple_ddpg"], seeds=1, folder=tmp_path / "file" / "below")
    assert here.done == []


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json holds no record of a run: delete it"):
        experiment_folder.read_records(tmp_path)


@pytest.mark.parametrize("python", [[], pytest.param(["-O"], marks=pytest.mark.long)])
def test_files_that_hold_something_else_are_refused_without_assert_too(python, tmp_path):
    """`python -O` leaves out every assert."""
    code = """
import sys
from pathlib import Path
from sb3_simple_ddpg.experiment import algorithms
from sb3_simple_ddpg.experiment import folder as experiment_folder
for folder in map(Path, sys.argv[1:]):
    for read in (
        lambda: experiment_folder.read_records(folder),
        lambda: experiment_folder.read_plan(folder),
        lambda: algorithms.parse_value("action_noise", "OrnsteinUhlenbeck(0.5) * 2"),
    ):
        try:
            print(read())
        except ValueError as error:
            print(error)
"""
    no_returns = '{"seed": 1, "algorithm": "a", "env_id": "b"}'
    wrong = [("{}", "{}"), ("[1]", "[1]"), ('{"seed": 1}', '{"seeds": [1]}'), (no_returns, "null")]
    folders = [tmp_path / str(number) for number in range(len(wrong))]
    for folder, (record, plan) in zip(folders, wrong, strict=True):
        (folder / "results").mkdir(parents=True)
        (folder / "results" / "x.json").write_text(record)
        (folder / "config.json").write_text(plan)
    command = [sys.executable, *python, "-c", code, *map(str, folders)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 12
    for number in range(4):
        assert "x.json holds no record of a run: delete it" in said[3 * number]
        assert "holds no comparison that could be resumed" in said[3 * number + 1]
        assert "write OrnsteinUhlenbeck(sigma=0.5)" in said[3 * number + 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithms": ["simple_dpg"]}, "no algorithm 'simple_dpg': did you mean simple_ddpg"),
        ({"algorithms": []}, "at least one algorithm"),
        ({"algorithms": ["ddpg", "ddpg"]}, "given twice: the same algorithm under other settings needs a name"),
        ({"algorithms": ["x=nowhere:DDPG"]}, "'nowhere:DDPG' cannot be imported"),
        ({"algorithms": ["x=stable_baselines3.DDPG"]}, "written module:Class, got 'stable_baselines3.DDPG'"),
        ({"algorithms": ["x=tests.environments:Bandit"]}, "is no algorithm of Stable-Baselines3's kind"),
        ({"algorithms": ["a/b=stable_baselines3:DDPG"]}, "must be made of letters"),
        ({"algorithms": ["all=stable_baselines3:DDPG"]}, "not be 'all'"),
        ({"algorithms": ["dqn=stable_baselines3:DQN"]}, "dqn .* cannot run in"),
        ({"env_ids": ["Pendulum-v9"]}, "'Pendulum-v9' cannot be made"),
        ({"env_ids": ["nowhere:Pendulum-v1"]}, "'nowhere:Pendulum-v1' cannot be made"),
        ({"env_ids": ["CartPole-v1"]}, "simple_ddpg .* cannot run in CartPole-v1: .* must be a Box"),
        ({"env_ids": ["CartPole-v1"], "algorithms": ["td3"]}, "td3 .* cannot run in CartPole-v1"),
        ({"env_ids": []}, "at least one environment"),
        ({"env_ids": [BANDIT, BANDIT]}, "is given twice"),
        ({"env_ids": ["tests.test_experiment:TestForEver-v0"]}, "might never end: --env-kwargs max_episode_steps=1000"),
        ({"seeds": [1, 1]}, "The seed 1 is given twice"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [-1]}, "at least 0, got -1"),
        ({"timesteps": 0}, "--timesteps must be at least 1, got 0"),
        ({"timesteps": 100}, "learning_starts=100 is not below --timesteps 100"),
        ({"eval_every": 501}, r"at most --timesteps \(500\), got 501"),
        ({"eval_every": 0}, "--eval-every must be at least 1"),
        ({"eval_episodes": 0}, "--eval-episodes must be at least 1"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"jobs": 0}, "--jobs must be at least 1"),
        ({"ray_address": "auto"}, "is for --engine ray"),
        ({"env_kwargs": {BANDIT: {"bst": 1}}}, "has no argument 'bst': did you mean best"),
        ({"env_kwargs": {"Ant-v5": {}}}, "env_kwargs name 'Ant-v5', which takes no part"),
        ({"settings": {"ddpg": {}}}, "settings name 'ddpg', which takes no part"),
        ({"settings": {"simple_ddpg": {"gamma": 2}}}, "gamma must be in"),
        ({"settings": {"simple_ddpg": {"policy_delay": 2}}}, "TD3 has it"),
    ],
)
def test_bad_input_is_refused_before_any_run(here, tmp_path, changes, message):
    given = {"algorithms": ["simple_ddpg"], "env_ids": [BANDIT], "seeds": 2, "timesteps": 500, **changes}
    with pytest.raises(ValueError, match=message):
        run_experiment(**given, folder=tmp_path / "out")
    assert here.done == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_every_algorithm_known_by_name_learns(name: str, here):
    found = run_experiment([name], [BANDIT], 1, 25, settings={name: SMALL}, eval_episodes=1, eval_every=25)
    assert found.failures == []
    assert found.plan["algorithms"] == {name: algorithms.ALGORITHMS[name]}
    assert found.runs.timesteps.tolist() == [25]


def test_an_algorithm_that_learns_in_rounds_gets_no_more_than_the_budget(here):
    """PPO collects 64 steps at a time; with a budget of 100 it goes to 128, of which 28 do not count."""
    found = run_experiment(
        {"ppo": PPO}, [BANDIT], 1, 100, settings={"ppo": {"n_steps": 64, "batch_size": 64}}, eval_every=50
    )
    assert found.evaluations.timestep.tolist() == [0, 50, 100]
    assert found.episodes.timestep.max() == 100


@pytest.mark.parametrize("scale", [0, 0.1])
def test_noise_as_a_number_becomes_sb3_s_noise(scale):
    ddpg = algorithms.find_algorithms(["ddpg"])[0]
    model = algorithms.build(ddpg, Bandit(), {**SMALL, "action_noise": scale}, seed=0)
    assert isinstance(model.action_noise, NormalActionNoise)
    assert model.action_noise._sigma.tolist() == [scale]
    assert model.action_noise._mu.tolist() == [0.0]


def test_noise_that_wanders_becomes_sb3_s_noise():
    td3 = algorithms.find_algorithms(["td3"])[0]
    model = algorithms.build(td3, Bandit(), {**SMALL, "action_noise": OrnsteinUhlenbeck(0.5)}, seed=0)
    assert isinstance(model.action_noise, OrnsteinUhlenbeckActionNoise)
    assert (model.action_noise._sigma.item(), model.action_noise._theta) == (0.5, 0.15)
    colored = algorithms.parse_value("action_noise", "ColoredNoise(0.3, beta=0.5)")
    assert colored == ColoredNoise(sigma=0.3, beta=0.5)
    model = algorithms.build(td3, Bandit(), {**SMALL, "action_noise": colored}, seed=0)
    assert model.action_noise.setting == colored


def test_settings_are_read_as_typed_and_the_named_goes_before_all():
    chosen = algorithms.find_algorithms(["simple_ddpg", "fast=sb3_simple_ddpg:SimpleDDPG", "td3"])
    settings = algorithms.settings_from(
        chosen,
        [
            "td3.gamma=0.5", "all.gamma=0.9", "policy_kwargs.net_arch=[64,64]", "fast.compile_updates=True",
            "action_noise=OrnsteinUhlenbeck(sigma=0.5)", "td3.policy_kwargs.activation_fn=torch.nn.Tanh",
        ],
    )  # fmt: skip
    noise = OrnsteinUhlenbeck(0.5)
    both = {"gamma": 0.9, "policy_kwargs": {"net_arch": [64, 64]}, "action_noise": noise}
    assert settings == {
        "simple_ddpg": both,
        "fast": {**both, "compile_updates": True},
        "td3": {
            "gamma": 0.5, "action_noise": noise,
            "policy_kwargs": {"net_arch": [64, 64], "activation_fn": th.nn.Tanh},
        },
    }  # fmt: skip


def test_noise_and_learning_rates_may_be_a_linear_schedule():
    chosen = algorithms.find_algorithms(["simple_ddpg", "td3"])
    typed = ["simple_ddpg.action_noise=LinearSchedule(0.3, 0.1, 1.0)", "learning_rate=LinearSchedule(1e-3, 0, 0.5)"]
    settings = algorithms.settings_from(chosen, typed)
    models = [algorithms.build(each, Bandit(), {**SMALL, **settings[each.name]}, seed=0) for each in chosen]
    for model in models:
        # Half of the progress is over where 0.5 remains: there end_fraction=0.5 has reached its end.
        assert [model.lr_schedule(remaining) for remaining in (1.0, 0.75, 0.5)] == pytest.approx([1e-3, 5e-4, 0])
    models[0]._update_current_progress_remaining(50, 100)
    assert models[0].action_noise.scale == pytest.approx(0.2)
    with pytest.raises(TypeError, match="is for SimpleDDPG alone: give a number"):
        algorithms.build(chosen[1], Bandit(), settings["simple_ddpg"], seed=0)


SCALED = "sb3_simple_ddpg.scaled_pendulum:SimpleDDPG/PendulumScaled-v1"


def test_scaled_pendulum_is_pendulum_with_observations_times_1000():
    plain, scaled = gym.make("Pendulum-v1"), gym.make(SCALED)
    (first, _), (second, _) = plain.reset(seed=3), scaled.reset(seed=3)
    assert second.tolist() == pytest.approx((1_000 * first).tolist())
    assert scaled.observation_space.high.tolist() == [1_000, 1_000, 8_000]
    assert (scaled.observation_space.dtype, second.dtype) == (np.float32, np.float32)
    action = np.array([1.5], np.float32)
    one, two = plain.step(action), scaled.step(action)
    assert (two[0].tolist(), two[1:4]) == (pytest.approx((1_000 * one[0]).tolist()), one[1:4])
    assert scaled.spec.max_episode_steps == 200


@pytest.mark.parametrize("name", ["simple_ddpg", "td3"])
def test_observations_are_normalised_for_training_and_evaluated_with_its_statistics(here, monkeypatch, name):
    """Any algorithm; statistics come from training alone, so a run is the same evaluated often or seldom."""
    seen = []

    def spy(model, env, **kwargs):
        training = model.get_vec_normalize_env()
        before = training.obs_rms.mean.tolist()
        found = evaluate_policy(model, env, **kwargs)
        assert (env.training, env.norm_reward, training.norm_reward) == (False, False, False)
        assert env.obs_rms.mean.tolist() == training.obs_rms.mean.tolist() == before
        seen.append(training.obs_rms.count)
        return found

    evaluate_policy = runs.evaluate_policy
    monkeypatch.setattr(runs, "evaluate_policy", spy)
    settings = {name: {**SMALL, "normalize_observations": True}}
    often, seldom = (
        run_experiment([name], [SCALED], 1, 220, settings=settings, eval_every=every, eval_episodes=1)
        for every in (110, 220)
    )
    # One observation at the reset and one at each timestep, on top of the 1e-4 that VecNormalize starts with.
    assert seen == pytest.approx([1, 111, 221, 1, 221], abs=1e-3)
    assert often.episodes.episode_return.tolist() == seldom.episodes.episode_return.tolist()
    assert often.episodes.episode_return[0] < -100  # raw rewards
    assert often.plan["settings"][SCALED][name]["normalize_observations"] is True


def test_an_arm_with_normalised_observations_is_shown_beside_one_without(here):
    names = ["simple_ddpg", "normalised=sb3_simple_ddpg:SimpleDDPG"]
    settings = {"simple_ddpg": SMALL, "normalised": {**SMALL, "normalize_observations": True}}
    found = small(names, settings=settings, seeds=1)
    assert found.plan["differing"][BANDIT] == {"normalize_observations": {"simple_ddpg": False, "normalised": True}}
    with pytest.raises(ValueError, match="normalize_observations must be True or False, got 'true'"):
        small(names, settings={"normalised": {**SMALL, "normalize_observations": "true"}}, seeds=1)


def test_presets_are_for_simple_ddpg_unless_an_algorithm_is_named():
    chosen = algorithms.find_algorithms(["simple_ddpg", "ddpg"])
    alone = algorithms.settings_from(chosen, ["simple_ddpg.gamma=0.9"], ["fujimoto2018"])
    assert (alone["simple_ddpg"]["batch_size"], alone["simple_ddpg"]["gamma"], alone["ddpg"]) == (100, 0.9, {})
    both = algorithms.settings_from(chosen, [], ["rl-zoo", "ddpg=rl-zoo"], "MountainCarContinuous-v0")
    assert both["ddpg"] == both["simple_ddpg"]
    assert both["ddpg"]["action_noise"] == OrnsteinUhlenbeck(0.5)


@pytest.mark.parametrize(
    ("assignments", "preset_names", "message"),
    [
        (["gama=1"], [], "simple_ddpg has no argument 'gama': did you mean gamma"),
        (["dpg.gamma=1"], [], "'dpg' is neither an algorithm of this comparison nor an argument .*: did you mean ddpg"),
        (["all.policy_delay=2"], [], "simple_ddpg has no argument 'policy_delay'"),
        (["gamma"], [], "takes algorithm.name=value, got 'gamma'"),
        (["seed=1"], [], "--set seed cannot be given: use --seeds"),
        (["ddpg.tensorboard_log=x"], [], "cannot be given"),
        (["action_noise=OrnsteinUhlenbeck(sigm=1)"], [], r"write OrnsteinUhlenbeck\(sigma=0.5\)"),
        (["action_noise=OrnsteinUhlenbeck(sigma=-1)"], [], "sigma must be a finite number of at least 0"),
        (["action_noise=LinearSchedule(1)"], [], r"write LinearSchedule\(0.3, 0.05, 1.0\)"),
        (["normalise_observations=True"], [], "did you mean normalize_observations"),
        ([], ["nope"], "no preset 'nope'"),
        ([], ["td3=pendulum"], "no algorithm 'td3' takes part"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(assignments, preset_names, message):
    chosen = algorithms.find_algorithms(["simple_ddpg", "ddpg"])
    with pytest.raises(ValueError, match=message):
        algorithms.settings_from(chosen, assignments, preset_names)


def test_a_preset_without_anybody_to_take_it_is_refused():
    with pytest.raises(ValueError, match="no SimpleDDPG takes part"):
        algorithms.settings_from(algorithms.find_algorithms(["ddpg"]), [], ["pendulum"])


def test_an_evaluation_that_is_no_number_fails_its_run():
    class NoNumber(Bandit):
        def step(self, action):
            observation, _, terminated, truncated, info = super().step(action)
            return observation, float("nan"), terminated, truncated, info

    gym.register("TestNoNumber-v0", NoNumber, max_episode_steps=10, disable_env_checker=True)
    chosen = algorithms.find_algorithms(["simple_ddpg"])[0]
    job = Job(chosen, SMALL, "TestNoNumber-v0", 0, 20, 20, 1)
    with pytest.raises(FloatingPointError, match="timestep 0 gave the returns"):
        execute(job)


@pytest.mark.parametrize("stopped_at", [20, 50])  # before the first checkpoint; after the second
def test_a_run_with_checkpoints_that_was_stopped_ends_like_one_that_was_not(stopped_at: int, tmp_path):
    evaluated = []

    def stop_once(seed, evaluation):
        evaluated.append(evaluation[0])
        if evaluated.count(stopped_at) == 1 and evaluation[0] == stopped_at:
            raise KeyboardInterrupt
        return True

    chosen = algorithms.find_algorithms(["simple_ddpg"])[0]
    arguments = {**SMALL, "normalize_observations": True, "action_noise": ColoredNoise(0.3), "n_steps": 3}
    job = Job(chosen, arguments, BANDIT, 0, 60, 10, 3, after_evaluation=stop_once, checkpoint_every=20)
    with pytest.raises(KeyboardInterrupt):
        execute(replace(job, checkpoints=tmp_path / "stopped"))
    found = execute(replace(job, checkpoints=tmp_path / "stopped"))
    # Timestep 0 is not asked after. What was evaluated after the checkpoint at 40 is evaluated again.
    assert evaluated == {20: [10, 20, 10, 20, 30, 40, 50, 60], 50: [10, 20, 30, 40, 50, 50, 60]}[stopped_at]
    expected = execute(replace(job, checkpoints=tmp_path / "at-once", after_evaluation=None))
    for name, seconds in (("episodes", 2), ("evaluations", 1)):
        without = [[[*each[:seconds], *each[seconds + 1 :]] for each in record[name]] for record in (found, expected)]
        assert without[0] == without[1]
    times = [each[1] for each in found["evaluations"]]
    assert len(times) == 7
    assert times == sorted(times)
    # Finished, but stopped before anybody had its record: nothing is left to be trained.
    again = execute(replace(job, checkpoints=tmp_path / "at-once", after_evaluation=None))
    assert again["evaluations"] == expected["evaluations"]


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r'pip install "sb3-simple-ddpg\[ray\]"'):
        engines.RayEngine()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "localhost:port"])
def test_a_cluster_that_is_not_there_is_refused_with_nothing_written(address: str, tmp_path):
    with pytest.raises(ValueError, match=f"--ray-address {address} cannot be reached .* Start a cluster"):
        small(folder=tmp_path / "out", engine="ray", ray_address=address)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_each_run_has_a_process_and_a_dying_one_takes_no_other_along(tmp_path, monkeypatch):
    names = ["simple_ddpg", "dies=tests.test_experiment:Dies"]
    found = small(names, folder=tmp_path, jobs=2)
    assert [(failure["algorithm"], failure["seed"]) for failure in found.failures] == [("dies", 1)]
    assert "ended by SIGKILL. Out of memory is the usual cause" in found.failures[0]["error"]
    assert len(found.runs) == 3
    assert os.getpid() not in set(found.runs.pid)
    assert found.runs.pid.nunique() == 3
    assert (found.runs.threads == 1).all()
    # The same run in this process: a process of its own changes nothing.
    job = Job(algorithms.find_algorithms(["simple_ddpg"])[0], SMALL, BANDIT, 0, 40, 20, 3)
    record = json.loads(
        (tmp_path / "results" / "simple_ddpg--tests.environments-TestBandit-v0--seed0.json").read_text()
    )
    assert [episode[:2] for episode in record["episodes"]] == [episode[:2] for episode in execute(job)["episodes"]]
    allowed = tmp_path / "allowed"
    allowed.write_text("")
    monkeypatch.setenv("TEST_DIES_ALLOW", str(allowed))
    again = small(names, folder=tmp_path, jobs=2, resume=True)
    assert again.failures == []
    assert set(again.runs.pid) > set(found.runs.pid)


@pytest.mark.long
def test_a_ray_cluster_of_two_nodes_does_the_runs_on_both(tmp_path):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1)
        found = small(["simple_ddpg"], folder=tmp_path, engine="ray", ray_address=cluster.address)
        assert found.failures == []
        assert set(found.runs.node) == {cluster.head_node.node_id, other.node_id}
        # Records came back to this process, which wrote them.
        assert len(list((tmp_path / "results").iterdir())) == 2
        assert not ray.is_initialized()
    finally:
        ray.shutdown()
        cluster.shutdown()
