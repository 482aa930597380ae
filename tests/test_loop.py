"""Algorithm 1 as one loop, as docs/theory.md and notebook 02 print it, is what `SimpleDDPG.learn` does.

Not here: the update worked out by hand (test_update.py).
"""

import ast
import functools
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch as th

from sb3_simple_ddpg import SimpleDDPG, presets

ROOT = Path(__file__).parent.parent
LOOP = re.findall(
    r"^## Algorithm 1 as one loop$.*?^```python\n(.*?)^```$",
    (ROOT / "docs" / "theory.md").read_text("utf-8"),
    re.M | re.S,
)[0]


def run(text: str) -> SimpleDDPG:
    names: dict[str, Any] = {}
    exec(compile(text, "theory.md", "exec"), names)
    return names["model"]


def state_of(model: SimpleDDPG) -> list[th.Tensor]:
    """Weights, states of both optimizers, and all transitions (s, a, s', d, r)."""
    found = [tensor.clone() for tensor in model.policy.state_dict().values()]
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        found += [tensor.clone() for state in optimizer.state.values() for tensor in state.values()]
    assert model.replay_buffer is not None
    transitions = model.replay_buffer._get_samples(range(model.replay_buffer.size()))
    return found + [tensor for tensor in transitions if isinstance(tensor, th.Tensor)]


@functools.cache
def learned(env_id: str = "Pendulum-v1", seed: int = 0) -> list[th.Tensor]:
    return state_of(SimpleDDPG("MlpPolicy", env_id, seed=seed, **presets.PENDULUM).learn(500))


def equal(one: list[th.Tensor], other: list[th.Tensor]) -> bool:
    assert len(one) == len(other)
    return all(map(th.equal, one, other))


def test_the_loop_is_the_same_text_on_the_theory_page_and_in_the_notebook():
    cells = nbformat.read(ROOT / "notebooks" / "02_theory_to_code.ipynb", as_version=4).cells
    assert [cell.source for cell in cells if "# line 4" in cell.source] == [LOOP.rstrip()]


def test_the_loop_names_the_lines_of_algorithm_1_in_their_order():
    assert re.findall(r"# lines? (\d+(?: to \d+)?)", LOOP) == ["1 to 3", *map(str, range(4, 12))]


def test_the_loop_fits_on_one_screen():
    (loop,) = [node for node in ast.parse(LOOP).body if isinstance(node, ast.For)]
    written = [line for line in ast.get_source_segment(LOOP, loop).splitlines() if line.strip()]
    assert len(written) <= 24


@pytest.mark.parametrize(("env_id", "seed"), [("Pendulum-v1", 0), ("MountainCarContinuous-v0", 0)])
def test_algorithm_1_as_one_loop_equals_learn_bit_for_bit(env_id: str, seed: int):
    text = LOOP.replace('"Pendulum-v1"', f'"{env_id}"').replace("seed=0", f"seed={seed}")
    of_the_loop = run(text)
    assert of_the_loop.critic.optimizer.state[of_the_loop.critic.qf0[0].weight]["step"].item() == 400  # 500 less 100
    assert equal(state_of(of_the_loop), learned(env_id, seed))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("reward, terminated, [{}]", "reward, terminated or truncated, [{}]"),  # two episodes end in 500 timesteps
        ("model.gamma, next_q_values", "0.99, next_q_values"),
        ("critic_target(batch.next_observations", "critic(batch.next_observations"),
        ("actor.parameters(), actor_target.parameters(), model.tau", "[], [], 1.0"),
        ("model.action_noise()[0]", "2 * model.action_noise()[0]"),
    ],
    ids=["a time limit as terminal", "another gamma", "no target critic", "a still target actor", "more noise"],
)
def test_a_loop_with_one_fault_ends_elsewhere(right: str, wrong: str):
    """So that the test above proves something."""
    assert LOOP.count(right) == 1
    assert not equal(state_of(run(LOOP.replace(right, wrong))), learned())
