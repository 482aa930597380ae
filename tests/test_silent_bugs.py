"""The check of notebook 05: it says right of what is right, and its hint fits the bug, also half-mended ones.

Not here: the notebook as a whole, with and without its solutions (`test_docs.py`).
"""

import importlib.util
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch as th

from sb3_simple_ddpg import equations

FOLDER = Path(__file__).parent.parent / "notebooks"
CELLS = nbformat.read(FOLDER / "05_silent_bugs.ipynb", as_version=4).cells


@pytest.fixture(scope="module")
def workbench() -> Any:
    spec = importlib.util.spec_from_file_location("silent_bugs", FOLDER / "silent_bugs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def update_of(tag: str, *mends: tuple[str, str]) -> Any:
    """The function in the cell of that tag, with some of its text replaced."""
    (cell,) = [cell for cell in CELLS if tag in cell.metadata.get("tags", [])]
    source = cell.source.partition("\n\n\ncheck(")[0]
    for old, new in mends:
        assert old in source
        source = source.replace(old, new)
    names: dict[str, Any] = {"th": th, "equations": equations}
    exec(source, names)
    return names[f"update_{tag[-1]}"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "Print the shapes"), (2, "until a transition is truncated"), (3, "with tau = 0 a target network stays"),
     (4, "a critic with nothing to learn"), (5, "lie in [-1, 1]")],
)  # fmt: skip
def test_the_hint_fits_the_bug_and_does_not_mend_it(workbench, number, words):
    verdict = workbench.check(update_of(f"exercise-{number}"))
    assert not verdict.right
    assert words in repr(verdict)
    assert not any(cure in verdict.text for cure in ("no_grad", "reshape", "zero_grad", "detach"))


def test_a_solution_written_in_another_way_is_right(workbench):
    """With the package's functions, and the actor's gradient taken for the actor alone."""

    def another_way(learner, batch):
        with th.no_grad():
            following = learner.critic_target.q1_forward(
                batch.next_observations, learner.actor_target(batch.next_observations)
            )
        targets = equations.td_target(batch.rewards, batch.terminated, learner.gamma, following)
        learner.critic_optimizer.zero_grad()
        q_values = learner.critic.q1_forward(batch.observations, batch.actions)
        equations.critic_loss(q_values, targets).backward()
        learner.critic_optimizer.step()
        q_values = learner.critic.q1_forward(batch.observations, learner.actor(batch.observations))
        weights = [*learner.actor.parameters()]
        for weight, gradient in zip(weights, th.autograd.grad(equations.actor_loss(q_values), weights), strict=True):
            weight.grad = gradient
        learner.actor_optimizer.step()
        equations.soft_update(learner.critic.parameters(), learner.critic_target.parameters(), learner.tau)
        equations.soft_update(learner.actor.parameters(), learner.actor_target.parameters(), learner.tau)

    assert workbench.check(another_way).right


@pytest.mark.parametrize(
    ("mend", "words"),
    [
        (("actor_loss.backward()", "actor_loss.backward(inputs=[*learner.actor.parameters()])"), "line 10 comes after"),
        (("critic_loss.backward()\n", "critic_loss.backward(); learner.critic_optimizer.step()\n"), "RuntimeError"),
    ],
    ids=["the critic of before its step", "a graph whose weights have moved"],
)  # fmt: skip
def test_half_a_mend_gets_the_hint_for_the_other_half(workbench, mend, words):
    verdict = workbench.check(update_of("exercise-4", mend))
    assert not verdict.right
    assert words in verdict.text


def test_forgotten_lines_are_named(workbench):
    def without(line: str) -> Any:
        return workbench.check(update_of("solution-1", (line, "pass  # ")))

    assert "Look at line 11." in without("equations.soft_update(learner.actor").text
    assert "the second is not" in without("learner.actor_optimizer.zero_grad()").text
    wrong_discount = workbench.check(update_of("solution-1", ("learner.gamma * ", "0.5 * ")))
    assert "Look at lines 8 and 9." in wrong_discount.text
    wrong_value = workbench.check(
        update_of("solution-1", ("= learner.critic_target.q1", "= 2 * learner.critic_target.q1"))
    )
    assert "what follows after s', in line 8" in wrong_value.text


def test_a_check_leaves_numpy_s_random_numbers_alone(workbench):
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    workbench.check(update_of("solution-1"))
    assert np.random.random() == expected
