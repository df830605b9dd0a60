"""dc-report: show records of dc-bench or of Table 2 as one page, or as Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from ...runtime.cli import command_errors


@click.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write. [Markdown: standard output]")
@click.option("--markdown", "as_markdown", is_flag=True, help="Write Markdown: all tables, no pictures.")
@click.version_option(package_name="dynamic-confidence")
@command_errors
def main(records: tuple[Path, ...], output: Path | None, as_markdown: bool) -> None:
    """Show RECORDS as one HTML page that needs nothing else: it can be mailed, printed, kept.

    A record says what it is: dc-bench's, or that of `python -m dynamic_confidence.benchmarks.table2`.

    Everything in it is computed from the records. Several of them stand beside each other; the page warns where they
    come from different machines, other software or other images. The page needs the packages of the extra `report`,
    Markdown needs none of them.

    \b
    Examples:
      dc-report record.json -o report.html
      dc-report desktop.json jetson.json -o report.html
      dc-report table2.json -o table2.html
      dc-report record.json --markdown
    """
    from ...runtime.errors import DynamicConfidenceError
    from ...runtime.files import check_place, write_atomically
    from .report import html_of, markdown_of
    from .report_records import page_of_files

    if output is None and not as_markdown:
        raise DynamicConfidenceError("no -o: expected the page's file, as in -o report.html, or --markdown.")
    if output is not None and output.suffix == ".json":
        raise DynamicConfidenceError(f"-o {output}: a page is no .json, expected another name: -o report.html.")
    if output is not None and output.resolve() in {path.resolve() for path in records}:
        raise DynamicConfidenceError(f"-o {output}: is one of the records, expected another file: -o report.html.")
    page, what = page_of_files(records)
    text = markdown_of(page) if as_markdown else html_of(page)
    if output is None:
        click.echo(text, nl=False)
        return
    check_place(output, "Choose another place with -o.")
    write_atomically(output, text.encode())
    click.echo(f"{output}: {what}")
