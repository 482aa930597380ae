"""Dense layers, run with fewer calls than `nn.Sequential` makes: small networks spend more time in calls than in sums.

Not here: other mathematics. Readers of the algorithm may take `DenseLayers` for `nn.Sequential`.
"""

import operator
import threading
from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn
from torch.nn import functional as F

from sb3_simple_ddpg.speed import torch_private
from sb3_simple_ddpg.speed.products import WITH_A_COPY, of_the_plain_path
from sb3_simple_ddpg.speed.torch_private import is_listened_to as is_listened_to

#: What PyTorch's and SB3's classes do. One whose `forward` is another by now has been changed in place.
_FORWARDS: dict[Any, Any] = {kind: kind.forward for kind in (nn.Linear, nn.ReLU, nn.Tanh, nn.Flatten, FlattenExtractor)}


class _Here(threading.local):
    """Of each thread."""

    gradients_follow = False
    #: Products that oneDNN makes sooner, and how many times: (rows, inner) times (inner, columns).
    onednn: dict[tuple[int, int, int], float] = {}  # noqa: RUF012 - another one takes its place, nobody writes into it


_here = _Here()


class FastGradients:
    """
    Inside, linear layers are laid out so that gradients are fast, and multiplied by the library that is faster with
    them. Elsewhere they are PyTorch's own, which whoever traces or exports a network gets to see.
    """

    def __enter__(self) -> None:
        self._before = _here.gradients_follow, _here.onednn
        _here.gradients_follow, _here.onednn = True, of_the_plain_path()

    def __exit__(self, *error: object) -> None:
        _here.gradients_follow, _here.onednn = self._before


class DenseLayers(nn.Sequential):
    """`nn.Sequential` that calls the functions behind linear layers, ReLU and tanh itself where nobody could tell."""

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: shape (B, features)
        :return: output of the last layer, shape (B, outputs)
        """
        layers = self._modules.values()
        if is_listened_to(*layers) or not _classes_are_as_in_pytorch():
            outputs: th.Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]  # PyTorch does not annotate it
            return outputs
        values = inputs
        linear = _linear if _here.gradients_follow else F.linear
        ours = False  # what a function called here returned is known to nobody else, and may be overwritten
        for layer in layers:
            kind = type(layer)
            if kind is nn.Linear and _has_its_tensors(layer):
                weight, bias = layer._parameters["weight"], layer._parameters["bias"]
                values = linear(values, weight, bias)  # type: ignore[arg-type]  # a weight is there
                ours = True
                continue
            if kind is nn.ReLU:
                values = th.relu_(values) if ours or layer.inplace else th.relu(values)
            elif kind is nn.Tanh:
                values = th.tanh(values)
            else:
                values = layer(values)
            ours = False
        return values


class LayersOfNow:
    """
    All layers of actor and critic as they were listed last: to walk over them takes longer than a prediction.

    :param actor: the actor
    :param critic: the critic
    :param known: classes of theirs that do the same in training and in evaluation
    """

    def __init__(self, actor: nn.Module, critic: nn.Module, known: frozenset[type[nn.Module]]) -> None:
        # The layers themselves are kept, not only where they lie: that place may be given to another one.
        self._actor, self._critic = actor, critic
        self._layers = [*actor.modules(), *critic.modules()]
        self._kinds = list(map(type, self._layers))
        self._attributes = [vars(layer) for layer in self._layers]
        self._leaves = [layer._modules for layer in self._layers if not layer._modules]
        self._parents = [vars(layer) for layer in self._layers if layer._modules]
        self._children = [dict(layer._modules) for layer in self._layers if layer._modules]
        self.depend_on_mode = not (_LAYERS_WITHOUT_MODES | known).issuperset(self._kinds)
        self._training: bool | None = None

    def are_those_of(self, actor: nn.Module | None, critic: nn.Module | None) -> bool:
        """
        :param actor: the actor of now
        :param critic: the critic of now
        :return: whether they are the same, with the same layers, of the same classes
        """
        # What runs over the layers here runs in C; the same object is equal to itself without being asked.
        return (
            actor is self._actor
            and critic is self._critic
            and not any(self._leaves)
            and list(map(_MODULES, self._parents)) == self._children
            and list(map(type, self._layers)) == self._kinds
        )

    def want_to_be_asked(self) -> bool:
        """
        :return: whether somebody has put a `train` or `set_training_mode` on actor or critic
        """
        actor, critic = self._actor.__dict__, self._critic.__dict__
        return "train" in actor or "train" in critic or "set_training_mode" in actor or "set_training_mode" in critic

    def set_training(self, mode: bool) -> None:
        """
        What `nn.Module.train` does for layers of these classes.

        :param mode: True for training
        """
        if self._training is mode and self._actor.training is mode and self._critic.training is mode:
            return
        for attributes in self._attributes:
            attributes["training"] = mode
        self._training = mode


_MODULES = operator.itemgetter("_modules")
#: Layers that do the same in training and in evaluation. Whatever is not listed here may depend on the mode.
_LAYERS_WITHOUT_MODES: frozenset[type[nn.Module]] = frozenset(
    {DenseLayers, FlattenExtractor, NatureCNN, CombinedExtractor}
    | {nn.Sequential, nn.ModuleDict, nn.ModuleList, nn.Flatten, nn.Unflatten, nn.Identity, nn.Linear, nn.Bilinear}
    | {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
    | {nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d}
    | {nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d}
    | {nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d}
    | {nn.ConstantPad1d, nn.ConstantPad2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d}
    | {nn.ReplicationPad1d, nn.ReplicationPad2d, nn.CircularPad1d, nn.CircularPad2d}
    | {nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unfold, nn.Fold}
    | {nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm}
    | {nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.GLU}
    | {nn.Tanh, nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Hardswish, nn.Softplus, nn.Softsign}
    | {nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold}
    | {nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax}
)


def call(module: nn.Module, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the module takes and gives
    """
    `module(*inputs)`, without PyTorch's search for hooks where there are none.

    :param module: a network
    :param inputs: what its `forward` takes
    :return: what its `forward` returns
    """
    return module(*inputs) if is_listened_to(module) else module.forward(*inputs)


def only_flattens(extractor: nn.Module | None) -> bool:
    """
    :param extractor: a features extractor
    :return: whether it leaves a batch of vectors as it is, and nobody would miss the call
    """
    if type(extractor) is not FlattenExtractor or is_listened_to(extractor):
        return False
    flatten = extractor._modules.get("flatten")
    return (
        type(flatten) is nn.Flatten
        and flatten.start_dim == 1
        and flatten.end_dim == -1
        and not is_listened_to(flatten)
        and nn.Flatten.forward is _FORWARDS[nn.Flatten]
        and FlattenExtractor.forward is _FORWARDS[FlattenExtractor]
    )


def _classes_are_as_in_pytorch() -> bool:
    return (
        nn.Linear.forward is _FORWARDS[nn.Linear]
        and nn.ReLU.forward is _FORWARDS[nn.ReLU]
        and nn.Tanh.forward is _FORWARDS[nn.Tanh]
    )


def _has_its_tensors(layer: nn.Module) -> bool:
    """Whether `layer.weight` and `layer.bias` are what is registered: weight_norm and pruning put others there."""
    registered, own = layer._parameters, layer.__dict__
    return "weight" in registered and "bias" in registered and not ("weight" in own or "bias" in own)


def _linear(inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
    """
    `F.linear`, in a layout in which PyTorch's gradients are fast where there are few inputs.

    Products with a narrow matrix take 4 to 6 times as long in one layout as in the other, and PyTorch chooses the
    layout of a gradient by that of the value.
    """
    units, features = weight.shape
    if _here.onednn and inputs.dim() == 2 and _is_onednn_s((inputs.shape[0], features, units), inputs, weight):
        return _by_onednn(inputs, weight, bias)
    if not th.is_grad_enabled() or bias is None or inputs.dim() != 2 or not (1 < features < 32 and units >= 128):
        return F.linear(inputs, weight, bias)
    if inputs.requires_grad:
        inputs = inputs.t().contiguous().t()
    return th.addmm(bias, inputs, weight.t().contiguous())


def _is_onednn_s(shape: tuple[int, int, int], inputs: th.Tensor, weight: th.Tensor) -> bool:
    return (
        shape in _here.onednn
        and inputs.is_cpu
        and inputs.dtype is weight.dtype is th.float32
        # Stand-ins, with which PyTorch records what is called, are recorded as PyTorch's own layers.
        and type(inputs) is th.Tensor
        and not th.is_autocast_enabled("cpu")
        and not torch_private.transforms_are_at_work()
    )


class _OneDNNLinear(th.autograd.Function):
    """`F.linear`, each product of it and of its gradients by the library that is faster with it."""

    @staticmethod
    def forward(ctx: Any, inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:  # noqa: ANN401 - PyTorch's
        ctx.save_for_backward(inputs, weight)
        assert torch_private.onednn_product is not None
        return torch_private.onednn_product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:  # noqa: ANN401 - PyTorch's
        (inputs, weight), (gradient,) = ctx.saved_tensors, gradients
        (batch, features), units = inputs.shape, weight.shape[0]
        of_inputs = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            faster = (batch, units, features) in _here.onednn
            of_inputs = _by_onednn(gradient, weight.t()) if faster else gradient.mm(weight)
        if ctx.needs_input_grad[1]:
            faster = _here.onednn.get((units, batch, features), 0.0) >= WITH_A_COPY
            of_weight = _by_onednn(gradient.t(), inputs.t()) if faster else gradient.t().mm(inputs)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        return of_inputs, of_weight, of_bias


def _by_onednn(inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    outputs: th.Tensor = _OneDNNLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]  # PyTorch's
    return outputs
