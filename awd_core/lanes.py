"""Eight float64 numbers side by side: one SIMD register as a number that compiled code can use.

LLVM finds no way to pack eight lanes of a loop with selects and many arrays; said as one value of
LLVM's own vector type there is nothing to find. Every operation is the IEEE one in each lane, so
the result of a lane does not depend on the others. On machines with shorter registers LLVM cuts
the value into two or four.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

# float64 numbers in one AVX-512 register.
LANES = 8

_VECTOR = ir.VectorType(ir.DoubleType(), LANES)


def whole_groups(n: int) -> int:
    """n, rounded up to whole registers: room for what kernels write."""
    return -(-n // LANES) * LANES


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


LANES_TYPE = _LANES = _LanesType()


def _code(function: Callable[..., Any]) -> Any:
    """`numba.extending.intrinsic`, whose result takes one argument less than `function`."""
    return intrinsic(function)


@_code
def load(typing: Any, array: Any, row: Any) -> Any:
    """`array[row]` of a C-contiguous (n, LANES) float64 array."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, signature, arguments), align=8)

    return _LANES(array, types.intp), build


@_code
def store(typing: Any, array: Any, row: Any, value: Any) -> Any:
    """`array[row] = value`."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature, arguments), align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, _LANES), build


@_code
def splat(typing: Any, number: Any) -> Any:
    """The same float in every lane."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(LANES):
            vector = builder.insert_element(vector, arguments[0], ir.IntType(32)(lane))
        return vector

    return _LANES(types.float64), build


@_code
def pick_less(typing: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
    """`then` where a < b, `otherwise` elsewhere and where a or b is NaN."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, then, otherwise = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), then, otherwise)

    return _LANES(_LANES, _LANES, _LANES, _LANES), build


@_code
def any_less(typing: Any, a: Any, b: Any) -> Any:
    """Whether a < b in any lane."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        mask = builder.bitcast(builder.fcmp_ordered("<", *arguments), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", mask, ir.IntType(LANES)(0))

    return types.boolean(_LANES, _LANES), build


def _bits(builder: Any, mask: Any) -> Any:
    return builder.bitcast(mask, ir.IntType(LANES))


@_code
def more_bits(typing: Any, a: Any, b: Any) -> Any:
    """A bit for each lane, lowest first: whether a > b."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _bits(builder, builder.fcmp_ordered(">", *arguments))

    return types.uint8(_LANES, _LANES), build


@_code
def at_least_bits(typing: Any, a: Any, b: Any) -> Any:
    """A bit for each lane, lowest first: whether a >= b."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _bits(builder, builder.fcmp_ordered(">=", *arguments))

    return types.uint8(_LANES, _LANES), build


@_code
def where_set(typing: Any, bits: Any, a: Any) -> Any:
    """The lanes whose bit is set, lowest first; 0 elsewhere."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, lanes = arguments
        flags = builder.bitcast(bits, ir.VectorType(ir.IntType(1), LANES))
        return builder.select(flags, lanes, ir.Constant(_VECTOR, [0.0] * LANES))

    return _LANES(types.uint8, _LANES), build


@_code
def ones(typing: Any, word: Any) -> Any:
    """Number of bits that are set."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return word(word), build


@_code
def keep_between(typing: Any, out: Any, position: Any, a: Any, low: Any, high: Any) -> Any:
    """Write the lanes with low < a < high one after the other to `out[position:]`; how many.

    What follows them, up to a whole register, is overwritten: a register packed and stored whole
    takes a few cycles on every processor, a store that packs takes hundreds on some.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, position, a, low, high = arguments
        mask = builder.and_(builder.fcmp_ordered("<", low, a), builder.fcmp_ordered("<", a, high))
        array = context.make_array(signature.args[0])(context, builder, out)
        first = builder.gep(array.data, [position])
        kind = ir.FunctionType(_VECTOR, [_VECTOR, mask.type, _VECTOR])
        name = f"llvm.experimental.vector.compress.v{LANES}f64"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        packed = builder.call(function, [a, mask, ir.Constant(_VECTOR, ir.Undefined)])
        builder.store(packed, builder.bitcast(first, _VECTOR.as_pointer()), align=8)
        bits = builder.bitcast(mask, ir.IntType(LANES))
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    return types.intp(out, types.intp, _LANES, _LANES, _LANES), build


def _llvm(name: str, n_arguments: int) -> Callable[..., Any]:
    """Code of an LLVM function of `n_arguments` vectors."""
    signature = ir.FunctionType(_VECTOR, [_VECTOR] * n_arguments)

    def build(context: Any, builder: Any, typed: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, signature, f"llvm.{name}.v{LANES}f64"
        )
        return builder.call(function, arguments)

    return build


@_code
def root(typing: Any, a: Any) -> Any:
    """`sqrt(a)`."""
    return _LANES(_LANES), _llvm("sqrt", 1)


@_code
def first_inverse_root(typing: Any, a: Any) -> Any:
    """1 / sqrt(a) within 3.5 % for normal a > 0: the exponent halved, the mantissa by one line.

    Source: the integer trick of Blinn (IEEE CG&A 1997); the constant for float64 is Lomont's.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integers = ir.VectorType(ir.IntType(64), LANES)
        bits = builder.bitcast(arguments[0], integers)
        halved = builder.lshr(bits, ir.Constant(integers, [1] * LANES))
        magic = ir.Constant(integers, [0x5FE6EB50C7B537A9] * LANES)
        return builder.bitcast(builder.sub(magic, halved), _VECTOR)

    return _LANES(_LANES), build


@_code
def size(typing: Any, a: Any) -> Any:
    """`|a|`."""
    return _LANES(_LANES), _llvm("fabs", 1)


@_code
def with_sign(typing: Any, a: Any, b: Any) -> Any:
    """`|a|` with the sign of b."""
    return _LANES(_LANES, _LANES), _llvm("copysign", 2)


@_code
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """`a b + c`, rounded once."""
    return _LANES(_LANES, _LANES, _LANES), _llvm("fma", 3)


def _operator(function: Callable[..., Any], instruction: str) -> None:
    """Give `function` its meaning for two vectors."""

    @_code
    def emit(typing: Any, a: Any, b: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return _LANES(_LANES, _LANES), build

    @overload(function)
    def implementation(a, b):
        if a is _LANES and b is _LANES:
            return lambda a, b: emit(a, b)
        return None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    first = builder.mul(arguments[1], ir.IntType(64)(LANES))
    return builder.bitcast(builder.gep(array.data, [first]), _VECTOR.as_pointer())
