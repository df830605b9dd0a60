"""Vectors in LLVM's own language: the words that `events_vectors.py` is written in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .events_program import LANES

I64, I32, I16, I8, I1 = (ir.IntType(bits) for bits in (64, 32, 16, 8, 1))
F32, POINTER = ir.FloatType(), ir.PointerType()
Builder = Any
Value = Any
Window = tuple[Value, Value, Value, Value, Value, Value, Value]
"""weights, step, events, starts, starts_step, span, lines: see `rows_of`."""


def vector(of: Any, lanes: int) -> Any:
    return ir.VectorType(of, lanes)


def splat(of: Any, lanes: int, value: float) -> Value:
    return ir.Constant(vector(of, lanes), [value] * lanes)


def everywhere(b: Builder, value: Value, lanes: int) -> Value:
    """A vector of one value."""
    undefined = ir.Constant(vector(value.type, lanes), ir.Undefined)
    one = b.insert_element(undefined, value, I32(0))
    return b.shuffle_vector(one, undefined, splat(I32, lanes, 0))


def variable(b: Builder, of: Any, lanes: int) -> Value:
    """A vector that code in a loop may change; LLVM keeps it in a register."""
    return cgutils.alloca_once(b, vector(of, lanes))


def flags_of(b: Builder, bits: Value, lanes: int) -> Value:
    return b.bitcast(bits, vector(I1, lanes))


def load(b: Builder, address: Value, of: Any) -> Value:
    return b.load(b.inttoptr(address, POINTER), align=1, typ=of)


def store(b: Builder, value: Value, address: Value) -> None:
    b.store(value, b.inttoptr(address, POINTER), align=1)


def add_to(b: Builder, address: Value, x: Value) -> None:
    store(b, b.fadd(load(b, address, x.type), x), address)


def past(b: Builder, address: Value, count: Any, size: int) -> Value:
    """The address `count` elements of `size` bytes further on."""
    return b.add(address, I64(count * size) if isinstance(count, int) else b.mul(count, I64(size)))


def pieces_of(lanes: int, most: int) -> list[tuple[int, int]]:
    """First channel and number of channels of each piece of a block."""
    step = min(lanes, most)
    return [(first, step) for first in range(0, lanes, step)]


def for_lanes(b: Builder, lanes: Value, emit: Callable[[int], None]) -> None:
    """Emit code for each block size there is, and jump to that of `lanes`."""
    done = b.append_basic_block("lanes.done")
    jump = b.switch(lanes, done)
    for width in LANES:
        block = b.append_basic_block(f"lanes.{width}")
        jump.add_case(I64(width), block)
        b.position_at_end(block)
        emit(width)
        b.branch(done)
    b.position_at_end(done)


@contextmanager
def rows_of(
    b: Builder, window: Window, row_bytes: int, most: int | None, flush: Callable[[Value], None]
) -> Iterator[Value]:
    """Go through the events of a window, line by line; yields the address of the weights of each.

    Line k of `lines` lies at starts + k * starts_step: there stands the index of its first event, and `span` pixels on
    that behind its last. Row r of its weights lies at weights + k * step + r * row_bytes, r being the event itself.
    `flush(rows)` is called after every `most` rows, and at the end.
    """
    weights, step, events, starts, starts_step, span, lines = window
    used, at = cgutils.alloca_once(b, I64), cgutils.alloca_once(b, I64)
    b.store(I64(0), used)
    with cgutils.for_range(b, lines) as line:
        base = b.add(weights, b.mul(step, line.index))
        first = b.add(starts, b.mul(starts_step, line.index))
        stop = load(b, past(b, first, span, 8), I64)
        b.store(load(b, first, I64), at)
        more, body, end = (b.append_basic_block(f"rows.{name}") for name in ("more", "body", "end"))
        b.branch(more)
        b.position_at_end(more)
        start = b.load(at, typ=I64)
        b.cbranch(b.icmp_signed("<", start, stop), body, end)
        b.position_at_end(body)
        until = stop
        if most is not None:
            room = b.add(start, b.sub(I64(most), b.load(used, typ=I64)))
            until = b.select(b.icmp_signed("<", stop, room), stop, room)
        with cgutils.for_range(b, until, start) as event:
            row = b.sext(load(b, past(b, events, event.index, 4), I32), I64)
            yield past(b, base, row, row_bytes)
        b.store(until, at)
        total = b.add(b.load(used, typ=I64), b.sub(until, start))
        b.store(total, used)
        if most is not None:
            with b.if_then(b.icmp_signed("==", total, I64(most)), likely=False):
                flush(total)
                b.store(I64(0), used)
        b.branch(more)
        b.position_at_end(end)
    flush(b.load(used, typ=I64))
