"""The command line: one thin function per verb, and the only place that prints errors.

What a verb needs is imported when it runs: `--help` loads neither BCC nor netlink.
"""

import errno
import io
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperGroup

from moh_ebpf import __version__, parsers, settings
from moh_ebpf.errors import (
    NOT_PERMITTED,
    ExitStatus,
    MohError,
    NotAttachedError,
    UsageError,
)
from moh_ebpf.lab import cli as lab
from moh_ebpf.options import ListsOfWords, with_settings

if TYPE_CHECKING:
    from moh_ebpf.attach.attachment import Report
    from moh_ebpf.discover.seen import Flow
    from moh_ebpf.registry.record import Place
    from moh_ebpf.service.sums import Sums


class _Interruptible(TyperGroup):
    """Ctrl-C has one exit status, whatever the version of click: up to 8.1 has another."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(ExitStatus.INTERRUPTED)


app = typer.Typer(
    cls=_Interruptible,
    help="Hold music through a NAT firewall for Cisco UCM: a stateless NAT in eBPF.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(lab.app, name="lab")

JSON = typer.Option(False, "--json", help="Print JSON.")


def main() -> None:
    """Run the command line and exit with an ExitStatus."""
    _prepare_streams()
    try:
        app(prog_name="moh-ebpf")
    except MohError as error:
        _fail(error, error.status)
    except PermissionError as error:
        what = f"{error.filename or 'the kernel'}: {error.strerror}"
        _fail(MohError(f"{what}; {NOT_PERMITTED}"), ExitStatus.FAILURE)
    except OSError as error:
        # A short output is still in the stream. Of a long one, the write itself has failed; an
        # error of the kernel's has the name of its call.
        full = error.errno == errno.ENOSPC and error.filename is None
        unwritten = error.errno == _forget_what_cannot_be_written() or full
        said = MohError(f"the output cannot be written: {error.strerror}") if unwritten else error
        _fail(said, ExitStatus.FAILURE)
    except KeyboardInterrupt:
        sys.exit(ExitStatus.INTERRUPTED)
    except Exception as error:
        # pyroute2's own errors are no OSError; it is imported where it is needed alone.
        from pyroute2.netlink.exceptions import NetlinkError

        if not isinstance(error, NetlinkError):
            raise
        _fail(MohError(f"the kernel's answer by netlink: {error}"), ExitStatus.FAILURE)


def _prepare_streams() -> None:
    """Descriptors 0 to 2 exist, so that none of ours becomes one; no locale stops a message."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    # Of a descriptor that was closed, Python made no stream.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _fail(error: Exception, status: ExitStatus) -> NoReturn:
    typer.echo(f"moh-ebpf: {error}", err=True)
    _forget_what_cannot_be_written()
    sys.exit(status)


def _forget_what_cannot_be_written() -> int | None:
    """It stays in the stream: Python would try once more when it ends, complain, and have an exit
    status of its own. The errno for which it cannot be; None if there is nothing left."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error.errno
    return None


def _notify(text: str) -> None:
    typer.echo(f"moh-ebpf: {text}", err=True)


@app.callback(invoke_without_command=True)
def common(
    version: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    if version:
        typer.echo(f"moh-ebpf {__version__}")
        raise typer.Exit


CONFIG = typer.Option(
    None,
    metavar="FILE",
    show_default=False,
    help="Settings in TOML, named as these options, which override it.",
)


@app.command()
def discover(
    seconds: str = typer.Option(
        "60s", "--for", metavar="DURATION", help="How long to listen. Ctrl-C ends it early."
    ),
    as_json: bool = JSON,
) -> None:
    """Listen, attach nothing, and propose settings: TOML for --config, with evidence.

    Calls and holds that happen meanwhile are what it goes by: make some. Exit status 1: UCM or the
    provider was not seen.
    """
    listening = parsers.duration("--for", seconds)
    if not 1 <= listening <= 3600:
        raise UsageError(f"--for {seconds} is out of range, 1s to 60m")

    from datetime import UTC, datetime

    from moh_ebpf.discover.listen import listen
    from moh_ebpf.discover.propose import propose
    from moh_ebpf.show.proposal import config_text, progress_text

    def tell(passed: float, flows: "list[Flow]", messages: int) -> None:
        if sys.stderr.isatty():
            streams = sum(each.is_stream for each in flows)
            text = progress_text(passed, listening, streams, messages)
            typer.echo(f"\r{text}\x1b[K", nl=False, err=True)

    def ready() -> None:
        _notify(f"listening for {seconds}: make a call, and put it on hold; Ctrl-C ends it")

    began = datetime.now(UTC)
    seen = listen(listening, ready, tell)
    if sys.stderr.isatty():
        typer.echo("\r\x1b[K", nl=False, err=True)
    proposal = propose(seen)
    if as_json:
        typer.echo(json.dumps(proposal.to_json(), indent=2))
    else:
        typer.echo(config_text(proposal, f"{began:%Y-%m-%d %H:%M}"), nl=False)
    if proposal.missing:
        raise MohError(f"{' and '.join(proposal.missing)}: {proposal.unseen[0]}")


@app.command(cls=ListsOfWords)
@with_settings
def attach(
    options: dict[str, Any],
    config: Path = CONFIG,
    dry_run: bool = typer.Option(False, "--dry-run", help="Compile and load, attach nothing."),
    as_json: bool = JSON,
) -> None:
    """Compile the programs and attach them; over an attached set, replace it without a gap."""
    with _error_as_json(as_json):
        chosen = settings.from_both(config, options)

        from moh_ebpf.attach import attachment
        from moh_ebpf.kernel.lock import running_service

        report = attachment.attach(chosen, _notify, dry_run=dry_run)
        process = running_service()
    if process not in (None, os.getppid()) and not dry_run:
        report.warnings.append(
            f"moh-ebpf run (process {process}) will put its own settings back; change its config "
            "and reload it instead"
        )
    with _done_already("attach --dry-run" if dry_run else "attach"):
        if as_json:
            typer.echo(json.dumps(report.to_json(), indent=2))
        else:
            _tell(report, dry_run)


@contextmanager
def _error_as_json(wanted: bool) -> Iterator[None]:
    """An error is on stdout, too, where JSON is wanted."""
    try:
        yield
    except MohError as error:
        if wanted:
            typer.echo(json.dumps({"error": str(error)}, indent=2))
        raise


@contextmanager
def _done_already(verb: str) -> Iterator[None]:
    """A report that cannot be written (a full disk) is not the failure of what it reports."""
    try:
        yield
    except OSError as error:
        raise MohError(
            f"{verb} is done, but its report cannot be written: {error.strerror}"
        ) from error


def _tell(report: "Report", dry_run: bool) -> None:
    for warning in report.warnings:
        _notify(f"warning: {warning}")
    for place in report.places:
        verb = "would attach" if dry_run else "replaced" if place in report.replaced else "attached"
        _tell_place(verb, place, "on")
    for place in report.detached:
        _tell_place("would detach" if dry_run else "detached", place, "from")
    typer.echo(report.settings.leaves_as())
    if report.settings.flip_hold:
        typer.echo(f"the sendonly of a hold leaves as sendrecv ({_sip_that_is_read(report)})")


def _sip_that_is_read(report: "Report") -> str:
    ports, networks = report.settings.sip_ports, report.settings.sip_from
    text = f"SIP on port{'s' if len(ports) > 1 else ''} {', '.join(map(str, ports))}"
    return f"{text}, with {', '.join(map(str, networks))} alone" if networks else text


def _tell_place(verb: str, place: "Place", preposition: str) -> None:
    from moh_ebpf.kernel.interfaces import interface_name

    where = f"{interface_name(place.ifindex)} {place.role.hook}"
    typer.echo(f"{verb} {place.role} {preposition} {where}")


@app.command()
def run(
    config: Path = typer.Option(
        Path("/etc/moh-ebpf.toml"), metavar="FILE", help="Settings in TOML, named as attach's."
    ),
    keep: bool = typer.Option(False, "--keep", help="Leave it attached when stopped."),
    metrics: str = typer.Option(
        None,
        metavar="[ADDR:]PORT",
        show_default=False,
        help="Serve metrics for Prometheus there. Default address: 127.0.0.1.",
    ),
) -> None:
    """Attach, and keep attached as interfaces come and go, until stopped. SIGHUP: reload."""
    from moh_ebpf.service import run as service
    from moh_ebpf.service.sums import Sums

    sums = Sums()
    with _served(metrics, sums):
        service.run(lambda: settings.load_file(config), keep=keep, sums=sums)


@contextmanager
def _served(address: str | None, sums: "Sums") -> Iterator[None]:
    if address is None:
        yield
        return
    from moh_ebpf.service import exporter

    with exporter.served(*exporter.address("--metrics", address), sums, _notify):
        yield


@app.command("metrics")
def show_metrics(
    output: Path = typer.Option(
        None,
        metavar="FILE",
        show_default=False,
        help="Write them to this file, for node_exporter's textfile collector.",
    ),
) -> None:
    """Metrics for Prometheus, once."""
    from moh_ebpf.service import metrics

    if output:
        metrics.write(output)
    else:
        typer.echo(metrics.text().decode(), nl=False)


@app.command()
def detach() -> None:
    """Remove all that is ours in this network namespace. Twice is fine."""
    from moh_ebpf.attach import attachment
    from moh_ebpf.kernel.lock import running_service

    process = running_service()
    places = attachment.detach(_notify, is_kept=process is not None)
    if process is not None:
        _notify(f"warning: moh-ebpf run (process {process}) will attach again; stop that instead")
    with _done_already("detach"):
        for place in places:
            _tell_place("detached", place, "from")
        if not places:
            typer.echo("nothing was attached")


@app.command()
def status(as_json: bool = JSON) -> None:
    """Programs, interfaces, settings and counters. Exit status 0: attached, 3: not."""
    from pyroute2 import IPRoute

    from moh_ebpf.registry import earlier, walk
    from moh_ebpf.registry.attached import describe
    from moh_ebpf.registry.earlier import Earlier

    first: list[Earlier] = []
    try:
        with walk.attached_or_error() as attached, IPRoute() as ipr:
            shown = describe(attached)
            first = earlier.found(ipr, attached.record)
    except NotAttachedError:
        if not as_json:
            raise
        shown = describe(None)
    shown["earlier"] = [each.to_json() for each in first]
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
    else:
        from moh_ebpf.show.lines import show
        from moh_ebpf.show.status import status_view

        show(status_view(shown))
    if not shown["attached"]:
        raise typer.Exit(ExitStatus.NOT_ATTACHED)
    if shown["missing"]:
        raise typer.Exit(ExitStatus.FAILURE)


@app.command(cls=ListsOfWords)
@with_settings
def doctor(
    options: dict[str, Any],
    config: Path = CONFIG,
    seconds: str = typer.Option(
        "2s", "--for", metavar="DURATION", help="How long to look at calls, if attached."
    ),
    as_json: bool = JSON,
) -> None:
    """Look for what may keep music from being heard. Exit status 4: warnings, 1: errors.

    Without settings, those of what is attached are looked at, else those of /etc/moh-ebpf.toml.
    """
    looking = parsers.duration("--for", seconds)
    if looking > 3600:
        raise UsageError(f"--for {seconds} is out of range, 0s to 60m")

    from moh_ebpf import doctor

    findings = doctor.examine(config, options, looking)
    worst = doctor.worst(findings)
    if as_json:
        shown = {"worst": str(worst), "findings": [each.to_json() for each in findings]}
        typer.echo(json.dumps(shown, indent=2))
    else:
        from moh_ebpf.show.findings import findings_table
        from moh_ebpf.show.lines import show

        show(findings_table(findings))
    if worst is doctor.Level.ERROR:
        raise typer.Exit(ExitStatus.FAILURE)
    if worst is doctor.Level.WARNING:
        raise typer.Exit(ExitStatus.WARNINGS)


@app.command()
def peers(
    as_json: bool = JSON,
    show_all: bool = typer.Option(False, "--all", help="Show expired peers, too."),
) -> None:
    """One snapshot of the provider's endpoints."""
    from moh_ebpf.registry import walk

    with walk.attached_or_error() as attached:
        shown = attached.snapshot(math.inf if show_all else 0).peers
    if as_json:
        typer.echo(json.dumps([peer.to_json() for peer in shown]))
    else:
        from moh_ebpf.show.lines import show
        from moh_ebpf.show.peers import peers_table

        show(peers_table(shown))


@app.command("events")
def show_events(
    as_json: bool = JSON,
    history: bool = typer.Option(
        False, "--history", help="Begin with those that the ring still has."
    ),
    seconds: str = typer.Option(
        None, "--for", metavar="DURATION", show_default=False, help="End after so long."
    ),
) -> None:
    """State changes as they happen, a line each: new, hold, resume, expired,
    evicted, unheard; and of a WAN, blind and seeing."""
    from moh_ebpf.show.follow import follow, line

    end = parsers.duration("--for", seconds) if seconds else math.inf
    follow((lambda each: json.dumps(each.to_json())) if as_json else line, end, history=history)


@app.command()
def watch(
    interval: str = typer.Option("1s", metavar="DURATION", help="Time between two views."),
) -> None:
    """Show states, rates and counters live. ? shows the keys, q or Ctrl-C ends it."""
    seconds = parsers.duration("--interval", interval)
    if not 0.1 <= seconds <= 3600:
        raise UsageError(f"--interval {interval} is out of range, 100ms to 60m")

    from rich.console import Console

    from moh_ebpf.show.watch import live
    from moh_ebpf.show.watch.recent import Recent

    with closing(Recent()) as recent:
        live.watch(seconds, Console(), last_events=recent)
