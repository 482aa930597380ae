"""The update of `SimpleDDPG.train` as compiled code, for `compile_updates`.

Not here: another statement of the algorithm. What is compiled are the networks and the equations of `equations.py`.

The functions below are recorded once with stand-in tensors and handed to PyTorch's compiler (`compiler.py`). Weights,
optimizer states, learning rates, tau, discounts and the numbers of Adam are inputs, so whatever changes between two
updates is taken up. What cannot be an input is looked at before each update (`networks.py`).

Before a function is used, it makes one update of a copy of the model, and the plain path one of another copy
(`rehearsal.py`). It is used if both come out the same. Otherwise the plain path goes on; a `CompileWarning` says why.
"""

import gc
import operator
import time
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn
from torch.func import functional_call

from sb3_simple_ddpg.equations import actor_loss, critic_loss, soft_update, td_target
from sb3_simple_ddpg.policies import Critic, only
from sb3_simple_ddpg.safety.checks import CompileWarning
from sb3_simple_ddpg.safety.numbers import Update
from sb3_simple_ddpg.speed import compiler, products, torch_private
from sb3_simple_ddpg.speed.networks import ROLES, Networks
from sb3_simple_ddpg.speed.optimizers import FusedAdam, FusedAdamW, has_its_own_zero_grad, with_those_held
from sb3_simple_ddpg.speed.rehearsal import Disagreement, NotFinite, Rehearsal, Unsuitable
from sb3_simple_ddpg.speed.torch_private import tree_flatten, tree_leaves, tree_map

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

Tensors: TypeAlias = list[th.Tensor]
Compiled: TypeAlias = Callable[[Tensors], Any]
Named: TypeAlias = dict[str, th.Tensor]
Settings: TypeAlias = tuple[th.Tensor, ...]  # of one weight, see `_adam_numbers` and `_adam_settings`

#: Compiled functions that a model keeps: of another batch size, or with a layer frozen, for example.
MOST_FUNCTIONS = 4
#: Plain updates of another kind before one more function is compiled for it: about what compiling costs.
PATIENCE = 1000
#: Changes of layers, and of which of them are frozen, that are followed: each takes a rehearsal.
MOST_KINDS = 30
#: Two ways to compute the same may disagree in one batch, where a ReLU is at its corner. So many are tried.
TRIES = 3


class _Kind(NamedTuple):
    """What a compiled function was made for, all but the layout of its tensors."""

    #: The networks' layers and attributes: `Networks.structure`.
    structure: object
    #: Names of the weights that learn, of actor and critic.
    learning: tuple[tuple[str, ...], tuple[str, ...]]
    #: Whether gradients are clipped.
    clipped: bool


class CompiledUpdates:
    """What has been compiled for one model. It keeps no model, so a copy of a model starts with an empty one."""

    def __init__(self) -> None:
        self.seconds = 0.0  # spent compiling
        self.failure: str | None = None  # why the last update was a plain one, where somebody has to be told
        self._functions: OrderedDict[object, Compiled] = OrderedDict()
        self._unsuitable: dict[object, str] = {}
        self._disagreements: Counter[object] = Counter()
        self._waited: Counter[object] = Counter()
        self._learning: dict[object, list[list[str]]] = {}
        self._inputs: _Inputs | None = None
        self._told: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledUpdates":
        return CompiledUpdates()

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledUpdates, ()

    def choose(self, model: "Agent", batch: ReplayBufferSamples) -> Update:
        """
        :param model: as it is now
        :param batch: of the next update
        :return: the update, compiled where that is known to give what the plain one gives
        """
        networks = model._networks.look_closely(model)
        reason = _needs_python(model, networks)
        if reason is not None:
            return self._go_plainly(model, reason)
        inputs = self._inputs
        if inputs is None or not inputs.are_those_of(model, networks):
            inputs = self._inputs = self._collect(model, networks, batch)
            if inputs is None:
                return model._update
        if not inputs.ready or not 0.0 <= model.tau <= 1.0:
            return model._update  # which creates the optimizers' states, or says what is wrong with tau
        if inputs.unfit:
            return self._go_plainly(model, inputs.unfit)
        key = inputs.kind, inputs.layout, _layout_of_batch(batch), products.decided()
        function = self._functions.get(key)
        if function is None:
            function = self._compile_when_it_pays(model, inputs, batch, key)
            if function is None:
                return model._update
        self._functions.move_to_end(key)
        self.failure = None
        if any(own[0].grad is not None for own in inputs.learning if own):  # an earlier update was a plain one
            _forget_gradients(inputs.learning)
        return _CompiledUpdate(inputs, model, function, partial(self._give_up, model, key))

    def _collect(self, model: "Agent", networks: Networks, batch: ReplayBufferSamples) -> "_Inputs | None":
        """The inputs of compiled code; None where the plain path has to go on."""
        if _move_another_network(model, networks):
            self._go_plainly(model, "an optimizer moves weights of another network than its own")
            return None
        kind = networks.structure, tuple(weight.requires_grad for weight in _main_weights(networks))
        if kind not in self._learning and kind not in self._unsuitable:
            if len(self._learning) == MOST_KINDS:
                self._go_plainly(model, f"layers change again and again, {networks.changed or 'one'} among them")
                return None
            try:
                self._learning[kind] = Rehearsal(model, batch).learning
            except NotFinite:
                return None
            except Exception as error:  # whatever a copy of the user's classes stumbles over
                self._unsuitable[kind] = _say(error)
        if kind in self._unsuitable:
            self._go_plainly(model, self._unsuitable[kind])
            return None
        return _Inputs(model, networks, self._learning[kind])

    def _compile_when_it_pays(
        self, model: "Agent", inputs: "_Inputs", batch: ReplayBufferSamples, key: object
    ) -> Compiled | None:
        if key in self._unsuitable:
            self._go_plainly(model, self._unsuitable[key])
            return None
        if self._functions and self._waited[key] < PATIENCE:
            # The first function is compiled at once, since it was asked for; a run is not stopped for each other one.
            self._waited[key] += 1
            if self._waited[key] == 1:
                model.logger.info(f"Plain updates of another kind; compiled after {PATIENCE} of them.")
            return None
        try:
            function = self._compile(model, inputs, batch)
        except NotFinite:
            return None
        except Disagreement as error:
            self._disagreements[key] += 1
            if self._disagreements[key] == TRIES:
                self._give_up(model, key, error)
            return None
        except Exception as error:  # whatever the compiler stumbles over, the plain path is there
            self._give_up(model, key, error)
            return None
        self._functions[key] = function
        if len(self._functions) > MOST_FUNCTIONS:
            self._functions.popitem(last=False)
        return function

    def _compile(self, model: "Agent", inputs: "_Inputs", batch: ReplayBufferSamples) -> Compiled:
        rehearsal = Rehearsal(model, batch)
        fast = rehearsal.fast
        fast_inputs = _Inputs(fast, fast._networks.look_closely(fast), rehearsal.learning)
        if (fast_inputs.layout, fast_inputs.kind.learning) != (inputs.layout, inputs.kind.learning):
            # Compiled code does not look at the layout again, and would read and write beside the tensors.
            raise Unsuitable("weights or optimizer states lie in memory in an order that a copy does not have")
        started = time.perf_counter()
        # PyTorch's compiler warns of PyTorch's own parts.
        with warnings.catch_warnings(action="ignore"), rehearsal.streams_kept():
            function = fast_inputs.compile(fast, batch)
        self.seconds += time.perf_counter() - started
        model.logger.info(f"Compiled the update ({self.seconds:.1f} s so far).")
        with rehearsal.streams_kept():
            rehearsal.compare(_CompiledUpdate(fast_inputs, fast, function, _raise)(rehearsal.batch()))
        return function

    def _give_up(self, model: "Agent", key: object, error: Exception) -> None:
        self._functions.pop(key, None)
        self._unsuitable[key] = _say(error)
        self._go_plainly(model, self._unsuitable[key])

    def _go_plainly(self, model: "Agent", reason: str) -> Update:
        self.failure = reason
        if reason not in self._told:
            self._told.add(reason)
            if model.compile_updates == "auto":  # nobody has asked for it
                model.logger.info(f"Updates are not compiled, the plain path goes on: {reason}.")
                return model._update
            sentence = f"compile_updates=True has no effect, the plain path goes on: {reason}."
            model.logger.warn(sentence)
            warnings.warn(sentence, CompileWarning, stacklevel=2)
        return model._update


class _Inputs:
    """
    The tensors that compiled code takes, all but those of the batch: the model's own, so that new values are followed.

    :param model: the algorithm
    :param networks: its networks of now
    :param learning: names of the weights that have a gradient, of actor and critic
    """

    def __init__(self, model: "Agent", networks: Networks, learning: list[list[str]]) -> None:
        roots = [getattr(model, role) for role in ROLES]
        self.named = tuple(dict([*root.named_parameters(), *root.named_buffers()]) for root in roots)
        self.optimizers = model.actor.optimizer, model.critic.optimizer
        self._version = networks.version
        self._groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        # Lists of groups and of their weights, states by weight, and each state: no object in them may be another.
        self._holders = [part for optimizer in self.optimizers for part in (optimizer.param_groups, optimizer.state)]
        self._holders += [group["params"] for group in self._groups]
        self._holders += [state for optimizer in self.optimizers for state in optimizer.state.values()]
        self._held = gc.get_referents(*self._holders)
        of_optimizer = {weight for group in self._groups for weight in group["params"]}
        names = [
            [n for n in names if named[n] in of_optimizer] for names, named in zip(learning, self.named, strict=False)
        ]
        self.learning = [[named[name] for name in own] for own, named in zip(names, self.named, strict=False)]
        states = [
            [optimizer.state.get(weight) for weight in weights]
            for optimizer, weights in zip(self.optimizers, self.learning, strict=True)
        ]
        self.ready = all(state for own in states for state in own)
        self.moments = [[[state[name] for name in _MOMENTS] for state in own if state] for own in states]
        self.leaves: Tensors = tree_leaves((self.named, self.moments))
        dtypes = {tensor.dtype for tensor in self.leaves if tensor.is_floating_point()}
        #: Why code that writes cannot be made for these tensors; empty where it can.
        self.unfit = ""
        if _overlap(self.leaves):
            self.unfit = "weights share memory, which compiled code would take for two"
        elif dtypes != {th.float32}:
            self.unfit = "weights are not of float32"
        place = {weight: index for index, group in enumerate(self._groups) for weight in group["params"]}
        places = [place[weight] for own in self.learning for weight in own]
        self.kind = _Kind(networks.structure, (tuple(names[0]), tuple(names[1])), model.max_grad_norm is not None)
        self.layout = _Layout(self.leaves)
        self.numbers = _AdamNumbers(self._groups, places, model.device)
        # `weight.data = ...` gives a weight another place, order or shape.
        self._placed: Tensors = tree_leaves(self.named)
        self._addresses = list(map(th.Tensor.data_ptr, self._placed))
        self._have_their_layout = torch_private.layout_check(self._placed)
        self._constants: dict[str, tuple[float, th.Tensor]] = {}

    def are_those_of(self, model: "Agent", networks: Networks) -> bool:
        """
        :param model: as it is now
        :param networks: its networks of now
        :return: whether all objects, and what compiled code depends on, are those of before
        """
        actors, critics = self.optimizers
        if (
            self._version is not networks.version
            or model.actor.optimizer is not actors
            or model.critic.optimizer is not critics
            or actors.param_groups is not self._holders[0]
            or actors.state is not self._holders[1]
            or critics.param_groups is not self._holders[2]
            or critics.state is not self._holders[3]
        ):
            return False
        held = gc.get_referents(*self._holders)
        return (
            len(held) == len(self._held)
            and all(map(operator.is_, held, self._held))
            and list(map(th.Tensor.data_ptr, self._placed)) == self._addresses
            and self._have_their_layout()
            and (model.max_grad_norm is not None) == self.kind.clipped
        )

    def arguments(self, model: "Agent", batch: ReplayBufferSamples) -> tuple[Any, ...]:
        """What `_whole_update` takes, behind the model and the names."""
        numbers, settings = self.numbers.of_now(), self.settings(model, batch)
        return self.named, self.moments, numbers, settings, tree_map(th.Tensor.contiguous, tuple(batch[:5]))

    def tensors(self, model: "Agent", batch: ReplayBufferSamples) -> Tensors:
        """The tensors of `arguments`, in its order, without walking through it: that takes as long as the update."""
        fields = batch[:5] if type(batch[0]) is th.Tensor else tree_leaves(batch[:5])
        fields = [field.contiguous() for field in fields]
        return [*self.leaves, self.numbers.of_now(), *self.settings(model, batch), *fields]

    def settings(self, model: "Agent", batch: ReplayBufferSamples) -> Tensors:
        """As they are now: what is `written`, tau, gamma (of n-step returns one a transition), and max_grad_norm."""
        device = model.device
        settings = [self.numbers.written, self._constant("tau", model.tau, device)]
        if batch.discounts is None:
            settings.append(self._constant("gamma", model.gamma, device))
        else:
            settings.append(batch.discounts.contiguous())
        if model.max_grad_norm is not None:
            settings.append(self._constant("max_grad_norm", model.max_grad_norm, device))
        return settings

    def _constant(self, name: str, value: float, device: th.device) -> th.Tensor:
        """A number as an input of compiled code: a tensor of shape (), holding the value of now."""
        known = self._constants.get(name)
        if known is None:
            known = (value, th.tensor(value, dtype=th.float32, device=device))
        elif known[0] != value:
            known = (value, known[1].fill_(value))
        self._constants[name] = known
        return known[1]

    def plainly(self, model: "Agent", batch: ReplayBufferSamples) -> th.Tensor:
        """What compiled code gives, without a compiler."""
        with th.no_grad():
            return _whole_update(model, self.kind, *self.arguments(model, batch))

    def compile(self, model: "Agent", batch: ReplayBufferSamples) -> Compiled:
        """The update as one function of `tensors`."""
        leaves, structure = tree_flatten(self.arguments(model, batch))
        return compiler.compile_function(partial(_whole_update, model, self.kind), leaves, structure)


class _AdamNumbers:
    """
    The settings of Adam as they are now, one row for each weight that learns, in float64 as PyTorch computes with them.

    :param groups: all groups of weights of the optimizers
    :param places: of each weight that learns, the place of its group among them
    :param device: of the weights
    """

    def __init__(self, groups: list[dict[str, Any]], places: list[int], device: th.device) -> None:
        self._groups, self._places = groups, places
        self._known: list[tuple[Any, ...]] = []
        self._tensor = th.zeros((len(places), 8), dtype=th.float64, device=device)
        #: No longer 0 once compiled code has begun to write: it does so last.
        self.written = th.zeros((), dtype=th.float64, device=device)

    def of_now(self) -> th.Tensor:
        """
        :return: shape (weights, 8), on the device; the same memory each time
        """
        settings = [_ADAM_SETTINGS(group) for group in self._groups]
        if settings != self._known:
            self._known = settings
            rows = th.tensor([_adam_numbers(*each) for each in settings], dtype=th.float64)
            self._tensor.copy_(rows[self._places])
        return self._tensor


_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_ADAM_SETTINGS = operator.itemgetter("lr", "betas", "weight_decay", "eps", "maximize", "decoupled_weight_decay")


def _adam_numbers(
    rate: float, betas: tuple[float, float], weight_decay: float, eps: float, maximize: bool, decoupled: bool
) -> tuple[float, ...]:
    """In the order in which `_adam_settings` and `_new_moments` take them."""
    return (
        -1.0 if maximize else 1.0,
        0.0 if decoupled else weight_decay,
        1.0 - float(rate) * weight_decay if decoupled else 1.0,
        float(rate),
        float(betas[0]),
        float(betas[1]),
        eps,
        # Averages of a unit that died shrink for ever, and the processor computes slowly with numbers below 1e-38.
        # Added and taken away again, this leaves 0 of numbers below 1e-37, and moves no other by more than that.
        1e-30 if eps >= 1e-15 else 0.0,
    )


@dataclass
class _CompiledUpdate:
    """
    Lines 8 to 11 of Algorithm 1 as one compiled function. Nothing moves where anything is not finite.

    :param inputs: of the model
    :param model: the algorithm
    :param function: compiled for this layout
    :param give_up: called with the error when compiled code fails
    """

    inputs: _Inputs
    model: "Agent"
    function: Compiled
    give_up: Callable[[Exception], None]

    looks_itself = True
    #: Whether it serves for the next batch too, if nothing has changed: not once compiled code has failed.
    goes_on = True

    def __call__(self, batch: ReplayBufferSamples) -> th.Tensor:
        """
        :param batch: B transitions
        :return: what is logged of it, and behind it what was found: shape (6,)
        """
        inputs, model = self.inputs, self.model
        inputs.numbers.written.zero_()  # read where something fails alone: a GPU is not to be waited for
        try:
            with th.no_grad():
                statistics: th.Tensor = self.function(inputs.tensors(model, batch))
        except Exception as error:
            if inputs.numbers.written.item():
                raise RuntimeError(
                    "Compiled code failed while it wrote the new weights, which may be those of before in part: load "
                    "the last checkpoint, and go on with compile_updates=False."
                ) from error
            self.goes_on = False
            self.give_up(error)
            statistics = inputs.plainly(model, batch)
        return statistics


def _whole_update(
    model: "Agent", kind: _Kind, networks: tuple[Named, ...], moments: list[list[Tensors]], numbers: th.Tensor,
    settings: Tensors, batch: tuple[Any, ...],
) -> th.Tensor:  # fmt: skip
    """Losses, gradients, Adam and soft updates. All that is new is looked at before it is written."""
    actor, critic, actor_target, critic_target = networks
    written, tau, discounts, *limit = settings
    of_actor, of_critic = kind.learning
    count = len(of_actor)
    gradients, critic_statistics = _critic_gradients(
        model, of_critic, critic, actor_target, critic_target, discounts, batch
    )
    gradients = _clipped(gradients, *limit)
    of_critic_now = _adam_settings(moments[1], numbers[count:])
    new_critic, largest = _new_weights(critic, of_critic, gradients, moments[1], of_critic_now)
    critic_found = _found(critic_statistics[0], largest)
    writes = list(zip(of_critic, gradients, moments[1], of_critic_now, strict=True))

    gradients, actor_statistics = _actor_gradients(model, of_actor, actor, {**critic, **new_critic}, batch)
    gradients = _clipped(gradients, *limit)
    of_actor_now = _adam_settings(moments[0], numbers[:count])
    new_actor, largest = _new_weights(actor, of_actor, gradients, moments[0], of_actor_now)
    actor_found = _found(actor_statistics[0], largest)

    found = critic_found | actor_found
    statistics = th.cat([_in_order(critic_statistics, actor_statistics), (critic_found + 2.0 * actor_found)[None]])
    for role, main, target, new, own in (
        ("critic", critic, critic_target, new_critic, writes),
        ("actor", actor, actor_target, new_actor, zip(of_actor, gradients, moments[0], of_actor_now, strict=True)),
    ):
        mains = [{**main, **new}[name] for name, _ in getattr(model, role).named_parameters()]
        targets = [target[name] for name, _ in getattr(model, f"{role}_target").named_parameters()]
        moved = [tensor.clone() for tensor in targets]
        soft_update(mains, moved, tau)
        for old, now in zip(targets, moved, strict=True):
            old.copy_(th.where(found, old, now))
        for name, gradient, (mean, square, step), row in own:
            new_mean, new_square = _new_moments(main[name], gradient, mean, square, row)
            for old, now in ((mean, new_mean), (square, new_square), (main[name], new[name]), (step, step + 1)):
                old.copy_(th.where(found, old, now))
    written.add_(th.where(found, 1.0, 2.0))
    return statistics


def _critic_gradients(
    model: "Agent", names: tuple[str, ...], critic: Named, actor_target: Named, critic_target: Named,
    discounts: th.Tensor, batch: tuple[Any, ...],
) -> tuple[Tensors, th.Tensor]:  # fmt: skip
    """Lines 8-9: gradients of the critic's loss; the loss, the mean of Q and the mean of the targets."""
    observations, actions, next_observations, terminated, rewards = batch
    with th.no_grad():
        next_actions = functional_call(model.actor_target, actor_target, (next_observations,))
        next_q_values = only(functional_call(model.critic_target, critic_target, (next_observations, next_actions)))
        targets = td_target(rewards, terminated, discounts, next_q_values)
    with th.enable_grad():
        learning = _learning(critic, names)
        q_values = only(functional_call(model.critic, {**critic, **learning}, (observations, actions)))
        loss = critic_loss(q_values, targets)
        gradients = _gradients(loss, learning)
    return gradients, th.stack([loss.detach(), q_values.detach().mean(), targets.mean()])


def _actor_gradients(
    model: "Agent", names: tuple[str, ...], actor: Named, critic: Named, batch: tuple[Any, ...]
) -> tuple[Tensors, th.Tensor]:
    """Line 10: gradients of the actor's loss; the loss and the share of saturated actions."""
    observations = batch[0]
    with th.enable_grad():
        learning = _learning(actor, names)
        actions = functional_call(model.actor, {**actor, **learning}, (observations,))
        of_critic = {f"critic.{name}": tensor for name, tensor in critic.items()}
        loss = actor_loss(functional_call(_Q1(model.critic), of_critic, (observations, actions)))
        gradients = _gradients(loss, learning)
    saturation = (actions.detach().abs() > 0.99).float().mean()
    return gradients, th.stack([loss.detach(), saturation])


class _Q1(nn.Module):
    """`critic.q1_forward` as a module, which `functional_call` takes."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, observations: Any, actions: th.Tensor) -> th.Tensor:  # noqa: ANN401 - tensors, one or a Dict
        return self.critic.q1_forward(observations, actions)


def _learning(tensors: Named, names: tuple[str, ...]) -> Named:
    return {name: tensors[name].detach().requires_grad_() for name in names}


def _gradients(loss: th.Tensor, learning: Named) -> Tensors:
    """In the layout of the weights: fused optimizers walk over both as plain memory."""
    if not learning:
        return []
    return [gradient.contiguous() for gradient in th.autograd.grad(loss, list(learning.values()))]


def _clipped(gradients: Tensors, limit: th.Tensor | None = None) -> Tensors:
    """As `clip_grad_norm_`: where their common norm is above the limit, they are shortened to it."""
    if limit is None or not gradients:
        return gradients
    norm = th.linalg.vector_norm(th.stack([th.linalg.vector_norm(gradient) for gradient in gradients]))
    share = (limit / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * share for gradient in gradients]


def _adam_settings(moments: list[Tensors], numbers: th.Tensor) -> list[Settings]:
    """
    Both corrections of the bias are worked out in float64, as PyTorch does: in float32 they are wrong in the fourth
    digit after 20 updates.

    :return: for each weight, in float32, what `_new_moments` and `_new_weights` take
    """
    if not moments:
        return []
    steps = th.stack([step for _, _, step in moments]).double() + 1
    rates, beta1, beta2 = numbers[:, 3], numbers[:, 4], numbers[:, 5]
    corrected = rates / (1 - beta1**steps), (1 - beta2**steps).rsqrt(), 1 - beta1, 1 - beta2
    known = [compiler.stored(column.float()).unbind() for column in corrected]
    rows = compiler.stored(numbers.float()).unbind()
    return [(*row.unbind(), *own) for row, own in zip(rows, zip(*known, strict=True), strict=True)]


def _new_moments(
    weight: th.Tensor, gradient: th.Tensor, mean: th.Tensor, square: th.Tensor, settings: Settings
) -> tuple[th.Tensor, th.Tensor]:
    """Kingma & Ba 2015, Algorithm 1, and the weight decay of PyTorch's Adam."""
    sign, weight_decay, _, _, _, beta2, _, smallest, _, _, share, share2 = settings
    slope = sign * gradient + weight_decay * weight
    new_mean = (mean + share * (slope - mean) + smallest) - smallest
    return new_mean, (beta2 * square + share2 * slope * slope + smallest) - smallest


def _new_weights(
    weights: Named, names: tuple[str, ...], gradients: Tensors, moments: list[Tensors], settings: list[Settings]
) -> tuple[Named, Tensors]:
    """
    Kingma & Ba 2015, Algorithm 1, and the weight decay of PyTorch's AdamW.

    The moments are thrown away here and worked out again where they are written: memory costs more than sums.

    :return: new weights by name, and of each the largest number in it and its second moment, NaN where one is NaN: a
        gradient that is not finite leaves no finite moment. Nothing is written
    """
    new, largest = {}, []
    for name, gradient, (mean, square, _), own in zip(names, gradients, moments, settings, strict=True):
        _, _, shrink, _, _, _, eps, _, step_size, inverse_root, _, _ = own
        new_mean, new_square = _new_moments(weights[name], gradient, mean, square, own)
        new[name] = shrink * weights[name] - step_size * new_mean / (new_square.sqrt() * inverse_root + eps)
        largest.append((new[name].abs() + new_square).amax())
    return new, largest


def _found(loss: th.Tensor, largest: Tensors) -> th.Tensor:
    """Whether one of these numbers is not finite."""
    return ~th.isfinite(sum((number.double() for number in largest), loss.double()))


def _in_order(of_critic: th.Tensor, of_actor: th.Tensor) -> th.Tensor:
    """As `_statistics` in simple_ddpg.py: both losses, the means of Q and of the targets, the saturation."""
    return th.cat([of_critic[:1], of_actor[:1], of_critic[1:], of_actor[1:]])


def _forget_gradients(of: Iterable[Tensors]) -> None:
    """No gradient of an earlier, plain update is to be taken for one of this update."""
    for weights in of:
        for weight in weights:
            weight.grad = None


def _overlap(tensors: Tensors) -> bool:
    """Whether two of them have numbers in common. Those that `vector_to_parameters` made lie one after the other."""
    places = []
    for tensor in tensors:
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            places.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()))
    places.sort()
    return any(start < end for (_, end), (start, _) in pairwise(places))


def _main_weights(networks: Networks) -> Tensors:
    return [*networks.weights["actor"], *networks.weights["critic"]]


def _needs_python(model: "Agent", networks: Networks) -> str | None:
    """What compiled code would pass over; None where there is nothing."""
    kind, own = type(model), vars(model)
    for name in _OF_UPDATE:
        if name in own or not _is_of_this_package(getattr(kind, name)):
            return f"{kind.__name__}.{name} is not SimpleDDPG's"
    if has_its_own_zero_grad(model.actor.optimizer) or has_its_own_zero_grad(model.critic.optimizer):
        return "an optimizer has a zero_grad of its own"
    hooked = networks.hooked()
    if hooked:
        return f"somebody listens to {hooked}, or has given it another method"
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        if not _is_plain_adam(optimizer):
            return f"{type(optimizer).__name__} with its options and hooks is not compiled, plain Adam and AdamW alone"
    return torch_private.why_python_is_needed(model.device)


def _move_another_network(model: "Agent", networks: Networks) -> bool:
    """Whether an optimizer holds weights of another network. Code that calls what is in none cannot be compiled."""
    known = set(map(id, chain.from_iterable(networks.weights.values())))
    for role, optimizer in (("actor", model.actor.optimizer), ("critic", model.critic.optimizer)):
        weights = networks.weights[role]
        if not known.isdisjoint(map(id, with_those_held(weights, optimizer)[len(weights) :])):
            return True
    return False


def _is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    if type(optimizer) not in _ADAMS or "step" in vars(optimizer):
        return False
    for group in optimizer.param_groups:
        if group["amsgrad"] or group["differentiable"]:
            return False
    return not torch_private.optimizer_is_listened_to(optimizer)


_ADAMS = frozenset({th.optim.Adam, th.optim.AdamW, FusedAdam, FusedAdamW})


def _layout_of_batch(batch: ReplayBufferSamples) -> object:
    if type(batch[0]) is th.Tensor and batch.discounts is None:
        return (*[field.shape for field in batch[:5]], *[field.dtype for field in batch[:5]])
    leaves, structure = tree_flatten(batch)
    return str(structure), *[(leaf.shape, leaf.dtype) if isinstance(leaf, th.Tensor) else leaf for leaf in leaves]


class _Layout:
    """What compiled code relies on: shapes, strides and types of its tensors, compared and hashed once."""

    def __init__(self, tensors: Tensors) -> None:
        self.each = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors]
        self.hash = hash(tuple(self.each))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Layout) and self.each == other.each)

    def __hash__(self) -> int:
        return self.hash


def _say(error: Exception) -> str:
    if isinstance(error, Unsuitable):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _raise(error: Exception) -> None:
    raise error


def _is_of_this_package(function: Any) -> bool:  # noqa: ANN401 - whatever stands in the method's place
    """Whether a method is the one of simple_ddpg.py, and no other that was put in its place or around it."""
    return getattr(function, "__globals__", _NO_GLOBALS).get("__name__") == _ALGORITHM


_NO_GLOBALS: dict[str, Any] = {}
_ALGORITHM = "sb3_simple_ddpg.simple_ddpg"
#: What compiled code stands for.
_OF_UPDATE = ("_update", "_gradient_step")
