"""The networks of DDPG: actor mu(s), critic Q(s, a), and the policy that builds both, each with its target network.

Not here: how they learn (`simple_ddpg.py`, `equations.py`), where noise is added (`SimpleDDPG._sample_action`).

DDPG is in `Actor.forward`, `Critic.forward` and `DDPGPolicy._build`. All else is the interface of Stable-Baselines3
(SB3), or speed. Layers, names (`mu`, `qf0`) and the order of construction are SB3's. So one seed gives the weights of
SB3's DDPG, and weights of one fit the other. B is the batch size, A the number of action dimensions.
"""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_simple_ddpg.blocks import DENSE, Layers, ResidualBlock, kinds_of, make_layers
from sb3_simple_ddpg.safety.checks import check_actions, check_optimizer_kwargs, plain_net_arch
from sb3_simple_ddpg.speed.layers import DenseLayers, LayersOfNow, call, only_flattens
from sb3_simple_ddpg.speed.optimizers import FusedAdam, FusedAdamW, FusedSGD


class Actor(BasePolicy):
    """
    mu(s): the action to take. Dense layers, then tanh, so that every output lies in [-1, 1].

    The map from [-1, 1] to the environment's `[low, high]` is no layer: `predict` applies it (`unscale_action`).

    :param observation_space: the observations s
    :param action_space: the actions, a Box with finite bounds and A dimensions in all
    :param net_arch: units of each hidden layer; may be empty
    :param features_extractor: turns observations into a flat vector (flatten, CNN, ...)
    :param features_dim: length of that vector
    :param activation_fn: between the layers
    :param normalize_images: divide images by 255
    :param layers: their kind, see `blocks.py`
    """

    layer_kind: str = DENSE

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        layers: str = DENSE,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,  # tells SB3's `predict` to map [-1, 1] to [low, high]
        )
        self.net_arch = net_arch
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        self.layer_kind = layers
        # Linear, ReLU, Linear, ReLU, ..., Linear, tanh. DenseLayers is nn.Sequential with fewer calls.
        outputs = get_action_dim(action_space)
        self.mu = DenseLayers(*make_layers(layers, features_dim, outputs, net_arch, activation_fn, squash_output=True))

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: s, a batch of B
        :return: mu(s), shape (B, A), in [-1, 1]
        """
        features = _extract_features(self, observations)  # of a vector: the observation itself
        mu = self._modules.get("mu")  # PyTorch's way to `self.mu` takes longer than some layers
        if mu is None or type(self) is not Actor:  # the user's own class may have its own way
            mu = self.mu
        actions: th.Tensor = call(mu, features)  # self.mu(features), in fewer calls
        return actions

    @property
    def device(self) -> th.device:
        """Where the weights are; SB3 walks over all modules to find out, at every prediction."""
        weight = _first_weight(self)
        return super().device if weight is None else weight.device

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        # The policy is deterministic; the flag exists in SB3's interface for stochastic ones.
        actions: th.Tensor = self(observation)
        return actions

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "net_arch": self.net_arch,
            "features_dim": self.features_dim,
            "activation_fn": self.activation_fn,
            "features_extractor": self.features_extractor,
            "layers": self.layer_kind,
        }


class Critic(BaseModel):
    """
    Q(s, a): the discounted return expected after action a in s. State and action enter together, at the input.

    :param observation_space: the observations s
    :param action_space: the actions, of A dimensions in all
    :param net_arch: units of each hidden layer; may be empty
    :param features_extractor: turns observations into a flat vector (flatten, CNN, ...)
    :param features_dim: length of that vector
    :param activation_fn: between the layers
    :param normalize_images: divide images by 255
    :param share_features_extractor: the extractor is the actor's and learns from the actor's loss alone
    :param n_critics: SB3's argument; must be 1
    :param layers: their kind, see `blocks.py`
    :raises ValueError: for another number of critics
    """

    #: SB3's name.
    n_critics: ClassVar[int] = 1
    layer_kind: str = DENSE
    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        share_features_extractor: bool = False,
        n_critics: int = 1,
        layers: str = DENSE,
    ) -> None:
        _check_n_critics(n_critics)
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.net_arch = net_arch
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        self.share_features_extractor = share_features_extractor
        self.layer_kind = layers
        # Linear, ReLU, ..., Linear. SB3 calls its first critic qf0: a weight file of one library fits the other.
        inputs = features_dim + get_action_dim(action_space)
        self.qf0 = DenseLayers(*make_layers(layers, inputs, 1, net_arch, activation_fn))

    def forward(self, observations: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param observations: s, a batch of B
        :param actions: a, shape (B, A), in [-1, 1]
        :return: a tuple of one, as SB3's critics give one for each of theirs: Q(s, a), shape (B, 1), in the unit of a
            return
        """
        features = _extract_features(self, observations)
        if self.share_features_extractor:
            features = features.detach()
        q_values: th.Tensor = call(self.qf0, th.cat([features, actions], dim=1))  # self.qf0(...), in fewer calls
        return (q_values,)

    def q1_forward(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        What the actor learns from, as in SB3. A subclass with another `forward` has another `q1_forward` too.

        :param observations: s, a batch of B
        :param actions: a, shape (B, A), in [-1, 1]
        :return: Q(s, a), shape (B, 1), in the unit of a return
        """
        with th.no_grad():  # in the actor's step the critic is constant, its extractor too
            features = _extract_features(self, observations)
        q_values: th.Tensor = call(self.qf0, th.cat([features, actions], dim=1))
        return q_values

    @property
    def q_networks(self) -> tuple[nn.Module, ...]:
        """SB3's name for the layers of its critics: those of the one. Others are put in their place in `qf0`."""
        return (self.qf0,)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "net_arch": self.net_arch,
            "features_dim": self.features_dim,
            "activation_fn": self.activation_fn,
            "features_extractor": self.features_extractor,
            "share_features_extractor": self.share_features_extractor,
            "layers": self.layer_kind,
        }


def _check_n_critics(n_critics: int) -> None:
    if n_critics != 1:
        raise ValueError(f"n_critics must be 1, got {n_critics}: for twin critics use stable_baselines3.TD3.")


def only(q_values: tuple[th.Tensor, ...]) -> th.Tensor:
    """
    The one Q(s, a) of what a critic gives.

    :param q_values: a tuple of one tensor, shape (B, 1)
    :return: the tensor
    :raises TypeError: for what is no tuple: to take the first row of a tensor for it would be wrong without a word
    :raises ValueError: for a tuple of several
    """
    if not isinstance(q_values, tuple | list):
        raise TypeError(
            f"The critic must give a tuple of one tensor, as in SB3, got {type(q_values).__name__}: end its forward "
            "with `return (q_values,)`, and give the tensor itself in q1_forward, which the actor learns from."
        )
    if len(q_values) != 1:
        raise ValueError(
            f"The critic must give a tuple of one tensor, got {len(q_values)}: DDPG has one critic; for twin critics "
            "use stable_baselines3.TD3."
        )
    return q_values[0]


class DDPGPolicy(BasePolicy):
    """
    The four networks `actor, actor_target, critic, critic_target` and the two optimizers.

    :param observation_space: the observations
    :param action_space: the actions, a Box with finite bounds
    :param lr_schedule: learning rate of both optimizers, a function of the progress remaining (1 to 0)
    :param net_arch: hidden layers of both networks, or `dict(pi=[...], qf=[...])` where they differ;
        None: [400, 300], and [256, 256] on top of a CNN, as in SB3
    :param activation_fn: between the layers
    :param features_extractor_class: None: the policy's own. MlpPolicy flattens, CnnPolicy has a CNN,
        MultiInputPolicy has one extractor for each key
    :param features_extractor_kwargs: arguments of the extractor
    :param normalize_images: divide images by 255
    :param optimizer_class: of both networks, Adam by default
    :param optimizer_kwargs: its arguments without the learning rate
    :param critic_optimizer_kwargs: more arguments, for the critic alone (a weight decay of its own, for example)
    :param n_critics: must be 1; settings for SB3's DDPG may name it
    :param share_features_extractor: actor and critic use one extractor, trained by the actor's loss
    :param last_layer_init: x: weights and biases of both last layers start in U(-x, x), 3e-3 in the paper;
        None: PyTorch's default
    :param layers: "dense" is DDPG; "layer_norm", "residual", or `dict(pi=..., qf=...)` where they differ: `blocks.py`
    :raises ValueError: for another number of critics than one, a negative `last_layer_init`, or an unknown kind of
        layers
    """

    #: What `features_extractor_class=None` means: the only difference between the three policies.
    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    actor: Actor
    actor_target: Actor
    critic: Critic
    critic_target: Critic
    _layers: LayersOfNow | None = None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        critic_optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 1,
        share_features_extractor: bool = False,
        last_layer_init: float | None = None,
        layers: Layers = DENSE,
    ) -> None:
        _check_n_critics(n_critics)
        of_actor, of_critic = kinds_of(layers)
        if last_layer_init is not None and not last_layer_init >= 0:
            raise ValueError(f"last_layer_init must be None or at least 0, got {last_layer_init}: 3e-3 for example.")
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or self.default_features_extractor_class,
            # SB3 writes into this dict; the caller's stays as it is.
            dict(features_extractor_kwargs or {}),
            optimizer_class=optimizer_class,
            optimizer_kwargs=dict(optimizer_kwargs or {}),
            squash_output=True,
            normalize_images=normalize_images,
        )
        if net_arch is None:
            net_arch = [256, 256] if self.features_extractor_class == NatureCNN else [400, 300]
        self.net_arch = plain_net_arch(net_arch)
        self.activation_fn = activation_fn
        self.critic_optimizer_kwargs = dict(critic_optimizer_kwargs or {})
        check_optimizer_kwargs("optimizer_kwargs", self.optimizer_kwargs)
        check_optimizer_kwargs("critic_optimizer_kwargs", self.critic_optimizer_kwargs)
        self.share_features_extractor = share_features_extractor
        self.last_layer_init = last_layer_init
        self.layers = layers
        # SB3's names, for subclasses with networks of their own.
        self.net_args = {
            "observation_space": observation_space,
            "action_space": action_space,
            "activation_fn": activation_fn,
            "normalize_images": normalize_images,
        }
        actor_arch, critic_arch = get_actor_critic_arch(net_arch)
        self.actor_kwargs = {**self.net_args, "net_arch": actor_arch}
        self.critic_kwargs = {
            **self.net_args,
            "net_arch": critic_arch,
            "n_critics": n_critics,
            "share_features_extractor": share_features_extractor,
        }
        # Networks of the user's own, with SB3's arguments, get only what was asked for.
        for kwargs, kind in ((self.actor_kwargs, of_actor), (self.critic_kwargs, of_critic)):
            kwargs |= {} if kind == DENSE else {"layers": kind}
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        # SB3's order. Each constructor draws its weights from the global generator, so one seed gives SB3's weights.
        self.actor = self.make_actor()
        self.actor_target = self.make_actor()
        shared = self.share_features_extractor
        self.critic = self.make_critic(self.actor.features_extractor if shared else None)
        self.critic_target = self.make_critic(self.actor_target.features_extractor if shared else None)

        if self.last_layer_init is not None:
            for last_layer in (_last_linear(self.actor.mu), _last_linear(self.critic.qf0)):
                nn.init.uniform_(last_layer.weight, -self.last_layer_init, self.last_layer_init)
                nn.init.uniform_(last_layer.bias, -self.last_layer_init, self.last_layer_init)

        self.actor_target.load_state_dict(self.actor.state_dict())
        self.critic_target.load_state_dict(self.critic.state_dict())
        # Target networks are never in training mode (batch norm, dropout).
        self.actor_target.set_training_mode(False)
        self.critic_target.set_training_mode(False)

        learning_rate = lr_schedule(1)
        critic_kwargs = {**self.optimizer_kwargs, **self.critic_optimizer_kwargs}
        self.actor.optimizer = _make_optimizer(self.optimizer_class, self.actor, learning_rate, self.optimizer_kwargs)
        self.critic.optimizer = _make_optimizer(self.optimizer_class, self.critic, learning_rate, critic_kwargs)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """
        :param features_extractor: one to share; None builds a new one
        :return: an actor of this policy's settings
        """
        return Actor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Critic:
        """
        :param features_extractor: one to share; None builds a new one
        :return: a critic of this policy's settings
        """
        return Critic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: s, a batch of B
        :param deterministic: of no effect: mu is deterministic
        :return: mu(s), shape (B, A), in [-1, 1]
        """
        return self._predict(observation, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        actor = self._modules.get("actor")  # PyTorch's way to `self.actor` takes longer than some layers
        actions: th.Tensor = call(self.actor if actor is None else actor, observation)
        return actions

    @property
    def device(self) -> th.device:
        """Where the weights are, the actor's first; SB3 walks over all modules to find out."""
        weight = None if self._parameters else _first_weight(self._modules.get("actor"))
        return super().device if weight is None else weight.device

    def obs_to_tensor(self, observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]]) -> tuple[PyTorchObs, bool]:
        """
        SB3's, without its search for images and keys where observations are vectors; mirrors SB3 2.9.2.

        :param observation: as the environment gives it, one or a batch of B
        :return: a copy as a batch on the device, and whether it was one
        """
        space = self.observation_space
        if (
            type(observation) is not np.ndarray
            or type(space) is not spaces.Box
            or not 1 <= observation.ndim <= 2
            or observation.shape[-1:] != space.shape
        ):
            return super().obs_to_tensor(observation)
        return th.from_numpy(np.array(observation, ndmin=2)).to(self.device), observation.ndim == 2

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """
        The action for one observation or a batch of B, in the environment's range: SB3's `predict`, bit for bit.

        :param observation: as the environment gives it
        :param state: of recurrent policies; passed through
        :param episode_start: of recurrent policies; not used
        :param deterministic: of no effect: mu is deterministic
        :return: the action, of the shape and dtype of the action space (with B in front for a batch), and `state`
        :raises FloatingPointError: when the action is NaN: weights or the observation are not finite
        """
        actions, state = super().predict(observation, state, episode_start, deterministic)
        check_actions(self, observation, actions)
        return actions, state

    def scale_action(self, action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """
        From [low, high] to [-1, 1]; mirrors SB3 2.9.2 to the last bit.

        :param action: in the unit of the environment, shape `(..., *action_space.shape)`
        :return: where 1.0 is half the width of the action range
        """
        space = self.action_space
        assert isinstance(space, spaces.Box)
        low, high = space.low, space.high
        scaled_action: npt.NDArray[Any] = 2.0 * ((action - low) / (high - low)) - 1.0
        return scaled_action

    def unscale_action(self, scaled_action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """
        From [-1, 1] to [low, high]; mirrors SB3 2.9.2 to the last bit.

        :param scaled_action: where 1.0 is half the width of the action range, shape `(..., *action_space.shape)`
        :return: in the unit of the environment
        """
        space = self.action_space
        assert isinstance(space, spaces.Box)
        low, high = space.low, space.high
        action: npt.NDArray[Any] = low + (0.5 * (scaled_action + 1.0) * (high - low))
        return action

    def set_training_mode(self, mode: bool) -> None:
        """
        Switch batch norm and dropout of the main networks; the target networks stay in evaluation mode.

        :param mode: True for training
        """
        layers = self._layers_of_now()
        if layers.depend_on_mode or layers.want_to_be_asked():
            self.actor.set_training_mode(mode)
            self.critic.set_training_mode(mode)
        else:
            layers.set_training(mode)
        self.__dict__["training"] = mode  # PyTorch's way of setting attributes takes longer than all of the above

    @property
    def depends_on_mode(self) -> bool:
        """Whether actor and critic, as they are now, may do something else in training than in evaluation."""
        return self._layers_of_now().depend_on_mode

    def _layers_of_now(self) -> LayersOfNow:
        layers, modules = self._layers, self._modules
        if layers is None or not layers.are_those_of(modules.get("actor"), modules.get("critic")):
            layers = self._layers = LayersOfNow(self.actor, self.critic, _WITHOUT_MODES)
        return layers

    def __getstate__(self) -> dict[str, Any]:
        """A copy has layers of its own."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]  # PyTorch does not annotate it
        state.pop("_layers", None)
        return state

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "lr_schedule": self._dummy_schedule,  # a policy loaded alone does not learn
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            "critic_optimizer_kwargs": self.critic_optimizer_kwargs,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "share_features_extractor": self.share_features_extractor,
            "last_layer_init": self.last_layer_init,
            "layers": self.layers,
        }


_NETWORKS: frozenset[type[nn.Module]] = frozenset({Actor, Critic})
#: Classes of this package that do the same in training and in evaluation.
_WITHOUT_MODES = _NETWORKS | {ResidualBlock}
_EXTRACT_FEATURES = BaseModel.extract_features


def _extract_features(network: Actor | Critic, observations: PyTorchObs) -> th.Tensor:
    """The network's features; flat observations are features already, and SB3's general way is slow to find out."""
    space = network.observation_space
    if (
        type(network) in _NETWORKS
        and type(space) is spaces.Box
        and len(space.shape) == 1
        and isinstance(observations, th.Tensor)
        and observations.dim() == 2
        and type(network).extract_features is _EXTRACT_FEATURES
        and "extract_features" not in network.__dict__
        and only_flattens(network._modules.get("features_extractor"))
    ):
        return observations.float()
    return network.extract_features(observations, network.features_extractor)


def _first_weight(actor: nn.Module | None) -> th.Tensor | None:
    """The first weight of our own layers, where it is a parameter."""
    if type(actor) is not Actor:
        return None
    mu = actor._modules.get("mu")
    layer = mu._modules.get("0") if type(mu) is DenseLayers else None
    return None if layer is None else layer._parameters.get("weight")


def _last_linear(network: nn.Sequential) -> nn.Linear:
    return [layer for layer in network if isinstance(layer, nn.Linear)][-1]


def _make_optimizer(
    optimizer_class: type[th.optim.Optimizer], network: nn.Module, learning_rate: float, kwargs: dict[str, Any]
) -> th.optim.Optimizer:
    # PyTorch's own optimizers have a kernel that updates all tensors in one call; it is off by default on the CPU.
    # The formula is the same. A subclass, another optimizer, or the user's own choice is left as it is.
    user_chose = {"fused", "foreach", "differentiable", "capturable"} & kwargs.keys()
    if optimizer_class in _FUSED and not user_chose:
        optimizer_class, kwargs = _FUSED[optimizer_class], {**kwargs, "fused": True}
    return optimizer_class(network.parameters(), lr=learning_rate, **kwargs)  # type: ignore[call-arg]  # the base class declares no lr


_FUSED: dict[type[th.optim.Optimizer], type[th.optim.Optimizer]] = {
    th.optim.Adam: FusedAdam,
    th.optim.AdamW: FusedAdamW,
    th.optim.SGD: FusedSGD,
}

MlpPolicy = DDPGPolicy


class CnnPolicy(DDPGPolicy):
    """`DDPGPolicy` for images: a CNN in front of actor and critic."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(DDPGPolicy):
    """`DDPGPolicy` for Dict observations: an extractor for each key, side by side."""

    default_features_extractor_class = CombinedExtractor
