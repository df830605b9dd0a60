"""Where and how a record was measured, and what sets two records apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .record import LatencyRecord, Machine, Run
from .report_parts import Table, Text
from .report_text import number


def method(record: LatencyRecord) -> tuple[Text, Table, Table]:
    """How it was measured, on which machine, by which command."""
    data = record.data
    how = Text(
        "Every image was answered with and without early exit in turn, the order reversed in every second round. A "
        "time runs from the reset to the answer. Percentiles are taken over all samples; “on average” is the mean over "
        "the images of each one's median over the rounds."
    )
    rows = (
        ("command", record.command),
        ("images", f"{data.images} of {data.title}, SHA-256 {data.samples_sha256[:12]}"),
        ("rounds", f"{record.rounds} asked for, in {number(record.seconds)} s at most"),
        ("warm-up", f"{number(record.warm_up_ms)} ms"),
    )
    measurement = Table("The measurement", ("", "used"), rows, words=True)
    return how, measurement, Table("The machine", ("", "found"), tuple(_machine(record.machine)), words=True)


def network_table(run: Run) -> Table:
    """What ran: the file, its exits and the backend."""
    network = run.network
    exits = f"{network.metric} above {network.threshold:.4g}, α {network.alpha:g}, temperature {network.temperature:g}"
    rows = (
        ("file", f"{run.file}, graph {network.graph_sha256[:12]}"),
        ("network", f"{network.architecture}, {network.method.upper()}, T = {network.steps}"),
        ("numbers", f"{network.precision}, form {network.form}"),
        ("steps of the calls", ", ".join(map(str, network.calls)) + ", the last one repeated"),
        ("exit", exits if network.calibrated_on else f"{exits}: not calibrated"),
        ("calibrated on", network.calibrated_on or "nothing yet"),
        ("backend", f"{run.backend}, {'threads as it likes' if run.threads is None else f'threads: {run.threads}'}"),
    )
    return Table("The network", ("", "value"), rows, words=True)


def differences(records: Sequence[LatencyRecord]) -> Iterator[str]:
    """Say what keeps these records from being compared; nothing where they belong together."""
    machines = [_hardware(record.machine) for record in records]
    if found := apart(machines):
        yield (
            f"These records come from different machines ({found}). Compare what is saved, not the milliseconds; no "
            "picture shows them together."
        )
    if found := apart([_software(record.machine) for record in records]):
        yield f"These records were measured with different software ({found})."
    if found := apart([{"images": f"{r.data.title} {r.data.samples_sha256[:12]}"} for r in records]):
        yield f"These records are of different images ({found}): accuracies and exits do not compare."


def one_machine(records: Sequence[LatencyRecord]) -> bool:
    """Whether the milliseconds of these records belong on one axis."""
    return not apart([_hardware(record.machine) for record in records])


def _hardware(machine: Machine) -> dict[str, str]:
    """What decides the time, as far as it stands still: not the clock of the moment, nor the load."""
    return {
        "processor": machine.processor,
        "flags": " ".join(machine.flags),
        "cores": str(machine.cores),
        "pinned to": _cores(machine),
        "governor": machine.governor,
        "system": machine.system,
        "power mode": machine.power_mode or "none",
        "GPU": "none" if machine.gpu is None else f"{machine.gpu.name}, driver {machine.gpu.driver}",
    }


def _software(machine: Machine) -> dict[str, str]:
    return {"Python": machine.python, **machine.libraries, "commit": machine.commit}


def apart(values: Sequence[dict[str, str]]) -> str:
    """Say each key whose values differ, with all of them: `cores: 2 | 8`."""
    keys = dict.fromkeys(key for one in values for key in one)
    each = {key: list(dict.fromkeys(one.get(key, "none") for one in values)) for key in keys}
    return "; ".join(f"{key}: {' | '.join(found)}" for key, found in each.items() if len(found) > 1)


def _cores(machine: Machine) -> str:
    return ", ".join(map(str, machine.pinned_to)) or "no particular cores"


def _machine(machine: Machine) -> Iterator[tuple[str, str]]:
    """All of it, also what may change from minute to minute."""
    yield from _hardware(machine).items()
    gpu = machine.gpu
    if gpu is not None:
        clock = "" if gpu.clock_mhz is None else f", {number(gpu.clock_mhz)} MHz"
        yield "GPU memory and clock", f"{number(gpu.memory_mb)} MB{clock}"
    yield "clock when it began", "not known" if machine.clock_mhz is None else f"{number(machine.clock_mhz)} MHz"
    yield "in use before", "not known" if machine.load_per_core is None else f"{machine.load_per_core:.0%} of all cores"
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    yield "software", f"Python {machine.python}, {libraries}"
    yield "commit", machine.commit
    yield "date", machine.date
