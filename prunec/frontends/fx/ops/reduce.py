"""Rows of aten ops that reduce axes, or run along them: sums, norms, variances, softmax, sorting."""

from __future__ import annotations

from prunec.frontends.fx.ops.call import Call, Emitter, Row, first_tensor, positive, positive_axes


def reduce(kind: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        x = call["self"]
        if "other" in call.args:
            name = {"max": "maximum", "min": "minimum"}[kind]
            to.emit(name, [x, call["other"]], call.results)
            return
        axes = positive_axes(call.args.get("dim"), x.dim())
        keep = bool(call.get("keepdim", False))
        for number, result in enumerate(call.results):
            to.emit("reduce" if number == 0 else "arg_reduce", [x], [result], kind=kind, axes=axes, keepdims=keep)

    return row


def vector_norm(call: Call, to: Emitter) -> None:
    order = call.args.get("ord", call.args.get("p", 2))
    kind = {1: "l1", 2: "l2"}.get(order, "norm")
    axes = positive_axes(call.args.get("dim"), call["self"].dim())
    to.emit("reduce", [call["self"]], call.results, kind=kind, axes=axes, keepdims=bool(call.get("keepdim", False)))


def var_mean(call: Call, to: Emitter) -> None:
    axes = positive_axes(call.args.get("dim"), call["self"].dim())
    for kind, result in zip(("var", "mean"), call.results, strict=True):
        correction = {"correction": call.get("correction", 1)} if kind == "var" else {}
        to.emit(
            "reduce",
            [call["self"]],
            [result],
            kind=kind,
            axes=axes,
            keepdims=bool(call.get("keepdim", False)),
            **correction,
        )


def var(kind: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        axes = positive_axes(call.args.get("dim"), call["self"].dim())
        correction = call.get("correction", int(call.get("unbiased", True)))
        to.emit(
            "reduce",
            [call["self"]],
            call.results,
            kind=kind,
            axes=axes,
            keepdims=bool(call.get("keepdim", False)),
            correction=correction,
        )

    return row


def along(kind: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        x = first_tensor(call)
        axis = positive(call.get("dim", -1), x.dim())
        for result in call.results:
            to.emit("along", [x], [result], kind=kind, axes=[axis])

    return row


def arg_reduce(kind: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        axes = positive_axes(call.args.get("dim"), call["self"].dim())
        to.emit(
            "arg_reduce", [call["self"]], call.results, kind=kind, axes=axes, keepdims=bool(call.get("keepdim", False))
        )

    return row
