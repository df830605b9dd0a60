"""dc-doctor: show what this machine can run networks with, and what to install for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .cli import command_errors

if TYPE_CHECKING:
    from .doctor import Finding

WAYS = ("cpu", "openvino", "events", "cuda", "tensorrt", "rtx")
"""As in `runtime.doctor.NEEDS`, which --help must not import."""


@click.command()
@click.option(
    "--require",
    "required",
    type=click.Choice(WAYS),
    multiple=True,
    help="Exit with code 3 unless this can run: .onnx on cpu, openvino, events or cuda, .plan of tensorrt or rtx. "
    "Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON list.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(required: tuple[str, ...], as_json: bool) -> None:
    """Look at this machine: packages, ONNX Runtime's providers, OpenVINO, numba, TensorRT, CUDA, driver, GPU, Jetson.

    It informs and changes nothing. A provider counts as there when it starts, not when it is listed.

    \b
    Examples:
      dc-doctor
      dc-doctor --json
      dc-doctor --require cuda --require tensorrt
    """
    import json
    from dataclasses import asdict

    from .doctor import diagnose, missing_for
    from .errors import BackendMissing

    findings = diagnose()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    else:
        _show(findings)
    for way in required:
        if lack := missing_for(way, findings):
            raise BackendMissing(f"--require {way}: {lack.name} is {lack.state} ({lack.found}): {lack.remedy}")


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table("what", "state", "found")
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    for finding in findings:
        table.add_row(finding.name, Text(finding.state, colours[finding.state]), Text(finding.found))
    console.print(table)
    for remedy in dict.fromkeys(finding.remedy for finding in findings if finding.remedy):
        # Not wrapped: there are commands in it.
        console.print(f"- {remedy}", highlight=False, markup=False, soft_wrap=True)
