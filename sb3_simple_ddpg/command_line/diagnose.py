"""`simple-ddpg diagnose`. Not here: the faults and their cures (`diagnosis/diagnosis.py`)."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch as th
import tyro
from stable_baselines3.common.vec_env import VecEnv

from sb3_simple_ddpg.command_line import options
from sb3_simple_ddpg.command_line.options import Assignments
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.safety import mistakes
from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

if TYPE_CHECKING:
    from sb3_simple_ddpg.diagnosis.diagnosis import Finding


def diagnose(
    what: tyro.conf.Positional[str],
    env_kwargs: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    preset: str | None = None,
    n_envs: int = 1,
    wrapper: tuple[str, ...] = (),
    normalize: bool = False,
    set: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    threads: int = 1,
    seed: int = 20_000,
) -> int:
    """
    What is likely to keep an agent from learning: a table of what was measured, why it matters, and the cure.

    :param what: folder that `simple-ddpg train` wrote, whose agent plays; or the name of an environment, in which an
        agent that is yet to be trained takes random actions
    :param env_kwargs: an argument of the environment, as for train
    :param preset: of the agent to be trained, as for train
    :param n_envs: number of environments side by side, as for train
    :param wrapper: of each environment, as for train
    :param normalize: wrap the environments in VecNormalize, as for train
    :param set: an argument of SimpleDDPG, as for train
    :param threads: PyTorch's threads, as for train
    :param seed: of the environments
    :return: exit status: 1 when there is a finding
    """
    from sb3_simple_ddpg.diagnosis.diagnosis import diagnose as find_faults

    given, folder = locals(), Path(what)
    logged: dict[str, float] = {}
    if folder.is_dir():
        options.refuse_others(diagnose, given, ("what", "seed"), "A run has its own settings")
        config = runs.read_config(folder)
        arguments = config["arguments"]
        th.set_num_threads(config["threads"])
        model = runs.load_run(folder, config["env"].n_envs, seed, buffer_size=runs.SAMPLE)
        logged = runs.logged_last(folder, ("train/action_saturation", "train/q_mean", "rollout/q_bias"))
    else:
        _, arguments, settings = options.choose_settings(
            what, env_kwargs, preset, n_envs, False, wrapper, normalize, set, threads
        )
        try:
            env: VecEnv = settings.make()
        except ValueError as error:
            if not mistakes.is_said_to_user(error):
                raise
            raise ValueError(f"{what!r} is neither the folder of a run nor an environment. {error}") from error
        env = settings.normalized(env, arguments.get("gamma", 0.99))
        arguments = {"policy": runs.policy_for(env.observation_space), **arguments}
        with mistakes.settings_refused(arguments):
            model = SimpleDDPG(env=env, **{**arguments, "seed": seed, "device": "cpu", "buffer_size": runs.SAMPLE})
    runs.fill_buffer(model, runs.SAMPLE, episodes=10, random=not folder.is_dir())
    findings = find_faults(model, arguments.get("buffer_size", 1_000_000))
    assert model.env is not None
    model.env.close()
    _print_findings(findings, what, model.replay_buffer.size() * model.n_envs if model.replay_buffer else 0)
    for name, value in logged.items():
        print(f"Logged at the end of training: {name} {value:.3g}")
    return 1 if findings else 0


def _print_findings(findings: "list[Finding]", what: str, timesteps: int) -> None:
    from rich.table import Table

    from sb3_simple_ddpg.diagnosis.diagnosis import cure_first

    if not findings:
        print(f"Nothing wrong was found with {what} in {timesteps} timesteps.")
        return
    table = Table(title=f"{what}, {timesteps} timesteps played", show_lines=True)
    for head in ("fault", "measured", "why it matters", "cure"):
        table.add_column(head)
    for finding in findings:
        table.add_row(finding.fault, finding.measured, finding.why, finding.cure)
    options.console().print(table, markup=False, highlight=False)
    if first := cure_first(findings):
        print(first)
