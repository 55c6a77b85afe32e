"""One ONNX graph that leaves early by itself: later segments in the branches of `If`."""

from __future__ import annotations

from typing import Any

from mate_edge.bundle import Bundle
from mate_edge.decide.policy import Confidence


def write_nested_if(bundle: Bundle, policy: Confidence) -> bytes:
    """Join the segments into one graph: after each exit, an `If` whose else-branch goes on."""
    import onnx
    from onnx import TensorProto, compose, helper

    segments = bundle.manifest.segments
    models = [onnx.load_from_string(bundle.read(segment.file)) for segment in segments]
    results = [("taken", TensorProto.INT64), ("index", TensorProto.INT64)]

    def outputs(k: int) -> list[Any]:
        return [helper.make_tensor_value_info(f"{name}_{k}", t, [1]) for name, t in results]

    def answer(k: int, tag: str) -> list[Any]:
        """Return the nodes that answer from exit k."""
        exit_ = helper.make_tensor("value", TensorProto.INT64, [1], [k])
        return [
            helper.make_node("Constant", [], [f"taken_{tag}"], value=exit_),
            helper.make_node("ArgMax", [f"s{k}_logits_{k}"], [f"index_{tag}"], axis=1, keepdims=0),
        ]

    def build(k: int) -> tuple[list[Any], list[Any]]:
        """Return the nodes and initializers from segment k on; results are called after k."""
        graph = compose.add_prefix(models[k - 1], f"s{k}_").graph
        source = f"s{k}_{segments[k - 1].input.name}"
        comes = "images" if k == 1 else f"s{k - 1}_{segments[k - 1].input.name}"
        for node in graph.node:
            node.input[:] = [comes if name == source else name for name in node.input]
        nodes, constants = list(graph.node), list(graph.initializer)
        if k == len(segments):
            return [*nodes, *answer(k, str(k))], constants
        more_nodes, more_constants = build(k + 1)
        scalars = {"t": policy.temperatures[k - 1], "theta": policy.thresholds[k - 1]}
        constants += [
            helper.make_tensor(f"{name}_{k}", TensorProto.FLOAT, [], [value])
            for name, value in scalars.items()
        ]
        node = helper.make_node
        left = helper.make_graph(answer(k, f"left_{k}"), f"leave_{k}", [], [
            helper.make_tensor_value_info(f"{name}_left_{k}", t, [1]) for name, t in results
        ])  # fmt: skip
        on = helper.make_graph(more_nodes, f"on_{k}", [], outputs(k + 1), more_constants)
        nodes += [
            node("Div", [f"s{k}_logits_{k}", f"t_{k}"], [f"scaled_{k}"]),
            node("Softmax", [f"scaled_{k}"], [f"probabilities_{k}"], axis=1),
            node("ReduceMax", [f"probabilities_{k}"], [f"confidence_{k}"], keepdims=0),
            node("GreaterOrEqual", [f"confidence_{k}", f"theta_{k}"], [f"leaves_{k}"]),
            node("If", [f"leaves_{k}"], [f"{name}_{k}" for name, _ in results],
                 then_branch=left, else_branch=on),
        ]  # fmt: skip
        return nodes, constants

    nodes, constants = build(1)
    images = helper.make_tensor_value_info(
        "images", TensorProto.FLOAT, [1, *segments[0].input.shape]
    )
    graph = helper.make_graph(nodes, "nested", [images], outputs(1), constants)
    model = helper.make_model(
        graph, opset_imports=models[0].opset_import, ir_version=models[0].ir_version
    )
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
