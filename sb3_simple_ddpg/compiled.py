"""The update of `SimpleDDPG.train` as compiled code, for `compile_updates=True`.

Not here: another statement of the algorithm. What is compiled are the networks, the equations of `equations.py` and
PyTorch's own Adam; a test holds the weights to those of the plain path.

The functions below are recorded once with stand-in tensors (`make_fx`) and handed to PyTorch's compiler (inductor).
Weights, optimizer states, learning rates and discounts are inputs, so whatever changes between two calls is taken up.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch.func import functional_call, grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.adam import adam
from torch.utils import _pytree as pytree

from sb3_simple_ddpg.equations import actor_loss, critic_loss, soft_update, td_target
from sb3_simple_ddpg.optimizers import FusedAdam, FusedAdamW

if TYPE_CHECKING:
    from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

Tensors: TypeAlias = list[th.Tensor]
Named: TypeAlias = dict[str, th.Tensor]


class CompiledUpdates:
    """
    What has been compiled for one model. It lives as long as the model's networks and is never saved.

    :param model: the algorithm, set up
    """

    def __init__(self, model: "SimpleDDPG") -> None:
        self.model = model
        self.seconds = 0.0  # spent compiling
        self.failure: str | None = None
        self._functions: dict[object, Callable[..., Any]] = {}
        self._actor, self._critic = _named_tensors(model.actor), _named_tensors(model.critic)
        self._actor_target = _named_tensors(model.actor_target)
        self._critic_target = _named_tensors(model.critic_target)
        # A shared features extractor stands in the critic too, but learns from the actor's loss alone.
        shared = {tensor.data_ptr() for tensor in self._actor.values()}
        self._learning = {
            "actor": [name for name, _ in model.actor.named_parameters()],
            "critic": [n for n, p in model.critic.named_parameters() if p.data_ptr() not in shared],
        }
        self._constants: dict[str, tuple[float, th.Tensor]] = {}
        self._states_of: list[Any] = [None, None]
        self._adam_inputs: tuple[Any, ...] = ()
        self._adam_leaves: Tensors = []
        networks = self._actor, self._critic, self._actor_target, self._critic_target
        self._weights = pytree.tree_leaves(networks)
        self._seen: tuple[Any, ...] = ()
        self._adam_update: tuple[object, Callable[..., Any]] | None = None
        if model.policy.depends_on_mode:
            self._give_up("a layer (batch norm, dropout or an unknown one) may behave differently in training")

    def prepare(self) -> None:
        """Take up what may have changed since the last call of `train`: settings, learning rates, optimizer states."""
        self._adam_update = self._prepare_adam() if self._adam_can_be_compiled() else None

    def step(self, batch: ReplayBufferSamples) -> th.Tensor | None:
        """
        Lines 8 to 11 of Algorithm 1 for one batch, once `prepare` has been called.

        :param batch: B transitions
        :return: what is logged of it, or None where the plain path must do it: at the first update, in which the
            optimizers create their state, and from a `failure` on
        """
        if self.failure is not None:
            return None
        try:
            if self._adam_update is not None:
                return self._step_with_adam(batch)
            if self._adam_can_be_compiled():
                self.prepare()  # for the next update: the plain path is about to create the states
                return None if self._adam_update is None else self._step_with_adam(batch)
            return self._step(batch)
        except Exception as error:  # whatever the compiler stumbles over, the plain path is there
            self._give_up(f"{type(error).__name__}: {error}".splitlines()[0])
            return None

    def _constant(self, name: str, value: float) -> th.Tensor:
        """A number as an input of compiled code: always the same tensor, of shape (), holding the value of now."""
        known = self._constants.get(name)
        if known is None:
            known = (value, th.tensor(value, dtype=th.float32, device=self.model.device))
        elif known[0] != value:
            known = (value, known[1].fill_(value))
        self._constants[name] = known
        return known[1]

    def _discounts(self, batch: ReplayBufferSamples) -> th.Tensor:
        return self._constant("gamma", self.model.gamma) if batch.discounts is None else batch.discounts

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self.model.logger.warn(f"compile_updates=True has no effect, the plain path goes on: {reason}.")

    def _adam_can_be_compiled(self) -> bool:
        """Otherwise the optimizers, whatever they are, run as they are between two compiled functions."""
        model = self.model
        plain = _is_plain_adam(model.actor.optimizer) and _is_plain_adam(model.critic.optimizer)
        return plain and model.max_grad_norm is None and not model.policy.share_features_extractor

    def _prepare_adam(self) -> tuple[object, Callable[..., Any]] | None:
        """
        Collect what `_update` takes.

        :return: a name for what is compiled into it, and the function; None while the optimizers have no state
        """
        model = self.model
        optimizers = model.actor.optimizer, model.critic.optimizer
        if not all(optimizer.state for optimizer in optimizers):
            return None
        rates = [
            self._constant(name, optimizer.param_groups[0]["lr"])
            for name, optimizer in zip(("actor", "critic"), optimizers, strict=True)
        ]
        tau = self._constant("tau", model.tau)
        if any(optimizer.state is not known for optimizer, known in zip(optimizers, self._states_of, strict=True)):
            # New, or replaced by set_parameters.
            self._states_of = [optimizer.state for optimizer in optimizers]
            states = [_adam_state(optimizer) for optimizer in optimizers]
            networks = self._actor, self._critic, self._actor_target, self._critic_target
            self._adam_inputs = (*networks, states, rates, tau)
            self._adam_leaves = pytree.tree_leaves(self._adam_inputs)
        # Who moves weights to another place may store them in another order there.
        addresses = [weight.data_ptr() for weight in self._weights]
        settings = [_adam_settings(optimizer) for optimizer in optimizers]
        if self._adam_update is None or (addresses, settings) != self._seen:
            self._seen = addresses, settings
            return (tuple(settings), _Layout(self._adam_leaves)), partial(self._update, settings)
        return self._adam_update

    def _update(
        self, settings: list[tuple[Any, ...]], actor: Named, critic: Named, actor_target: Named, critic_target: Named,
        states: list[list[Tensors]], rates: Tensors, tau: th.Tensor, discounts: th.Tensor, batch: tuple[Any, ...],
    ) -> th.Tensor:  # fmt: skip
        """Both losses, their gradients, both optimizers and the soft updates as one function."""
        critic_names, actor_names = self._learning["critic"], self._learning["actor"]  # without buffers
        gradients, of_critic = self._critic_gradients(critic, actor_target, critic_target, discounts, batch)
        _adam_step(critic_names, critic, gradients, states[1], rates[1], settings[1])
        gradients, of_actor = self._actor_gradients(actor, critic, batch)
        _adam_step(actor_names, actor, gradients, states[0], rates[0], settings[0])
        for main, target, names in ((critic, critic_target, critic_names), (actor, actor_target, actor_names)):
            soft_update([main[name] for name in names], [target[name] for name in names], tau)
        return th.cat([of_critic[:1], of_actor[:1], of_critic[1:], of_actor[1:]])

    def _step_with_adam(self, batch: ReplayBufferSamples) -> th.Tensor:
        assert self._adam_update is not None
        name, update = self._adam_update
        discounts = self._discounts(batch)
        leaves = [*self._adam_leaves, discounts]
        statistics: th.Tensor = self._ready(name, update, (*self._adam_inputs, discounts), batch, leaves)()
        return statistics

    def _step(self, batch: ReplayBufferSamples) -> th.Tensor:
        """Losses and gradients compiled; clipping and the optimizers as they are."""
        model = self.model
        inputs = (self._critic, self._actor_target, self._critic_target, self._discounts(batch))
        # Both are compiled before a weight moves: if one fails, the plain path takes the whole step.
        critic_gradients = self._ready("critic", self._critic_gradients, inputs, batch)
        actor_gradients = self._ready("actor", self._actor_gradients, (self._actor, self._critic), batch)
        gradients, of_critic = critic_gradients()
        self._apply(model.critic, self._learning["critic"], gradients)
        gradients, of_actor = actor_gradients()
        self._apply(model.actor, self._learning["actor"], gradients)
        soft_update(model._weights["critic"], model._weights["critic_target"], model.tau)
        soft_update(model._weights["actor"], model._weights["actor_target"], model.tau)
        return th.cat([of_critic[:1], of_actor[:1], of_critic[1:], of_actor[1:]])

    def _apply(self, network: Any, names: list[str], gradients: Tensors) -> None:  # noqa: ANN401 - an actor or a critic
        parameters = dict(network.named_parameters())
        for parameter in parameters.values():
            parameter.grad = None
        for name, gradient in zip(names, gradients, strict=True):
            parameters[name].grad = gradient
        if self.model.max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(parameters.values(), self.model.max_grad_norm)
        network.optimizer.step()

    def _critic_gradients(
        self, critic: Named, actor_target: Named, critic_target: Named, discounts: th.Tensor, batch: tuple[Any, ...]
    ) -> tuple[Tensors, th.Tensor]:
        """Lines 8-9: gradients of the critic's loss; the loss, the mean of Q and the mean of the targets."""
        model = self.model
        observations, actions, next_observations, terminated, rewards = batch
        next_actions = functional_call(model.actor_target, actor_target, (next_observations,))
        next_q_values = functional_call(model.critic_target, critic_target, (next_observations, next_actions))
        targets = td_target(rewards, terminated, discounts, next_q_values)

        def loss(learning: Named) -> tuple[th.Tensor, th.Tensor]:
            q_values = functional_call(model.critic, {**critic, **learning}, (observations, actions))
            return critic_loss(q_values, targets), q_values.mean()

        learning = {name: critic[name] for name in self._learning["critic"]}
        gradients, (value, q_mean) = grad_and_value(loss, has_aux=True)(learning)
        return _contiguous(gradients), th.stack([value, q_mean, targets.mean()])

    def _actor_gradients(self, actor: Named, critic: Named, batch: tuple[Any, ...]) -> tuple[Tensors, th.Tensor]:
        """Line 10: gradients of the actor's loss; the loss and the share of saturated actions."""
        model = self.model
        observations = batch[0]

        def loss(learning: Named) -> tuple[th.Tensor, th.Tensor]:
            actions = functional_call(model.actor, {**actor, **learning}, (observations,))
            q_values = functional_call(model.critic, critic, (observations, actions))
            return actor_loss(q_values), (actions.abs() > 0.99).float().mean()

        learning = {name: actor[name] for name in self._learning["actor"]}
        gradients, (value, saturation) = grad_and_value(loss, has_aux=True)(learning)
        return _contiguous(gradients), th.stack([value, saturation])

    def _ready(
        self,
        name: object,
        function: Callable[..., Any],
        inputs: tuple[Any, ...],
        batch: ReplayBufferSamples,
        leaves: Tensors | None = None,
    ) -> Callable[[], Any]:
        """
        Compile `function(*inputs, batch)`, unless that was done for tensors of this layout.

        :param leaves: the tensors in `inputs`, where they are known already, and their layout is in `name`: collecting
            them takes time
        :return: the call of it, with the values that the inputs have by then
        """
        *fields, discounts = batch
        of_batch = fields if type(fields[0]) is th.Tensor else pytree.tree_leaves(fields)
        of_batch = [field.contiguous() for field in of_batch]
        if leaves is None:
            leaves = pytree.tree_leaves(inputs)
            name = name, _Layout(leaves)
        of_discounts = None if discounts is None else _Layout([discounts])
        key = name, of_discounts, *[field.shape for field in of_batch], *[field.dtype for field in of_batch]
        leaves += of_batch
        compiled = self._functions.get(key)
        if compiled is None:
            started = time.perf_counter()
            structure = pytree.tree_structure((*inputs, tuple(fields)))
            # PyTorch's compiler warns of PyTorch's own parts.
            with th.no_grad(), warnings.catch_warnings(action="ignore"):
                compiled = self._functions[key] = _compile(function, [leaf.detach() for leaf in leaves], structure)
            self.seconds += time.perf_counter() - started
            self.model.logger.info(f"Compiled the update ({self.seconds:.1f} s so far).")
        return partial(_call, compiled, leaves)


def _compile(function: Callable[..., Any], leaves: Tensors, structure: pytree.TreeSpec) -> Callable[..., Any]:
    """The function of nested inputs as a compiled one of a list of their tensors."""
    from torch._functorch import config as functorch_config  # imported here: it takes a second
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    results: list[pytree.TreeSpec] = []

    def flat(*leaves: th.Tensor) -> Tensors:
        tensors, result = pytree.tree_flatten(function(*pytree.tree_unflatten(list(leaves), structure)))
        results.append(result)
        return tensors

    graph = make_fx(flat, _WORDINGS, tracing_mode="fake")(*leaves)
    _take_from_parts(graph)
    _compute_once(graph)
    parts: list[Any] = []

    def compile_part(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the compiler's own
        parts.append(compile_fx_inner(*args, **kwargs))
        return parts[-1]

    if leaves[0].device.type != "cpu":
        whole: Any = compile_fx(graph, [*leaves], config_patches={"triton.cudagraphs": True})
    else:
        # To check the layout of 70 tensors takes as long as a product of a small network; `_ready` has checked it.
        options = {"cpp_wrapper": True, "memory_planning": True, "size_asserts": False}
        with functorch_config.patch(enable_autograd_cache=False):  # it would keep the parts from being seen
            whole = compile_fx(graph, [*leaves], inner_compile=compile_part, config_patches=options)
    # What PyTorch puts around the compiled code is for gradients, which nobody asks for here.
    run = parts[0].current_callable if len(parts) == 1 else lambda leaves: whole(*leaves)
    (structure_of_result,) = {*results}
    return lambda leaves: pytree.tree_unflatten(run(leaves), structure_of_result)


def _call(compiled: Callable[[Tensors], Any], leaves: Tensors) -> Any:  # noqa: ANN401 - the function's own
    """
    Run compiled code, with numbers below 1e-38 taken for 0: Adam's averages of a unit that died shrink for ever, and
    the processor computes slowly with those. It is a setting of the thread, put back afterwards.
    """
    was_on = _TINY * _ONE == 0.0
    th.set_flush_denormal(True)
    try:
        with th.no_grad():
            return compiled(leaves)
    finally:
        th.set_flush_denormal(bool(was_on))


_TINY, _ONE = np.float32(1e-39), np.float32(1.0)


class _Layout:
    """What compiled code relies on: shapes, strides and types of its tensors, compared and hashed once."""

    def __init__(self, tensors: Tensors) -> None:
        self.each = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
        self.hash = hash(tuple(self.each))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Layout) and self.each == other.each)

    def __hash__(self) -> int:
        return self.hash


def _contiguous(gradients: Named) -> Tensors:
    """In the layout of the weights: fused optimizers walk over both as plain memory."""
    return [gradient.contiguous() for gradient in gradients.values()]


def _compute_once(graph: th.fx.GraphModule) -> None:
    """
    What gives one number, such as Adam's powers of beta, the compiler repeats in each turn of the loops that use it,
    and a tanh, such as the actor's output, in each turn of the loops over the layer that takes it in.

    Behind such a value a view is put, for which the compiler stores the value first.
    """

    def is_number(node: th.fx.Node) -> bool:
        return isinstance(node.meta.get("val"), th.Tensor) and node.meta["val"].dim() == 0

    for node in graph.graph.nodes:
        users = [user for user in node.users if not is_number(user)]
        number = node.op == "call_function" and is_number(node) and all(map(is_number, node.all_input_nodes))
        if users and (number or node.target is th.ops.aten.tanh.default):
            shape, stride = [*node.meta["val"].shape], [*node.meta["val"].stride()]
            with graph.graph.inserting_after(node):
                stored = graph.graph.call_function(th.ops.aten.as_strided.default, (node, shape, stride))
            for user in users:
                user.replace_input_with(node, stored)
    graph.recompile()


def _take_from_parts(graph: th.fx.GraphModule) -> None:
    """A column of state and action side by side is one of the state or one of the action: no copy is needed for it."""
    for node in graph.graph.nodes:
        if node.target is not th.ops.aten.slice.Tensor or len(node.args) != 4:  # no step
            continue
        whole, dim, start, end = node.args
        if dim != 1 or whole.target is not th.ops.aten.cat.default or whole.args[1:] != (1,):
            continue
        for part in whole.args[0]:
            width = part.meta["val"].shape[1]
            if 0 <= start < end <= width:
                node.args = (part, 1, start, end)
            start, end = start - width, end - width
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _product(left: th.Tensor, right: th.Tensor) -> Any:  # noqa: ANN401 - NotImplemented is how a decomposition declines
    """A narrow product is several times as fast the other way round: (R' L')' instead of L R."""
    if left.shape[1] == 1 < right.shape[1] and left.is_contiguous():
        # Of a column and a row: merged with what follows. The view has the column stored, which others need too.
        return left.as_strided(left.shape, (1, 1)) * right
    if 1 < right.shape[1] < min(32, left.shape[0]):
        return right.t().mm(left.t()).t()
    return NotImplemented


def _product_and_bias(bias: th.Tensor, left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """Apart, so that the compiler merges the bias with what follows it; the views keep it from joining them again."""
    if left.shape[1] <= 8 < right.shape[1]:
        # Few inputs: the compiler merges the product too, if it is told as a sum, of rows that lie in one piece.
        rows = right.contiguous().as_strided(right.shape, (right.shape[1], 1))
        return sum((left[:, i : i + 1] * rows[i] for i in range(1, left.shape[1])), left[:, :1] * rows[0]) + bias
    return (left.mm(right)[None] + bias)[0]


def _lerp_one_by_one(targets: Tensors, values: Tensors, shares: Tensors) -> None:
    """The compiler does not know the form for lists; it merges these into the loops of Adam."""
    for target, value, share in zip(targets, values, shares, strict=True):
        target.lerp_(value, share)


#: How the recorded function says some things for the compiler.
_WORDINGS: dict[Any, Callable[..., Any]] = {
    th.ops.aten.mm.default: _product,
    th.ops.aten.addmm.default: _product_and_bias,
    th.ops.aten._foreach_lerp_.List: _lerp_one_by_one,
}


def _named_tensors(network: th.nn.Module) -> Named:
    """Weights and buffers: the network's own, so that whoever gives them new values is followed."""
    return dict([*network.named_parameters(), *network.named_buffers()])


def _is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    if (
        type(optimizer) not in (th.optim.Adam, th.optim.AdamW, FusedAdam, FusedAdamW)
        or len(optimizer.param_groups) != 1
    ):
        return False
    group = optimizer.param_groups[0]
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return not (group["amsgrad"] or group["maximize"] or hooks)


def _adam_settings(optimizer: th.optim.Optimizer) -> tuple[Any, ...]:
    group = optimizer.param_groups[0]
    return (*group["betas"], group["weight_decay"], group["eps"], group["decoupled_weight_decay"])


def _adam_state(optimizer: th.optim.Optimizer) -> list[Tensors]:
    """First moments, second moments and step counters of the tensors that learn."""
    states = [optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"]]
    return [[state[name] for state in states if state] for name in ("exp_avg", "exp_avg_sq", "step")]


def _adam_step(
    names: list[str], weights: Named, gradients: Tensors, state: list[Tensors], rate: th.Tensor,
    settings: tuple[Any, ...],
) -> None:  # fmt: skip
    """PyTorch's own Adam, in place."""
    beta1, beta2, weight_decay, eps, decoupled_weight_decay = settings
    # `differentiable` chooses the variant whose step counter and learning rate are tensors, so they can be inputs.
    adam(
        [weights[name] for name in names], gradients, state[0], state[1], [], state[2], foreach=False,
        differentiable=True, fused=False, decoupled_weight_decay=decoupled_weight_decay, amsgrad=False, beta1=beta1,
        beta2=beta2, lr=rate, weight_decay=weight_decay, eps=eps, maximize=False,
    )  # fmt: skip
