"""Which library multiplies two matrices sooner: MKL, which PyTorch asks, or oneDNN, which lies in the same PyTorch.

Not here: PyTorch's settings. oneDNN is called by its own name, so whatever else runs in this process keeps its library,
and who has chosen a precision, or turned oneDNN off, is obeyed.

On AMD processors MKL leaves the widest units alone. Both have to compute in float32: each shape is multiplied by both
before it is chosen, for the numbers and for the time. `SIMPLE_DDPG_PRODUCTS=mkl` (or `onednn`) in the environment says
which one, without a look at time or size.
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch as th

from sb3_simple_ddpg.speed import torch_private

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

#: (rows, inner) times (inner, columns).
Shape: TypeAlias = tuple[int, int, int]
#: The processor, the number of threads, then a shape.
Product: TypeAlias = tuple[str, int, int, int, int]
#: Products and how many times as fast oneDNN is; after they were in a file, with lists in the place of tuples.
Measured: TypeAlias = list[tuple[Product, float]]

VARIABLE = "SIMPLE_DDPG_PRODUCTS"
#: Multiplications below which oneDNN's call takes longer than it saves: 256 rows by 64 x 64 are half of it.
SMALLEST = 2_000_000
#: Where PyTorch calls layer by layer, a layer of our own costs a little: oneDNN has to be so many times as fast.
CLEARLY = 1.25
#: The same, where it gets a matrix that lies in the other order, which it copies.
WITH_A_COPY = 1.5
#: Within compiled code on AMD processors with AVX-512 it was the faster one (docs/speed.md) unless it is slower alone.
NOT_SLOWER = 0.9
#: Of the largest number in a product. Rounding to bfloat16 is off by 1e-3, to TF32 by 1e-4, float32 by 1e-6.
EXACT = 1e-5
#: Seconds that one shape is tried for.
PROBE = 0.03

#: How many times as fast oneDNN is; 0 where it is not exact. Of this process.
_gains: dict[Product, float] = {}


def by_onednn(rows: int, inner: int, columns: int, needed: float) -> bool:
    """
    Whether oneDNN is to multiply (rows, inner) with (inner, columns).

    :param rows: of the left matrix
    :param inner: its columns
    :param columns: of the right matrix
    :param needed: how many times as fast it has to be
    :return: whether it is that fast here, in float32, and nobody has decided otherwise
    :raises ValueError: for a `SIMPLE_DDPG_PRODUCTS` that is neither
    """
    size = rows * inner * columns
    if size == 0 or (size < SMALLEST and VARIABLE not in os.environ):
        return False
    said = decided()
    if said == "mkl" or (said == "" and size < SMALLEST):
        return False
    gain = _gain((_processor(), th.get_num_threads(), rows, inner, columns))
    return gain > 0.0 if said == "onednn" else gain >= needed


def of_the_plain_path() -> dict[Shape, float]:
    """
    Looked up at each call of `train`: nothing is tried here.

    :return: products that are oneDNN's there, with how many times as fast it is
    """
    if not _gains:
        return {}
    said = decided()
    needed = {"mkl": math.inf, "onednn": 1e-9, "": CLEARLY}[said]
    here = _processor(), th.get_num_threads()
    return {
        product[2:]: math.inf if said == "onednn" else gain
        for product, gain in _gains.items()
        if gain >= needed and product[:2] == here
    }


def needed_in_compiled_code() -> float:
    """
    :return: how many times as fast oneDNN has to be there
    """
    return NOT_SLOWER if _processor().startswith("AuthenticAMD") and _processor().endswith("AVX512") else CLEARLY


def decided() -> str:
    """
    :return: "mkl" or "onednn" where the environment, a setting of PyTorch's or what PyTorch has says so; "" where the
        faster one is to be taken
    :raises ValueError: for a `SIMPLE_DDPG_PRODUCTS` that is neither
    """
    said = os.environ.get(VARIABLE, "")
    if said not in ("", "mkl", "onednn"):
        raise ValueError(f"{VARIABLE} must be mkl or onednn, got {said!r}: without it the faster one is taken.")
    if (
        torch_private.onednn_product is None
        or not th.backends.mkldnn.enabled
        or th.get_float32_matmul_precision() != "highest"
        or th.is_autocast_enabled("cpu")
        or torch_private.transforms_are_at_work()
    ):
        return "mkl"
    return said


def prepare(model: "Agent", known: Measured, compiled: bool) -> tuple[Measured, str]:
    """
    Try the products of the dense layers, for a training that begins or goes on.

    :param model: the algorithm
    :param known: what was measured when it began: a training that goes on multiplies as before
    :param compiled: whether its updates are; the rule is another one there
    :return: what this process goes by, for the model's shapes, and a sentence for the log; it is empty where MKL does
        it all
    :raises ValueError: for a `SIMPLE_DDPG_PRODUCTS` that is neither
    """
    for (processor, threads, rows, inner, columns), gain in known:
        _gains.setdefault((processor, threads, rows, inner, columns), gain)
    if decided() == "mkl" or model.device.type != "cpu":
        return [], ""
    smallest = SMALLEST if decided() == "" else 1
    shapes = [shape for shape in dict.fromkeys(_shapes_of(model)) if math.prod(shape) >= smallest]
    here = _processor(), th.get_num_threads()
    gains = [((*here, *shape), _gain((*here, *shape))) for shape in shapes]
    needed = needed_in_compiled_code() if compiled else CLEARLY
    taken = [gain for product, gain in gains if by_onednn(*product[2:], needed)]
    if not taken:
        return gains, ""
    times = " to ".join(dict.fromkeys(f"{gain:.2f}" for gain in (min(taken), max(taken))))
    return gains, (
        f"Products by oneDNN, in float32: {len(taken)} of the {len(gains)} that are large enough, {times} times as "
        f"fast here as by MKL ({VARIABLE}=mkl turns it off)."
    )


def _shapes_of(model: "Agent") -> Iterable[Shape]:
    """Of each dense layer its product, and those of the gradients of what it takes in and of its weight."""
    for network in (model.actor, model.critic):
        for weight in network.parameters():
            if weight.dim() == 2:
                (units, features), batch = weight.shape, model.batch_size
                yield from ((batch, features, units), (batch, units, features), (units, batch, features))


def _gain(product: Product) -> float:
    if product not in _gains:
        _gains[product] = _measured(*product[2:])
    return _gains[product]


@th.no_grad()
def _measured(rows: int, inner: int, columns: int) -> float:
    """How many times as fast oneDNN is, each at its fastest in turns: a busy machine makes some turns slower."""
    onednn = torch_private.onednn_product
    assert onednn is not None
    numbers = th.Generator().manual_seed(0)  # the stream that everybody draws from stays as it is
    left, weight = th.randn(rows, inner, generator=numbers), th.randn(columns, inner, generator=numbers)
    exact = left.double() @ weight.t().double()
    ways: tuple[Callable[[], th.Tensor], ...] = (lambda: left.mm(weight.t()), lambda: onednn(left, weight))
    try:
        errors = [float((way() - exact).abs().max() / exact.abs().max()) for way in ways]
    except RuntimeError:  # oneDNN has no way for this shape: MKL has
        return 0.0
    if not all(error <= EXACT for error in errors):
        return 0.0
    times: list[list[float]] = [[], []]
    until = time.perf_counter() + PROBE
    while len(times[0]) < 3 or time.perf_counter() < until:
        for way, own in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            own.append(time.perf_counter() - start)
    return min(times[0]) / min(times[1])


@cache
def _processor() -> str:
    """Its maker, family and model, where Linux tells, and the widest units that PyTorch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    names = ("vendor_id", "cpu family", "model")
    return " ".join([*(said.get(name, "") for name in names), th.backends.cpu.get_cpu_capability()])
