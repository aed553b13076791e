"""The canonical op vocabulary: names and attributes, no behaviour.

Both frontends translate into these names, and every rule table has exactly these keys. What an op
does with channels, constants and cost stands in passes/rules/. Notation: ``x`` is the activation,
a trailing ``?`` marks an input that may be absent (the empty string), ``axis`` is never negative.

Contractions
    conv            x, weight[C_out, C_in/g, *k], bias?   strides, pads (begin..., end...), dilations, conv_groups
    conv_transpose  x, weight[C_in, C_out/g, *k], bias?   the same, and output_padding
    matmul          a, b, bias?      transpose_a, transpose_b; numpy.matmul semantics on the last two axes
    attention       q, k, v, mask?   scaled dot product over the last axis of q and k
      bias_type (conv, matmul): "int32" where sums are added up in integers, "none" where nothing can be added
    rnn             x, W, ...        x[..., I] is read by W[dirs, gates·H, I]; nothing else is followed
Normalisation
    batch_norm      x, gamma?, beta?, mean?, var?   axis, eps, training (True: batch statistics)
    instance_norm   x, gamma?, beta?                axis, eps
    group_norm      x, gamma?, beta?                axis, num_groups, eps
    layer_norm      x, gamma?, beta?                axes (normalised), eps
    lrn             x                               axis
Elementwise: UNARY (alpha, beta, min, max, approximate … as attributes), BINARY, prelu(x, slope), where(c, a, b)
    quantize        x, scale, zero_point?           axis (of a per-channel scale)
    dequantize      x, scale, zero_point?           axis
    dynamic_quantize  x -> x / scale rounded, scale, zero_point   one scale, which spans all values of x and 0
Movement
    reshape shape · transpose perm · slice axes starts ends steps · split axis sizes · concat axis
      picks (slice, lowered): axis -> what is left of a cut with a step, as indices
    gather axis indices · expand shape · tile repeats · pad pads (begin per axis, end per axis) mode value
    depth_to_space block mode (DCR | CRD) · space_to_depth block mode · im2col kernel (product of window)
    scatter_slice   base, source    axis start end step
    full            (nothing)       shape value
Channelwise over space (each output channel reads the same channel of input 0 and nothing else)
    max_pool        x   pads ceil        a second output has the position of each maximum in its channel
    max_unpool      x, indices           each element goes where the pool took one from; zeros elsewhere
    avg_pool        x   pads counts_padding (True: padded zeros count)
    resize          x   keeps_constants (False where the border is extrapolated)
    sample          x, ...      grid_sample, roi_align and their like: channel axis 1 of x passes
      groups: that many stretches of channels have a grid each (deformable convolutions)
    linear          x   passes           a linear map over all axes but those in passes, (axis of x, axis of the
      result) each, and the same for every index of these (Fourier transforms, real and imaginary parts)
Reductions and their like
    reduce          x   kind axes keepdims          mean sum max min prod l1 l2 var std logsumexp any all
      rescaled: the norm of a weight whose gain makes up for what it loses (passes/weight_norms.py)
    along           x   kind axes                   softmax cumsum sort …: mixes along axes, keeps the shape
    arg_reduce      x   kind axes keepdims          argmax argmin …
Attribute ``inner`` (any binary op): the node is part of a larger call of the user's model, so that its
operands cannot be replaced one by one. Attribute ``inserted`` (pad, gather, conv, add): the node is none of
the model's, but one that passes/rewrites/rewrite.py puts in; a backend writes it in full, in front of the node of its
origin, or ``behind`` it.

Rest
    shape_of        x               the shape as data; carries no channels
    opaque          ...             an op prunec does not know, or a body it does not enter: pins what it touches
"""

from __future__ import annotations

from typing import Final

UNARY: Final = (
    "identity", "relu", "leaky_relu", "elu", "celu", "selu", "gelu", "sigmoid", "log_sigmoid", "tanh", "hard_tanh",
    "hard_sigmoid", "hard_swish", "silu", "mish", "softplus", "softsign", "hard_shrink", "soft_shrink", "tanh_shrink",
    "threshold", "thresholded_relu", "clip", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "abs", "neg",
    "reciprocal", "sign", "floor", "ceil", "round", "erf", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "asinh", "acosh", "atanh", "not", "is_nan", "is_inf", "cast",
)  # fmt: skip

BINARY: Final = (
    "add", "sub", "rsub", "mul", "div", "floor_div", "mod", "pow", "minimum", "maximum", "equal", "not_equal", "less",
    "less_equal", "greater", "greater_equal", "and", "or", "xor", "atan2", "bit_shift",
)  # fmt: skip

ELEMENTWISE: Final = (*UNARY, *BINARY, "prelu", "where")

CONTRACTIONS: Final = ("conv", "conv_transpose", "matmul", "attention", "rnn")

MOVEMENTS: Final = (
    "reshape", "transpose", "slice", "split", "concat", "gather", "expand", "tile", "pad", "depth_to_space",
    "space_to_depth", "im2col", "scatter_slice", "full",
)  # fmt: skip

NORMALISATIONS: Final = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "lrn")

CHANNELWISE: Final = ("max_pool", "max_unpool", "avg_pool", "resize", "sample", "linear")

MIXING: Final = ("group_norm", "layer_norm", "lrn", "along", "arg_reduce", "opaque")
"""Ops that may make what is in one channel from what is in others; contractions, whose channels end, aside."""

OPS: Final = (
    *CONTRACTIONS, *NORMALISATIONS, *ELEMENTWISE, *MOVEMENTS, *CHANNELWISE,
    "quantize", "dequantize", "dynamic_quantize", "reduce", "along", "arg_reduce", "shape_of", "opaque",
)  # fmt: skip
