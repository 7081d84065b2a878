"""`moh-ebpf lab`: a thin function for each verb, which imports what it needs when it runs."""

import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moh_ebpf.errors import MohError
from moh_ebpf.lab.lifetime import within
from moh_ebpf.lab.topology import PROVIDER_ENDPOINT, PUBLIC, UCM, Host, Lab, require

if TYPE_CHECKING:
    from rich.console import Console

    from moh_ebpf.lab.call import Call
    from moh_ebpf.lab.story import Act

GLANCE = 2.5  # seconds of listening after a verb of the standing lab

app = typer.Typer(
    no_args_is_help=True,
    help="A UCM, its firewall and a SIP provider in network namespaces, with real RTP.",
)

NAME = typer.Option("lab", "--name", help="The lab's name; several can stand at once.")
JSON = typer.Option(False, "--json", help="The acts as JSON.")
ROLE = typer.Argument(..., help="Whose namespace.")
COMMAND = typer.Argument(..., metavar="COMMAND...", help="What to run there.")


@app.command()
def demo(as_json: bool = JSON) -> None:
    """Play the story in six acts, in a lab of its own: hold music without us and with us."""
    from rich.console import Console

    from moh_ebpf.lab.story import table

    lab = Lab(secrets.token_hex(3))
    console = Console(quiet=as_json, highlight=False)
    acts = within(lab, lambda: _perform(lab, console))
    if as_json:
        typer.echo(json.dumps([act.to_json() for act in acts], indent=2))
    console.print(table(acts))
    if failed := [act.title for act in acts if not act.passed]:
        raise MohError(f"not as it should be: {'; '.join(failed)}")
    console.print("All six acts are as they should be.")


@app.command()
def up(name: str = NAME) -> None:
    """Leave a lab standing, with a call in progress, to put on hold and watch by hand."""
    from moh_ebpf.lab.call import begin

    lab = Lab(name)
    within(lab, lambda: _tell(begin(lab)), keep=True)
    typer.echo(_what_next(name))


@app.command()
def down(name: str = NAME) -> None:
    """Remove a lab: its processes, its three namespaces, its files. Twice is fine."""
    require()
    lab = Lab(name)
    if not lab.exists:
        typer.echo(f"there is no lab {name}")
        return
    lab.destroy()


@app.command()
def hold(name: str = NAME) -> None:
    """Put the lab's call on hold; tell what the caller hears."""
    call = _call(name)
    typer.echo(f"On hold: UCM names port 4000, and sends music from port {call.hold()}.")
    _tell(call)


@app.command()
def resume(name: str = NAME) -> None:
    """Take the lab's call off hold; tell what both hear."""
    call = _call(name)
    typer.echo(f"Off hold: caller and agent talk; UCM's port is {call.talk()}.")
    _tell(call)


@app.command()
def voicemail(name: str = NAME) -> None:
    """Transfer the lab's call to UCM's voicemail; tell what both hear."""
    call = _call(name)
    typer.echo(f"Transferred to voicemail, which greets and records on port {call.voicemail()}.")
    _tell(call)


@app.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def execute(role: Host = ROLE, command: list[str] = COMMAND, name: str = NAME) -> None:
    """Run a command in a namespace of the lab: ucm, firewall or provider."""
    argv = _standing(name).command(role, command)
    # moh-ebpf of a virtual environment is found there, too, if the environment is not active.
    os.environ["PATH"] = f"{os.environ['PATH']}:{Path(sys.executable).parent}"
    os.execvp(argv[0], argv)


def _perform(lab: Lab, console: "Console") -> list["Act"]:
    """All acts, each shown as it ends."""
    from moh_ebpf.lab.story import play

    console.print(
        f"Lab {lab.name}: UCM {UCM} -- firewall {PUBLIC} -- provider {PROVIDER_ENDPOINT}\n"
        "On hold, UCM names port 4000 and sends its music from another. The provider's\n"
        f"firewall lets in only what comes from where it sends to: {PUBLIC}:4000.\n"
    )
    acts = []
    for act in play(lab):
        console.print(act.summary)
        acts.append(act)
    return acts


def _standing(name: str) -> Lab:
    require()
    lab = Lab(name)
    if not lab.exists:
        raise MohError(f"there is no lab {name}; try: moh-ebpf lab up --name {name}")
    return lab


def _call(name: str) -> "Call":
    from moh_ebpf.lab.call import Call

    return Call(_standing(name))


def _tell(call: "Call") -> None:
    heard = call.listen(GLANCE)
    typer.echo(f"The caller hears: {heard.caller}. At UCM's end one hears: {heard.ucm}.")


def _what_next(name: str) -> str:
    from moh_ebpf.lab.story import ATTACH

    program, option = _program(), "" if name == "lab" else f" --name {name}"
    firewall = f"{program} lab exec{option} firewall {program}"
    return f"""
Lab {name} stands, with a call in progress. Try:

  {program} lab hold{option}
      the caller hears dead air
  {firewall} {" ".join(ATTACH)}
      and put the call on hold again: the caller hears hold music
  {firewall} watch
      in a second terminal, while you resume, hold, voicemail in the first
  {program} lab resume{option}
  {program} lab voicemail{option}
  {program} lab down{option}
      to remove it all"""


def _program() -> str:
    """How to call us again from the user's shell."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{sys.executable} -m moh_ebpf"
    return called.name if shutil.which(called.name) else str(called)
