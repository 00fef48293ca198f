"""The random numbers of `awd_core.random_masks` for eight elements side by side."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from awd_core.lanes import LANES
from awd_core.random_masks import BITS, FIRST_FACTOR, GOLDEN, SECOND_FACTOR

_NUMBERS = ir.VectorType(ir.IntType(64), LANES)


def _code(function: Callable[..., Any]) -> Any:
    """`numba.extending.intrinsic`, whose result takes one argument less than `function`."""
    return intrinsic(function)


def _alike(number: int) -> ir.Constant:
    return ir.Constant(_NUMBERS, [number % 2**64] * LANES)


def _splat(builder: Any, number: Any) -> Any:
    first = builder.insert_element(ir.Constant(_NUMBERS, ir.Undefined), number, ir.IntType(32)(0))
    same_lane = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, first, same_lane)


@_code
def kept_bits(typing: Any, key: Any, position: Any, limit: Any) -> Any:
    """A bit for each lane, lowest first: whether its random number is at least `limit` 2^-53.

    Lane i is element `position + i` of the stream that starts at `key`; all of them are uint64.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        key, position, limit = arguments
        elements = ir.Constant(_NUMBERS, [(i + 1) * GOLDEN % 2**64 for i in range(LANES)])
        begin = builder.add(key, builder.mul(position, ir.IntType(64)(GOLDEN)))
        state = builder.add(_splat(builder, begin), elements)
        for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
            state = builder.xor(state, builder.lshr(state, _alike(shift)))
            state = builder.mul(state, _alike(factor))
        state = builder.xor(state, builder.lshr(state, _alike(31)))
        number = builder.lshr(state, _alike(64 - BITS))
        stays = builder.icmp_unsigned(">=", number, _splat(builder, limit))
        return builder.bitcast(stays, ir.IntType(LANES))

    return types.uint8(types.uint64, types.uint64, types.uint64), build
