"""The four equations against numbers worked out by hand.

Not here: the update that puts them together (test_update.py).
"""

import ast
import inspect
import textwrap

import pytest
import torch as th

from sb3_simple_ddpg.equations import actor_loss, critic_loss, soft_update, td_target


def column(*values: float) -> th.Tensor:
    return th.tensor(values).reshape(-1, 1)


def test_td_target_adds_the_discounted_next_value_unless_terminated():
    targets = td_target(column(1.0, 2.0), column(0.0, 1.0), 0.5, column(10.0, 10.0))
    # 1 + 0.5 * 10 = 6; the second transition ended the episode: 2 and nothing more.
    assert targets.tolist() == [[6.0], [2.0]]


def test_td_target_takes_a_discount_for_each_transition():
    targets = td_target(column(1.0, 1.0), column(0.0, 0.0), column(0.5, 0.25), column(8.0, 8.0))
    assert targets.tolist() == [[5.0], [3.0]]  # 1 + 8 / 2, 1 + 8 / 4


def test_td_target_takes_a_scalar_tensor_as_discount():
    assert td_target(column(1.0), column(0.0), th.tensor(0.5), column(8.0)).tolist() == [[5.0]]


@pytest.mark.parametrize("flat", ["rewards", "terminated", "next_q_values", "discounts"])
def test_td_target_refuses_a_flat_vector_by_name(flat: str):
    arguments = {name: th.zeros(4, 1) for name in ("rewards", "terminated", "discounts", "next_q_values")}
    arguments[flat] = th.zeros(4)
    with pytest.raises(ValueError, match=rf"{flat} must have shape \(4, 1\), got \(4,\).*broadcast to \(4, 4\)"):
        td_target(**arguments)


def test_td_target_refuses_a_scalar_reward():
    with pytest.raises(ValueError, match=r"rewards must have shape \(1, 1\), got \(\)"):
        td_target(th.tensor(1.0), column(0.0), 0.9, column(0.0))


def test_critic_loss_is_the_mean_squared_error():
    # ((1 - 3)^2 + (2 - 2)^2) / 2 = 2
    assert critic_loss(column(1.0, 2.0), column(3.0, 2.0)).item() == 2.0


@pytest.mark.parametrize(("q_shape", "target_shape", "name"), [((3,), (3, 1), "q_values"), ((3, 1), (3,), "targets")])
def test_critic_loss_refuses_a_flat_vector_by_name(q_shape: tuple[int, ...], target_shape: tuple[int, ...], name: str):
    with pytest.raises(ValueError, match=rf"{name} must have shape \(3, 1\), got \(3,\)"):
        critic_loss(th.zeros(q_shape), th.zeros(target_shape))


@pytest.mark.parametrize("shape", [(2, 1), (4, 1), (3, 3), (3, 2), (2,)])
def test_critic_loss_refuses_another_number_of_targets_and_names_no_cure_that_fails(shape: tuple[int, ...]):
    with pytest.raises(
        ValueError, match=r"targets must have shape \(3, 1\), got .*: each of the B transitions"
    ) as caught:
        critic_loss(th.zeros(3, 1), th.zeros(shape))
    assert "reshape" not in str(caught.value)  # targets.reshape(-1, 1) would not have three rows


def test_each_equation_is_one_line_of_check_and_one_of_formula():
    """So that a reader meets the formula, and nothing in front of it."""
    for equation in (td_target, critic_loss, actor_loss, soft_update):
        function = ast.parse(textwrap.dedent(inspect.getsource(equation))).body[0]
        assert isinstance(function, ast.FunctionDef)
        check, formula = function.body[1:]  # behind the docstring
        assert (check.end_lineno, formula.end_lineno) == (check.lineno, formula.lineno), equation.__name__


@pytest.mark.parametrize(
    ("equation", "line", "number"),
    [
        (td_target, 8, "Eq. (5)"),
        (critic_loss, 9, "Eq. (4)"),
        (actor_loss, 10, "Eq. (6)"),
        (soft_update, 11, "Algorithm 1"),
    ],
)
def test_each_equation_opens_with_its_line_of_algorithm_1_and_the_paper_s_own_number(equation, line: int, number: str):
    first = inspect.getdoc(equation).splitlines()[0]
    assert first.startswith(f"Line {line}, Lillicrap et al. 2016")
    assert number in first


def test_actor_loss_is_minus_the_mean_value():
    assert actor_loss(column(1.0, 2.0, 6.0)).item() == -3.0


def test_actor_loss_refuses_a_flat_vector():
    with pytest.raises(ValueError, match=r"q_values must have shape \(3, 1\), got \(3,\)"):
        actor_loss(th.zeros(3))


def test_soft_update_moves_the_target_by_the_share_tau_of_the_main_network():
    main, target = [th.tensor([4.0]), th.tensor([[0.0]])], [th.tensor([0.0]), th.tensor([[8.0]])]
    soft_update(main, target, 0.25)
    # 0.25 * 4 + 0.75 * 0 = 1; 0.25 * 0 + 0.75 * 8 = 6
    assert [tensor.item() for tensor in target] == [1.0, 6.0]
    assert [tensor.item() for tensor in main] == [4.0, 0.0]


def test_soft_update_writes_into_the_target_itself_and_needs_no_gradient():
    main, target = th.nn.Linear(2, 2), th.nn.Linear(2, 2)
    weight, address = target.weight, target.weight.data_ptr()
    soft_update(main.parameters(), target.parameters(), 1.0)
    assert target.weight is weight
    assert target.weight.data_ptr() == address
    assert th.equal(target.weight, main.weight)
    assert target.weight.grad_fn is None


def test_soft_update_with_tau_zero_changes_nothing():
    target = th.tensor([3.0])
    soft_update([th.tensor([7.0])], [target], 0.0)
    assert target.item() == 3.0


def test_soft_update_of_no_tensors_is_nothing():
    soft_update([], [], 0.5)


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_soft_update_refuses_tau_outside_its_range(tau: float):
    target = th.tensor([3.0])
    with pytest.raises(ValueError, match=r"tau must lie in \[0, 1\]"):
        soft_update([th.tensor([7.0])], [target], tau)
    assert target.item() == 3.0


def test_soft_update_refuses_networks_that_do_not_match():
    with pytest.raises(ValueError, match="got 2 and 1 tensors"):
        soft_update([th.zeros(1), th.zeros(1)], [th.zeros(1)], 0.5)
