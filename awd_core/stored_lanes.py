"""Eight numbers as they are stored, in and out of a register: widened to float64, rounded once."""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from awd_core.compiled import inlined
from awd_core.lanes import LANES, LANES_TYPE

FLOAT64, FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2, 3
# A tensor that an expert does not change has no bytes in a chunk.
NOTHING = -1


def _code(function: Callable[..., Any]) -> Any:
    """`numba.extending.intrinsic`, whose result takes one argument less than `function`."""
    return intrinsic(function)


# Vectors of LLVM: what a register holds while eight numbers are on their way.
_DOUBLES, _SINGLES, _WORDS, _HALVES, _SHORTS = (
    ir.VectorType(kind, LANES)
    for kind in (ir.DoubleType(), ir.FloatType(), ir.IntType(32), ir.HalfType(), ir.IntType(16))
)


def _splat(kind: ir.VectorType, number: int) -> ir.Constant:
    return ir.Constant(kind, [number] * LANES)


def _place(context: Any, builder: Any, signature: Any, arguments: Any, kind: Any) -> Any:
    """Address of element `arguments[1]` of an array of bytes that holds numbers of LANES `kind`."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    first = builder.bitcast(array.data, kind.element.as_pointer())
    return builder.bitcast(builder.gep(first, [arguments[1]]), kind.as_pointer())


def _loader(kind: ir.VectorType, convert: Callable[[Any, Any], Any]) -> Any:
    """Code that reads eight stored numbers, from any position on, as eight lanes."""

    def load(typing: Any, data: Any, position: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = _place(context, builder, signature, arguments, kind)
            return convert(builder, builder.load(address, align=1))

        return LANES_TYPE(data, types.intp), build

    return _code(load)


def _storer(kind: ir.VectorType, convert: Callable[[Any, Any], Any]) -> Any:
    """Code that writes eight lanes as eight numbers, to any position on."""

    def save(typing: Any, data: Any, position: Any, lanes: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = _place(context, builder, signature, arguments, kind)
            builder.store(convert(builder, arguments[2]), address, align=1)
            return context.get_dummy_value()

        return types.void(data, types.intp, lanes), build

    return _code(save)


def _from_bfloat16(builder: Any, shorts: Any) -> Any:
    words = builder.shl(builder.zext(shorts, _WORDS), _splat(_WORDS, 16))
    return builder.fpext(builder.bitcast(words, _SINGLES), _DOUBLES)


def _to_bfloat16(builder: Any, doubles: Any) -> Any:
    words = builder.bitcast(builder.fptrunc(doubles, _SINGLES), _WORDS)
    odd = builder.and_(builder.lshr(words, _splat(_WORDS, 16)), _splat(_WORDS, 1))
    words = builder.add(words, builder.add(odd, _splat(_WORDS, 0x7FFF)))
    return builder.trunc(builder.lshr(words, _splat(_WORDS, 16)), _SHORTS)


def _from_float16(builder: Any, halves: Any) -> Any:
    return builder.fpext(builder.fpext(halves, _SINGLES), _DOUBLES)


def _to_float16(builder: Any, doubles: Any) -> Any:
    return builder.fptrunc(builder.fptrunc(doubles, _SINGLES), _HALVES)


load_lanes = _loader(_DOUBLES, lambda builder, doubles: doubles)
_load_float32 = _loader(_SINGLES, lambda builder, singles: builder.fpext(singles, _DOUBLES))
_load_bfloat16 = _loader(_SHORTS, _from_bfloat16)
_load_float16 = _loader(_HALVES, _from_float16)
store_lanes = _storer(_DOUBLES, lambda builder, doubles: doubles)
_store_float32 = _storer(_SINGLES, lambda builder, doubles: builder.fptrunc(doubles, _SINGLES))
_store_bfloat16 = _storer(_SHORTS, _to_bfloat16)
_store_float16 = _storer(_HALVES, _to_float16)


@_code
def added(typing: Any, base: Any, update: Any) -> Any:
    """`base + update`, and the base with its bits where nothing is added."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, update = arguments
        zero = builder.fcmp_ordered("==", update, ir.Constant(_DOUBLES, [0.0] * LANES))
        return builder.select(zero, base, builder.fadd(base, update))

    return LANES_TYPE(base, update), build


@inlined
def load_stored(data: np.ndarray, offset: int, code: int, position: int) -> Any:
    """Eight numbers of stored bytes, from `position` on."""
    if code == BFLOAT16:
        return _load_bfloat16(data, offset // 2 + position)
    if code == FLOAT32:
        return _load_float32(data, offset // 4 + position)
    if code == FLOAT16:
        return _load_float16(data, offset // 2 + position)
    return load_lanes(data, offset // 8 + position)


@inlined
def store_stored(data: np.ndarray, code: int, position: int, lanes: Any) -> None:
    """Round eight numbers once and write them; by way of float32, ties to even, as torch rounds."""
    if code == BFLOAT16:
        _store_bfloat16(data, position, lanes)
    elif code == FLOAT32:
        _store_float32(data, position, lanes)
    elif code == FLOAT16:
        _store_float16(data, position, lanes)
    else:
        store_lanes(data, position, lanes)
