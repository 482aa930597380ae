"""From a function of tensors to compiled code: recorded once with stand-in tensors, worded for PyTorch's compiler.

Not here: which function, and when (`compiled.py`).

Every wording here means what PyTorch means by it: tests compare each with PyTorch's own operation, and `compiled.py`
compares each compiled update with the plain one before it is used.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch as th

from sb3_simple_ddpg.speed import products, torch_private
from sb3_simple_ddpg.speed.torch_private import TreeSpec, tree_flatten, tree_structure, tree_unflatten

Tensors: TypeAlias = list[th.Tensor]


def compile_function(function: Callable[..., Any], leaves: Tensors, structure: TreeSpec) -> Callable[[Tensors], Any]:
    """
    :param function: of nested tensors; what it returns is nested too
    :param leaves: tensors of the layout (shape, strides, dtype) that all later ones will have
    :param structure: how the function's arguments are made of them
    :return: the function of the leaves, compiled. It does not look at their layout again
    :raises Exception: whatever the function or PyTorch's compiler stumbles over
    """
    results: list[TreeSpec] = []

    def flat(*leaves: th.Tensor) -> Tensors:
        tensors, result = tree_flatten(function(*tree_unflatten(list(leaves), structure)))
        results.append(result)
        return tensors

    graph = torch_private.record(flat, leaves, WORDINGS)
    _refuse_random_numbers(graph)
    _take_from_parts(graph)
    _choose_library(graph)
    _compute_once(graph)
    run = torch_private.compile_graph(graph, leaves)
    (structure_of_result,) = {*results}
    if structure_of_result == tree_structure(leaves[0]):  # one tensor
        return lambda leaves: run(leaves)[0]
    return lambda leaves: tree_unflatten(run(leaves), structure_of_result)


def stored(values: th.Tensor) -> th.Tensor:
    """
    :param values: anything
    :return: the same behind a view, for which the compiler stores it instead of computing it wherever it is used
    """
    return values.as_strided(values.shape, values.stride())


def _refuse_random_numbers(graph: th.fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if th.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NotImplementedError(f"random numbers ({node.target}) would be others than the plain path's")


def _compute_once(graph: th.fx.GraphModule) -> None:
    """
    What gives one number, such as whether anything is not finite, the compiler repeats in each turn of the loops that
    use it, and a tanh, such as the actor's output, in each turn of the loops over the layer that takes it in.

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
        while whole.target is th.ops.aten.slice.Tensor and whole.args[1:] == (0, 0, _TO_THE_END):
            whole = whole.args[0]  # PyTorch 2.8 writes [:, 3:4] as two of them
        if dim != 1 or whole.target is not th.ops.aten.cat.default or whole.args[1:] != (1,):
            continue
        for part in whole.args[0]:
            width = part.meta["val"].shape[1]
            if 0 <= start < end <= width:
                node.args = (part, 1, start, end)
            start, end = start - width, end - width
    graph.graph.eliminate_dead_code()
    graph.recompile()


_TO_THE_END = 2**63 - 1


def _choose_library(graph: th.fx.GraphModule) -> None:
    """Products that oneDNN makes sooner are its own; the compiler leaves the others to PyTorch, which asks MKL."""
    product = torch_private.product_in_compiled_code()
    for node in graph.graph.nodes:
        if product is None or node.target is not th.ops.aten.mm.default:
            continue
        left, right = (part.meta["val"] for part in node.args)
        if left.dtype is not th.float32 or left.device.type != "cpu":
            continue
        (rows, inner), columns = left.shape, right.shape[1]
        if products.by_onednn(rows, inner, columns, products.needed_in_compiled_code()):
            with graph.graph.inserting_before(node):
                weight = graph.graph.call_function(th.ops.aten.t.default, (node.args[1],))
                chosen = graph.graph.call_function(product, (node.args[0], weight))
            weight.meta["val"], chosen.meta["val"] = right.t(), node.meta["val"]
            node.replace_all_uses_with(chosen)
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


def _product_and_bias(bias: th.Tensor, left: th.Tensor, right: th.Tensor, *, beta: float = 1, alpha: float = 1) -> Any:  # noqa: ANN401 - as above
    """Apart, so that the compiler merges the bias with what follows it; the views keep it from joining them again."""
    if beta != 1 or alpha != 1:
        return left.mm(right) * alpha + bias * beta
    if left.shape[1] <= 8 < right.shape[1] and left.shape[1] > 0:
        # Few inputs: the compiler merges the product too, if it is told as a sum, of rows that lie in one piece.
        rows = right.contiguous().as_strided(right.shape, (right.shape[1], 1))
        return sum((left[:, i : i + 1] * rows[i] for i in range(1, left.shape[1])), left[:, :1] * rows[0]) + bias
    return (left.mm(right)[None] + bias)[0]


#: How the recorded function says some things for the compiler.
WORDINGS: dict[Any, Callable[..., Any]] = {
    th.ops.aten.mm.default: _product,
    th.ops.aten.addmm.default: _product_and_bias,
}
