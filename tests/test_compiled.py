"""Compiled updates give the plain path's weights, and follow whatever changes between two calls. Not here: speed."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.safety.checks import CompileWarning
from sb3_simple_ddpg.speed import compiler
from tests.differential import no_waiting

# Compiling takes seconds; later runs on the same machine find PyTorch's cache on disk.
pytestmark = pytest.mark.slow

#: After 1, 10 and 100 updates on the same batches: two orders of rounding, which a ReLU at its
#: corner can magnify. A wrong formula shows at 1e-3 in the first update already: the size of a step of Adam.
TOLERANCES = ((1, 1e-6), (9, 1e-6), (90, 2e-4))

#: Adam divides a gradient by its own size, so rounding where the true gradient is 0 (a unit that died, a key that never
#: changes) becomes a step of full size; a larger eps keeps rounding what it is. With the default the test stops at 10.
LARGE_EPS = {"optimizer_kwargs": {"eps": 1e-3}}
SMALL = {"net_arch": [16], **LARGE_EPS}  # one hidden layer: compiling takes half the time of two
SMALL_CNN = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}, **LARGE_EPS}
FEW = 8  # images in a batch: 64 of them take two minutes of convolutions


def make_images() -> gym.Env:
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)


def make_pair(env: Any = "Pendulum-v1", policy: str = "MlpPolicy", **settings: Any) -> tuple[SimpleDDPG, SimpleDDPG]:
    """A plain and a compiled model of one seed with equally filled buffers, one plain update behind them."""
    kwargs = {
        "seed": 3,
        "policy_kwargs": {"net_arch": [32, 32]},
        "buffer_size": 500,
        "learning_starts": 200,
        "batch_size": 64,
        **settings,
    }
    pair = []
    for compile_updates in (False, True):
        made = env() if callable(env) else env
        model = SimpleDDPG(policy, made, compile_updates=compile_updates, **kwargs).learn(200)
        if pair:
            model.replay_buffer = pair[0].replay_buffer
        np.random.seed(0)
        model.compile_updates = False
        model.train(1, model.batch_size)
        model.compile_updates = compile_updates
        pair.append(model)
    assert difference(*pair) == 0.0
    return pair[0], pair[1]


def difference(ours: SimpleDDPG, theirs: SimpleDDPG) -> float:
    state, other = ours.policy.state_dict(), theirs.policy.state_dict()
    return max((state[name] - other[name]).abs().max().item() for name in state)


@pytest.fixture(autouse=True)
def without_waiting() -> Iterator[None]:
    """A second function is compiled at once."""
    with no_waiting():
        yield


@pytest.fixture
def train_both(compiled_calls: list[str]) -> Callable[..., int]:
    def train(plain: SimpleDDPG, fast: SimpleDDPG, updates: int, batch_size: int = 64) -> int:
        """
        The same batches for both.

        :return: how many of the updates ran as compiled code
        """
        for model in (plain, fast):
            compiled_calls.clear()
            np.random.seed(updates)
            th.manual_seed(updates)
            model.train(updates, batch_size)
        return len(compiled_calls)

    return train


@pytest.mark.usefixtures("recorded_or_compiled")
@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("Pendulum-v1", {"policy_kwargs": {"net_arch": [16, 16]}}),
        ("Pendulum-v1", {"policy_kwargs": {"net_arch": [16, 16], "layers": {"qf": "layer_norm"}, **LARGE_EPS}}),
        ("Pendulum-v1", {"policy_kwargs": {"net_arch": [16, 32], "layers": "residual", **LARGE_EPS}}),
        ("Pendulum-v1", {}),
        (
            "Pendulum-v1",
            {
                "policy_kwargs": {
                    "net_arch": {"pi": [16], "qf": [24, 8]},
                    "optimizer_class": th.optim.AdamW,
                    "critic_optimizer_kwargs": {"weight_decay": 0.1},
                    **LARGE_EPS,
                    "activation_fn": nn.ELU,
                }
            },
        ),
        pytest.param(
            "Pendulum-v1",
            {"max_grad_norm": 0.5, "critic_learning_rate": 3e-3, "policy_kwargs": SMALL},
            marks=pytest.mark.long,  # drawn in test_differential.py, as the next one is
        ),
        pytest.param("Pendulum-v1", {"n_steps": 3, "policy_kwargs": SMALL}, marks=pytest.mark.long),
        (
            lambda: VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2)),
            {"policy_kwargs": SMALL},
        ),
        (
            make_images,
            {
                "policy": "CnnPolicy",
                "policy_kwargs": SMALL_CNN,
                "batch_size": FEW,
            },
        ),
        pytest.param(
            lambda: SimpleMultiObsEnv(discrete_actions=False, random_start=False),
            {"policy": "MultiInputPolicy", "policy_kwargs": {"net_arch": [8], **LARGE_EPS}, "batch_size": FEW},
            marks=pytest.mark.long,  # images of 64 x 64
        ),
    ],
    ids=[
        "adam-default-eps",
        "layer-norm",
        "residual",
        "adam",
        "adamw",
        "clipped",
        "n-step",
        "normalized",
        "cnn",
        "dict",
    ],
)
def test_compiled_updates_give_the_plain_path_s_weights(env: Any, settings: dict[str, Any], train_both):
    plain, fast = make_pair(env, **settings)
    default_eps = plain.actor.optimizer.defaults.get("eps") == 1e-8
    images = settings.get("policy") == "CnnPolicy"  # 90 updates of them take as long as all else here
    for updates, tolerance in TOLERANCES[:2] if default_eps or images else TOLERANCES:
        assert train_both(plain, fast, updates, fast.batch_size) == updates, fast._compiled.failure
        assert difference(plain, fast) < tolerance
        for name in ("critic_loss", "actor_loss", "q_mean", "target_q_mean", "action_saturation"):
            expected = plain.logger.name_to_value[f"train/{name}"]
            assert fast.logger.name_to_value[f"train/{name}"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("recorded_or_compiled")
def test_settings_may_change_between_two_calls_without_compiling_again(train_both):
    plain, fast = make_pair()
    assert train_both(plain, fast, 2) == 2
    compiled_functions = len(fast._compiled._functions)
    for model in (plain, fast):
        model.tau, model.gamma = 0.3, 0.5
        model.lr_schedule = lambda progress: 3e-3
    assert train_both(plain, fast, 5) == 5
    assert difference(plain, fast) < 1e-6
    assert len(fast._compiled._functions) == compiled_functions
    before = [weight.clone() for weight in fast.critic_target.parameters()]
    fast.tau = 0.0
    fast.train(1, 32)
    assert all(map(th.equal, before, fast.critic_target.parameters()))


@pytest.mark.usefixtures("recorded_or_compiled")
def test_another_batch_size_gives_the_right_result(train_both):
    plain, fast = make_pair()
    for batch_size in (32, 7, 32):
        assert train_both(plain, fast, 3, batch_size) == 3
        assert difference(plain, fast) < 1e-6


@pytest.mark.usefixtures("recorded_or_compiled")
def test_weights_and_optimizer_states_set_from_outside_are_followed(train_both):
    plain, fast = make_pair()
    other, _ = make_pair()
    train_both(plain, fast, 3)
    for model in (plain, fast):
        model.set_parameters(other.get_parameters())
        model.actor.load_from_vector(0.9 * other.actor.parameters_to_vector())  # gives the weights new memory
    assert train_both(plain, fast, 5) == 5
    assert difference(plain, fast) < 1e-6


@pytest.mark.usefixtures("recorded_or_compiled")
def test_compiled_model_is_saved_loaded_and_converted(tmp_path, train_both):
    plain, fast = make_pair(action_noise=None)
    train_both(plain, fast, 3)
    fast.save(tmp_path / "model")
    loaded = SimpleDDPG.load(tmp_path / "model", env=fast.env)
    assert loaded.compile_updates
    loaded.replay_buffer = fast.replay_buffer
    back = SimpleDDPG.from_sb3(fast.to_sb3())
    back.compile_updates = True
    assert isinstance(fast.to_sb3(), DDPG)
    for model in (loaded, back):
        plain_copy = SimpleDDPG.from_sb3(plain.to_sb3())
        assert train_both(plain_copy, model, 5) == 5
        assert difference(plain_copy, model) < 1e-6


def test_learning_compiled_equals_learning_plain():
    """Through the environment, which feeds differences of rounding back; a wrong formula shows at 1e-3."""
    models = []
    for compile_updates in (False, True):
        model = SimpleDDPG(
            "MlpPolicy", "Pendulum-v1", seed=1, batch_size=64, compile_updates=compile_updates, policy_kwargs=SMALL
        )
        models.append(model.learn(130))
    assert models[1]._compiled._functions
    assert difference(*models) < 1e-4


class Dropping(nn.Module):
    """A features extractor that draws random numbers."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__()
        self.features_dim = observation_space.shape[0]
        self.drop = nn.Dropout(0.5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.drop(observations.flatten(1))


class Normalizing(Dropping):
    """One that keeps running statistics."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space)
        self.drop = nn.BatchNorm1d(self.features_dim)


class Counting(Dropping):
    """One that counts its calls, so that compiled code, which makes no call, would be another function."""

    calls = 0

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.calls += 1
        return observations / self.calls


class Branching(Dropping):
    """One that asks a tensor for a number, which a recorded function cannot."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations * (2.0 if observations.sum() > 0 else 3.0)


@pytest.mark.parametrize(
    ("extractor", "reason"),
    [
        (Dropping, r"\w+.features_extractor.drop draws random numbers"),
        (Normalizing, r"\w+.features_extractor.drop.running_mean changes in an update"),
        (Counting, r"\w+.features_extractor changes an attribute in an update"),
        (Branching, "DataDependentOutputException|GuardOnDataDependentSymNode"),
    ],
)
def test_what_cannot_be_compiled_goes_plainly_and_a_warning_names_the_layer(tmp_path, extractor, reason, train_both):
    kwargs = {"net_arch": [8], "features_extractor_class": extractor}
    plain, fast = make_pair(policy_kwargs=kwargs)
    fast.set_logger(configure(str(tmp_path), ["log"]))
    with pytest.warns(CompileWarning, match="compile_updates=True has no effect, the plain path goes on: " + reason):
        assert train_both(plain, fast, 3) == 0
    assert train_both(plain, fast, 3) == 0  # and says so once
    assert difference(plain, fast) == 0.0
    fast.logger.close()
    assert (tmp_path / "log.txt").read_text().count("compile_updates=True has no effect") == 1


def test_a_failing_compiler_falls_back_to_the_plain_path_s_weights(monkeypatch, train_both):
    plain, fast = make_pair()

    def fail(*_: Any) -> None:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(compiler, "compile_function", fail)
    with pytest.warns(CompileWarning, match="RuntimeError: no C\\+\\+ compiler found"):
        assert train_both(plain, fast, 3) == 0
    assert difference(plain, fast) == 0.0


@pytest.mark.usefixtures("recorded_or_compiled")
def test_compiled_code_that_fails_while_it_runs_is_finished_by_the_plain_one(train_both):
    plain, fast = make_pair(policy_kwargs={"net_arch": [16]})
    assert train_both(plain, fast, 2) == 2
    for key in fast._compiled._functions:
        fast._compiled._functions[key] = lambda _: 1 / 0
    with pytest.warns(CompileWarning, match="ZeroDivisionError: division by zero"):
        train_both(plain, fast, 3)
    assert difference(plain, fast) < 1e-6
    assert train_both(plain, fast, 3) == 0
    assert difference(plain, fast) < 1e-6


@pytest.mark.parametrize(
    ("env", "kwargs", "reason"),
    [
        ("Pendulum-v1", {"net_arch": [8], "optimizer_class": th.optim.SGD}, "SGD .* is not compiled"),
        ("Pendulum-v1", {"net_arch": [8], "optimizer_kwargs": {"amsgrad": True}}, "Adam .* is not compiled"),
        (make_images, {**SMALL_CNN, "share_features_extractor": True}, "share memory"),
    ],
    ids=["sgd", "amsgrad", "shared"],
)
def test_what_is_not_compiled_is_left_to_the_plain_path(env, kwargs, reason, train_both):
    plain, fast = make_pair(env, policy="CnnPolicy" if env is make_images else "MlpPolicy", policy_kwargs=kwargs)
    with pytest.warns(CompileWarning, match=reason):
        assert train_both(plain, fast, 3) == 0
    assert difference(plain, fast) == 0.0


@pytest.mark.usefixtures("recorded_or_compiled")
def test_compiled_code_that_fails_while_it_writes_is_an_error_and_no_second_half(train_both):
    plain, fast = make_pair()
    train_both(plain, fast, 2)

    def write_and_fail(tensors: Any) -> None:
        fast._compiled._inputs.numbers.written += 1
        raise ZeroDivisionError

    for key in fast._compiled._functions:
        fast._compiled._functions[key] = write_and_fail
    with pytest.raises(RuntimeError, match="failed while it wrote the new weights"):
        fast.train(1, 64)


def test_a_compiler_that_is_wrong_is_found_out(monkeypatch, train_both):
    """A tenth of a percent of the actor's gradient is missing."""
    plain, fast = make_pair(policy_kwargs=SMALL)
    compile_function = compiler.compile_function

    def wrong(function: Any, *args: Any) -> Any:
        run = compile_function(function, *args)

        def run_wrongly(leaves: Any) -> Any:
            leaves[0].data.mul_(1 + 1e-4)
            return run(leaves)

        return run_wrongly

    monkeypatch.setattr(compiler, "compile_function", wrong)
    with pytest.warns(CompileWarning, match="the compiled update gave other numbers than the plain one in"):
        assert train_both(plain, fast, 5) == 0
    assert difference(plain, fast) == 0.0


class ByColumns(ReplayBuffer):
    """Gives observations that lie in memory column by column."""

    def _get_samples(self, *args: Any, **kwargs: Any) -> Any:
        batch = super()._get_samples(*args, **kwargs)
        return batch._replace(observations=batch.observations.t().contiguous().t())


@pytest.mark.usefixtures("recorded_or_compiled")
def test_memory_is_read_in_the_order_in_which_it_lies(train_both):
    """Compiled code does not look at strides; a batch or a weight in another order must not be read in the old one."""
    plain, fast = make_pair()
    assert train_both(plain, fast, 1) == 1
    compiled_functions = len(fast._compiled._functions)
    buffer = ByColumns(500, plain.observation_space, plain.action_space)
    buffer.__dict__.update(vars(plain.replay_buffer))
    plain.replay_buffer = fast.replay_buffer = buffer
    assert train_both(plain, fast, 2) == 2
    assert difference(plain, fast) < 1e-6
    assert len(fast._compiled._functions) == compiled_functions

    hidden = fast.critic.qf0[2].weight  # 32 x 32: its shape says nothing about the order
    hidden.data = hidden.data.t().contiguous().t()
    assert train_both(plain, fast, 2) == 2
    assert difference(plain, fast) < 1e-6
    assert len(fast._compiled._functions) == compiled_functions + 1


@pytest.mark.usefixtures("recorded_or_compiled")
def test_first_update_is_plain_and_compile_time_is_told(tmp_path):
    model = SimpleDDPG(
        "MlpPolicy", "Pendulum-v1", learning_starts=4, batch_size=64, compile_updates=True, policy_kwargs=SMALL
    )
    model.set_logger(configure(str(tmp_path), ["log"]))
    model.learn(5)
    assert not model._compiled._functions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's compiler warns of its own internals
        model.learn(2, reset_num_timesteps=False)
    assert model._compiled.seconds > 0
    model.logger.close()
    assert "Compiled the update" in (tmp_path / "log.txt").read_text()


def test_a_number_is_computed_once_and_not_for_each_weight():
    """2 ** step is a number that a tensor uses, and gets its view; what numbers alone use gets none."""
    graph = make_fx(lambda weights, step: weights * (2.0 ** (step + 1)))(th.ones(3), th.tensor(2.0))
    compiler._compute_once(graph)
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    aten = th.ops.aten
    assert called == [aten.add.Tensor, aten.pow.Scalar, aten.as_strided.default, aten.mul.Tensor]
    assert graph(th.ones(3), th.tensor(2.0)).tolist() == [8.0, 8.0, 8.0]  # 2 ** (2 + 1)


@pytest.mark.parametrize("inputs", [1, 4, 8, 9])
def test_products_are_worded_otherwise_and_mean_the_same(inputs: int):
    bias, left, right = th.randn(20), th.randn(6, inputs), th.randn(20, inputs).t()
    # Sums of at most 9 numbers of about 1, in another order.
    th.testing.assert_close(compiler._product_and_bias(bias, left, right), th.addmm(bias, left, right))


def test_a_column_times_a_row_is_worded_otherwise_and_the_same():
    column, row = th.randn(6, 1), th.randn(1, 20)
    assert th.equal(compiler._product(column, row), column @ row)  # one product of two numbers each
    assert compiler._product(th.randn(6, 2)[:, :1], row) is NotImplemented  # lies apart in memory


def test_a_column_of_state_and_action_is_taken_from_the_one_it_came_from():
    """Column 3 of three of the state and two of the action is the action's first; column 1 is the state's."""

    def columns(state: th.Tensor, action: th.Tensor) -> th.Tensor:
        both = th.cat([state, action], dim=1)
        return both[:, 3:4] + 10 * both[:, 1:2]

    state, action = th.tensor([[1.0, 2.0, 3.0]]), th.tensor([[4.0, 5.0]])
    graph = make_fx(columns)(state, action)
    compiler._take_from_parts(graph)
    assert th.ops.aten.cat.default not in {node.target for node in graph.graph.nodes}
    assert graph(state, action).tolist() == [[24.0]]  # 4 + 10 * 2


class ThreeThrottles(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 2, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward, ended = -float(np.square(action).sum()), bool(self.np_random.random() < 0.1)
        return self.observation_space.sample(), reward, ended, False, {}


@pytest.mark.usefixtures("recorded_or_compiled")
def test_stored_values_keep_their_places_with_several_actions(train_both):
    """Products with three columns are worded transposed, so the view behind each tanh must not assume rows."""
    plain, fast = make_pair(ThreeThrottles, policy_kwargs={"net_arch": [16, 16], "activation_fn": nn.Tanh})
    assert train_both(plain, fast, 9) == 9, fast._compiled.failure
    assert difference(plain, fast) < 1e-6
