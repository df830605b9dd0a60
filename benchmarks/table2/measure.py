"""One setting on every engine that is here: made, opened, timed in one interleaved run; the answers must be equal."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import numpy as np

from ...models.checkpoint import Checkpoint
from ...runtime.engine import Engine
from ...runtime.errors import CheckFailed
from ...runtime.gpu import device_target
from ...runtime.stepping import infer
from ..model_and_data import spread
from ..networks import random_checkpoint
from ..peers.candidate import Missing
from ..peers.machine import described, load
from ..peers.measure import Call, Samples, interleaved
from ..peers.ours import to_the_end
from ..peers.setting import Setting, setting, size_of, spike_rate
from ..record import machine
from . import settings
from .engines import Opened, cpu_engines, gpu_engines, passes
from .record import Absent, Cell, Computer, Row, Series, WithExit
from .settings import LIKELY_RATES, Network, PaperSetting
from .trained import TIMED_IMAGES, Exits, Trained, exits_of

LEAST_ROUNDS = 3
"""However long they take."""
RATE_STEPS = 8
"""At most, in which the spikes are counted: more would take as long as an inference."""
CHECKED_CALLS = 1
"""Of a random network's self-check: it took minutes for a large one, and `_equal` looks at the end of all T steps."""


def computer(cores: list[int]) -> Computer:
    """The machine, as the record has it."""
    found = described(cores)
    own = {key: found.pop(key) for key in Computer.__struct_fields__ if key in found}
    return Computer(gpu=device_target(), libraries=found, **own)


def random_network(network: Network, *, quick: bool = False) -> Checkpoint:
    """Random weights that spike about as trained ones do."""
    own = {"width": network.channels(quick=quick), "thresholds": network.thresholds, **network.arguments}
    return random_checkpoint(network.architecture, network.preprocessing, **own)


def measured(
    paper: PaperSetting,
    folder: Path,
    seconds: float,
    *,
    threads: int,
    quick: bool = False,
    trained: Trained | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Cell:
    """Time a setting on all engines, at fixed T, in one pass and, where it is trained, with early exit.

    Raises: CheckFailed when two engines of one precision answer differently.
    """
    network, before = settings.NETWORKS[paper.network], load()
    checkpoint = random_network(network, quick=quick) if trained is None else trained.checkpoint
    one = setting(paper.network, checkpoint, paper.method, steps=paper.steps, threads=threads)
    if trained is not None:
        one = replace(one, pixels=spread(trained.test, TIMED_IMAGES)[0])
    size, rate = size_of(one.snn), spike_rate(one.snn, one.pixels, min(one.steps, RATE_STEPS))
    told(f"{rate:.1%} of the neurons spike per step")
    if trained is None and not LIKELY_RATES[0] <= rate <= LIKELY_RATES[1]:
        told(f"expected {LIKELY_RATES[0]:.0%} to {LIKELY_RATES[1]:.0%}: a network unlike trained ones")
    with ExitStack() as stack:
        checked = CHECKED_CALLS if trained is None else None
        found = []
        for opened in chain(cpu_engines(one, folder, stack, checked), gpu_engines(one, folder, stack)):
            told(f"{opened.name}: {'ready' if isinstance(opened, Opened) else f'{opened.status} ({opened.reason})'}")
            found.append(opened)
        present = [opened for opened in found if isinstance(opened, Opened)]
        exits = {} if trained is None else _exits(present, trained, threads, told)
        rows, answers = _timed(one, present, exits, seconds, quick, told)
    _equal(paper.name, present, answers)
    return Cell(
        steps=one.steps,
        width=network.channels(quick=quick) if trained is None else None,
        input=list(one.snn.input_shape),
        macs_per_step=size["macs_per_step"],
        weights=size["weights"],
        neurons=size["neurons"],
        spike_rate=rate,
        model=None if trained is None else trained.about,
        commit=machine()["commit"],
        finished=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        load_average=[before, load()],
        rows=rows,
        absent=[Absent(**asdict(missing)) for missing in found if isinstance(missing, Missing)],
    )


def _timed(
    one: Setting,
    present: list[Opened],
    exits: dict[str, Exits],
    seconds: float,
    quick: bool,
    told: Callable[[str], None],
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """The rows of all engines, and what each of them answered in the last round."""
    answers: dict[str, np.ndarray] = {}
    stopped: dict[str, list[int]] = {}
    one_pass = {name: run for name, run in passes(one).items() if name in {opened.name for opened in present}}
    calls: dict[str, Call] = {}
    for name, precision, _, engine in present:
        calls[name] = _fixed(name, one, engine, answers)
        if precision in exits:
            calls[f"{name}, exit"] = _with_exit(name, engine, exits[precision], stopped)
    for name, run in one_pass.items():
        calls[f"{name}, one pass"] = lambda round_, run=run: run(_image(one, round_))
    samples = interleaved(calls, seconds, quick=quick, least=LEAST_ROUNDS, told=told)
    rows = []
    for name, precision, _, engine in present:
        with_exit = None
        if (of := exits.get(precision)) is not None:
            with_exit = WithExit(
                series=_series(samples[f"{name}, exit"], len(of.timed)),
                exit_steps=stopped[name],
                threshold=of.policy.threshold,
                tested=of.tested,
            )
        rows.append(
            Row(
                name=name,
                backend=engine.backend,
                precision=precision,
                fixed=_series(samples[name]),
                one_pass=_series(samples[f"{name}, one pass"]) if name in one_pass else None,
                with_exit=with_exit,
            )
        )
    return rows, answers


def _exits(present: list[Opened], trained: Trained, threads: int, told: Callable[[str], None]) -> dict[str, Exits]:
    """Of each precision: all its engines give the same answers."""
    found = {}
    for precision, file in {opened.precision: opened.file for opened in present}.items():
        told(f"{precision}: calibrating and testing early exit, all steps of {len(trained.test[0])} test images")
        found[precision] = exits_of(file, trained, threads)
    return found


def _fixed(name: str, one: Setting, engine: Engine, answers: dict[str, np.ndarray]) -> Call:
    """Answer another image in every round, with all T steps."""
    policy = to_the_end(engine, one.steps)

    def call(round_: int) -> None:
        answers[name] = infer(engine, _image(one, round_), policy).logits

    return call


def _with_exit(name: str, engine: Engine, exits: Exits, stopped: dict[str, list[int]]) -> Call:
    """Answer all timed images in every round, each with as many steps as it takes."""

    def call(round_: int) -> None:
        stopped[name] = [infer(engine, image[None], exits.policy).rows[0].steps for image in exits.timed]

    return call


def _image(one: Setting, round_: int) -> np.ndarray:
    return one.pixels[round_ % len(one.pixels)][None]


def _series(samples: Samples, images: int = 1) -> Series:
    return Series(wall_ms=[ms / images for ms in samples.wall_ms], cpu_ms=[ms / images for ms in samples.cpu_ms])


def _equal(title: str, present: list[Opened], answers: dict[str, np.ndarray]) -> None:
    """Compare the logits of the last round bit for bit. Raises: CheckFailed where two of one precision differ."""
    for opened in present:
        first = next(other.name for other in present if other.precision == opened.precision)
        if not np.array_equal(answers[opened.name], answers[first]):
            raise CheckFailed(
                f"{title}: the logits of '{opened.name}' are not those of '{first}', expected the same bits. Nothing "
                "of this setting was recorded; this is a bug: please report it."
            )
