"""What the event-driven kernels do to a block of channels at once, in vector registers: written in LLVM's own language.

Numba compiles loops over arrays, but it keeps no vectors of sums in registers from one spike to the next, and that is
where an event-driven engine spends its time. LLVM makes AVX-512, AVX2 or NEON of these vectors, whatever there is.

All of them take addresses and work on the next `lanes` channels there: float32 membranes, and masks of one bit per
neuron. Nothing is checked here; `events_program.py` makes every offset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

from .events_llvm import (
    F32,
    I8,
    I16,
    I32,
    I64,
    POINTER,
    Builder,
    Value,
    add_to,
    everywhere,
    flags_of,
    for_lanes,
    load,
    past,
    pieces_of,
    rows_of,
    splat,
    store,
    variable,
    vector,
)
from .events_program import SLACK

SAFE_ROWS = 256
"""So many int8 weights add up to an int16: 256 * 127 < 2^15."""
PATIENCE = 1024
"""So often a thread looks whether the others have arrived before it offers them its core; a power of two."""
FLOAT_LANES = 64
"""Sums of float32 take so many channels at a time, so that registers hold them."""

intrinsic: Any = extending.intrinsic
ADDRESS = COUNT = types.int64
GAIN = types.float32


def _emitted(body: Callable[..., Value | None]) -> Callable[..., Value]:
    """What numba wants of an intrinsic, from a function of the builder and the arguments."""

    def codegen(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
        made = body(builder, *values)
        return context.get_dummy_value() if made is None else made

    return codegen


@intrinsic
def add_int8_rows(_, lanes, v, unit, sign, weights, step, events, starts, starts_step, span, lines):
    """v += sign * unit * (the sum of the int8 weights of all events of a window).

    Two channels i and i + lanes / 2 lie in one int16: x = (w_i + 128) + 256 * w_(i + lanes / 2). The sums of x and of
    x >> 8 give both, modulo 2^16, with half the instructions that widening every byte would take.
    """
    window = ADDRESS, COUNT, ADDRESS, ADDRESS, COUNT, COUNT, COUNT
    return types.void(COUNT, ADDRESS, ADDRESS, GAIN, *window), _emitted(_add_int8_rows)


def _add_int8_rows(b: Builder, lanes: Value, v: Value, unit: Value, sign: Value, *window: Value) -> None:
    def emit(width: int) -> None:
        pieces = [
            (*piece, variable(b, I16, piece[1]), variable(b, I16, piece[1])) for piece in pieces_of(width // 2, 32)
        ]

        def clear() -> None:
            for _, count, both, upper in pieces:
                b.store(splat(I16, count, 0), both)
                b.store(splat(I16, count, 0), upper)

        def flush(rows: Value) -> None:
            for first, count, both, upper in pieces:
                high = b.load(upper, typ=vector(I16, count))
                offset = everywhere(b, b.trunc(b.shl(rows, I64(7)), I16), count)
                low = b.sub(b.sub(b.load(both, typ=high.type), b.shl(high, splat(I16, count, 8))), offset)
                for channel, total in ((first, low), (first + width // 2, high)):
                    wide = vector(F32, count)
                    scale = b.fmul(load(b, past(b, unit, channel, 4), wide), everywhere(b, sign, count))
                    current = b.fmul(b.sitofp(b.sext(total, vector(I32, count)), wide), scale)
                    add_to(b, past(b, v, channel, 4), current)
            clear()

        clear()
        with rows_of(b, window, width, SAFE_ROWS, flush) as row:  # type: ignore[arg-type]
            for first, count, both, upper in pieces:
                x = load(b, past(b, row, first, 2), vector(I16, count))
                b.store(b.add(b.load(both, typ=x.type), x), both)
                b.store(b.add(b.load(upper, typ=x.type), b.ashr(x, splat(I16, count, 8))), upper)

    for_lanes(b, lanes, emit)


@intrinsic
def add_float_rows(_, lanes, v, sign, weights, step, events, starts, starts_step, span, lines):
    """v += sign * (the sum of the float32 weights of all events of a window)."""
    window = ADDRESS, COUNT, ADDRESS, ADDRESS, COUNT, COUNT, COUNT
    return types.void(COUNT, ADDRESS, GAIN, *window), _emitted(_add_float_rows)


def _add_float_rows(b: Builder, lanes: Value, v: Value, sign: Value, *window: Value) -> None:
    def emit(width: int) -> None:
        for start, most in pieces_of(width, FLOAT_LANES):
            pieces = [(start + first, count, variable(b, F32, count)) for first, count in pieces_of(most, 16)]

            def flush(_rows: Value, pieces: list[tuple[int, int, Value]] = pieces) -> None:
                for first, count, total in pieces:
                    wide = vector(F32, count)
                    current = b.fmul(b.load(total, typ=wide), everywhere(b, sign, count))
                    add_to(b, past(b, v, first, 4), current)

            for _, count, total in pieces:
                b.store(splat(F32, count, 0.0), total)
            with rows_of(b, window, 4 * width, None, flush) as row:  # type: ignore[arg-type]
                for first, count, total in pieces:
                    x = load(b, past(b, row, first, 4), vector(F32, count))
                    b.store(b.fadd(b.load(total, typ=x.type), x), total)

    for_lanes(b, lanes, emit)


@intrinsic
def add_products(_, lanes, v, values, weights, count):
    """v += the sum over i < count of values[i] * weights[i]; float32, a row of weights for each value."""
    return types.void(COUNT, ADDRESS, ADDRESS, ADDRESS, COUNT), _emitted(_add_products)


def _add_products(b: Builder, lanes: Value, v: Value, values: Value, weights: Value, count: Value) -> None:
    def emit(width: int) -> None:
        for start, most in pieces_of(width, FLOAT_LANES):
            pieces = [(start + first, size, variable(b, F32, size)) for first, size in pieces_of(most, 16)]
            for _, size, total in pieces:
                b.store(splat(F32, size, 0.0), total)
            with cgutils.for_range(b, count) as loop:
                value = load(b, past(b, values, loop.index, 4), F32)
                row = past(b, weights, loop.index, 4 * width)
                for first, size, total in pieces:
                    x = load(b, past(b, row, first, 4), vector(F32, size))
                    # exact whether or not it is rounded between the two (contract.md, Exactness)
                    product = b.fmul(x, everywhere(b, value, size), flags=("contract",))
                    b.store(b.fadd(b.load(total, typ=x.type), product, flags=("contract",)), total)
            for first, size, total in pieces:
                add_to(b, past(b, v, first, 4), b.load(total, typ=vector(F32, size)))

    for_lanes(b, lanes, emit)


@intrinsic
def add_where(_, lanes, v, mask, gain):
    """v += gain, where the mask has a one."""
    return types.void(COUNT, ADDRESS, ADDRESS, GAIN), _emitted(_add_where)


def _add_where(b: Builder, lanes: Value, v: Value, mask: Value, gain: Value) -> None:
    def emit(width: int) -> None:
        for first, count in pieces_of(width, 16):
            bits = load(b, b.add(mask, I64(first // 8)), ir.IntType(count))
            nothing = splat(F32, count, 0.0)
            add_to(b, past(b, v, first, 4), b.select(flags_of(b, bits, count), everywhere(b, gain, count), nothing))

    for_lanes(b, lanes, emit)


@intrinsic
def fire(_, lanes, v, bias, mask):
    """p = v + bias;  z = [p >= 1];  v <- p - z;  z goes into the mask."""
    return types.void(COUNT, ADDRESS, ADDRESS, ADDRESS), _emitted(_fire)


def _fire(b: Builder, lanes: Value, v: Value, bias: Value, mask: Value) -> None:
    def emit(width: int) -> None:
        for first, count in pieces_of(width, 16):
            at, one = past(b, v, first, 4), splat(F32, count, 1.0)
            p = b.fadd(load(b, at, one.type), load(b, past(b, bias, first, 4), one.type))
            z = b.fcmp_ordered(">=", p, one)
            store(b, b.select(z, b.fsub(p, one), p), at)
            store(b, b.bitcast(z, ir.IntType(count)), b.add(mask, I64(first // 8)))

    for_lanes(b, lanes, emit)


@intrinsic
def fire_signed(_, lanes, v, bias, n, levels, up, down):
    """p = v + bias;  z = [p >= 1][n < levels] - [p < 0][n > 0];  v <- p - z;  n <- n + z;  z goes into two masks."""
    return types.void(COUNT, ADDRESS, ADDRESS, ADDRESS, COUNT, ADDRESS, ADDRESS), _emitted(_fire_signed)


def _fire_signed(
    b: Builder, lanes: Value, v: Value, bias: Value, n: Value, levels: Value, up: Value, down: Value
) -> None:
    def emit(width: int) -> None:
        for first, count in pieces_of(width, 16):
            at, at_n, one = past(b, v, first, 4), b.add(n, I64(first)), splat(F32, count, 1.0)
            most, none = everywhere(b, b.trunc(levels, I8), count), splat(I8, count, 0)
            p = b.fadd(load(b, at, one.type), load(b, past(b, bias, first, 4), one.type))
            before = load(b, at_n, none.type)
            more = b.and_(b.fcmp_ordered(">=", p, one), b.icmp_unsigned("<", before, most))
            less = b.and_(b.fcmp_ordered("<", p, splat(F32, count, 0.0)), b.icmp_unsigned("!=", before, none))
            store(b, b.select(more, b.fsub(p, one), b.select(less, b.fadd(p, one), p)), at)
            store(b, b.sub(b.add(before, b.zext(more, none.type)), b.zext(less, none.type)), at_n)
            for z, mask in ((more, up), (less, down)):
                store(b, b.bitcast(z, ir.IntType(count)), b.add(mask, I64(first // 8)))

    for_lanes(b, lanes, emit)


@intrinsic
def list_bits(_, mask, table, first, events, end):
    """Append first + i to the int32 list `events` for every one i of one byte of a mask; return the list's new end.

    table: the places of the ones of every byte, uint8 `[256, 8]`. Up to SLACK entries behind the end are overwritten.
    """
    return COUNT(ADDRESS, ADDRESS, COUNT, ADDRESS, COUNT), _emitted(_list_bits)


def _list_bits(b: Builder, mask: Value, table: Value, first: Value, events: Value, end: Value) -> Value:
    bits = load(b, mask, I8)
    positions = b.zext(load(b, past(b, table, b.zext(bits, I64), 8), vector(I8, 8)), vector(I32, 8))
    store(b, b.add(positions, everywhere(b, b.trunc(first, I32), 8)), past(b, events, end, 4))
    return b.add(end, b.zext(b.ctpop(bits), I64))


@intrinsic
def copy_shifted(_, source, target, count, shift):
    """Copy int32 numbers and add shift to each. Up to SLACK entries behind the last are overwritten."""
    return types.void(ADDRESS, ADDRESS, COUNT, COUNT), _emitted(_copy_shifted)


def _copy_shifted(b: Builder, source: Value, target: Value, count: Value, shift: Value) -> None:
    numbers = vector(I32, SLACK)
    by = everywhere(b, b.trunc(shift, I32), SLACK)
    with cgutils.for_range(b, b.sdiv(b.add(count, I64(SLACK - 1)), I64(SLACK))) as loop:
        at = b.mul(loop.index, I64(4 * SLACK))
        store(b, b.add(load(b, b.add(source, at), numbers), by), b.add(target, at))


@intrinsic
def arrive_and_wait(_, counter, expected):
    """Add one to the int64 at `counter`, then wait until it is at least `expected`: a barrier of threads."""
    return types.void(ADDRESS, COUNT), _emitted(_arrive_and_wait)


def _arrive_and_wait(b: Builder, counter: Value, expected: Value) -> None:
    pointer = b.inttoptr(counter, POINTER)
    b.atomic_rmw("add", pointer, I64(1), "seq_cst")
    give_way = cgutils.get_or_insert_function(b.module, ir.FunctionType(I32, []), "sched_yield")
    look, wait, done = (b.append_basic_block(f"barrier.{name}") for name in ("look", "wait", "done"))
    before = b.basic_block
    b.branch(look)
    b.position_at_end(look)
    tries = b.phi(I64)
    b.cbranch(b.icmp_signed("<", b.load_atomic(pointer, "seq_cst", 8, typ=I64), expected), wait, done)
    b.position_at_end(wait)
    more = b.add(tries, I64(1))
    with b.if_then(b.icmp_unsigned("==", b.and_(more, I64(PATIENCE - 1)), I64(0)), likely=False):
        b.call(give_way, [])  # the others may be waiting for this very core
    tries.add_incoming(I64(0), before)
    tries.add_incoming(more, b.basic_block)
    b.branch(look)
    b.position_at_end(done)
