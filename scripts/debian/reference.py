#!/usr/bin/env python3
"""Write the manual pages and the shells' completions, from the command line and the settings.

    PYTHONPATH=. python3 scripts/debian/reference.py DIRECTORY

makes in DIRECTORY moh-ebpf.8, moh-ebpf.toml.5, moh-ebpf.bash, _moh-ebpf (zsh) and moh-ebpf.fish.
Nothing here names a verb or an option: what the command line has is asked of typer. That is done
without click's classes, for newer typers bring a click of their own.
"""

import os
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from moh_ebpf import __version__, cli, settings
from moh_ebpf.errors import ExitStatus

HERE = Path(__file__).resolve().parent
COMMAND = "moh-ebpf"
_STATUSES = {
    ExitStatus.OK: "Done.",
    ExitStatus.FAILURE: "It failed, and nothing of it remains. status: a program is missing; "
    "doctor: an error.",
    ExitStatus.USAGE: "Wrong usage: options, or the config; or no settings where there must be.",
    ExitStatus.NOT_ATTACHED: "Not attached.",
    ExitStatus.WARNINGS: "doctor warns.",
    ExitStatus.INTERRUPTED: "Interrupted.",
}
_LISTS = {
    "IF": "interface names",
    "ADDR": "IPv4 addresses",
    "CIDR": "IPv4 prefixes",
    "PORT": "ports",
}


@dataclass(frozen=True)
class Option:
    """`word` is what it takes (`IF…`), empty for a flag."""

    name: str
    word: str
    help: str
    is_list: bool

    @property
    def takes_file(self) -> bool:
        return self.word == "FILE"

    @property
    def takes_interface(self) -> bool:
        return self.word.startswith("IF")


@dataclass(frozen=True)
class Argument:
    word: str
    help: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Verb:
    """`words` are ("lab", "up"), or () for the command itself; `verbs` what may follow them."""

    words: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    verbs: tuple["Verb", ...]

    @property
    def all(self) -> Iterator["Verb"]:
        """Itself, and all below it."""
        yield self
        for each in self.verbs:
            yield from each.all


def command_line() -> Verb:
    return _verb((), typer.main.get_command(cli.app))


def _verb(words: tuple[str, ...], command: Any) -> Verb:
    params = [each for each in command.params if not each.name.endswith("_completion")]
    options = [
        option
        for each in params
        if each.param_type_name == "option"
        for option in (_option(each), *_opposites(each))
    ]
    options.append(Option("--help", "", "Show a short help.", False))
    arguments = [_argument(each) for each in params if each.param_type_name == "argument"]
    below = getattr(command, "commands", {})
    return Verb(
        words,
        " ".join((command.help or "").split()),
        tuple(options),
        tuple(arguments),
        tuple(_verb((*words, name), each) for name, each in below.items()),
    )


def _option(param: Any) -> Option:
    help_text = param.help or ""
    is_flag = bool(getattr(param, "is_flag", False))
    if param.default not in (None, [], (), "") and not is_flag and "Default" not in help_text:
        help_text += f" Default: {param.default}."
    word = "" if is_flag else param.metavar or param.name.upper()
    return Option(max(param.opts, key=len), word, help_text, bool(param.multiple))


def _opposites(param: Any) -> Iterator[Option]:
    """The other names of a switch: --no-quality is the one that does something."""
    for name in param.secondary_opts:
        yield Option(name, "", f"The opposite of {max(param.opts, key=len)}.", False)


def _argument(param: Any) -> Argument:
    choices = _choices(param)
    word = "|".join(choices) or param.metavar or param.name.upper()
    return Argument(word, getattr(param, "help", None) or "", choices)


def _choices(param: Any) -> tuple[str, ...]:
    """An enum's values: with click, they are of its type; newer typers name the enum."""
    annotation = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(str(each.value) for each in annotation)
    return tuple(getattr(getattr(param, "type", None), "choices", ()))


# Manual pages, in the macros of man(7).


def escaped(text: str) -> str:
    """Text as roff takes it: no escape, no request, hyphens that can be searched."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "\\&...")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def filled(text: str) -> str:
    """A paragraph, in lines that mandoc's lint does not mind."""
    return "\n".join(escaped(each) for each in textwrap.wrap(text, 60, break_on_hyphens=False))


def bold(text: str) -> str:
    return f"\\fB{escaped(text)}\\fR"


def italic(text: str) -> str:
    return f"\\fI{escaped(text)}\\fR"


def header(page: str, section: int) -> str:
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    title = escaped(page.upper())
    return f'.TH "{title}" "{section}" "{date}" "{COMMAND} {__version__}" "{COMMAND}"'


def synopsis(verb: Verb) -> str:
    """In one line, options that it may be given in brackets."""
    parts = [bold(" ".join((COMMAND, *verb.words)))]
    for each in verb.options:
        if each.name != "--help":
            word = f" {italic(each.word)}" if each.word else ""
            parts.append(f"[{bold(each.name)}{word}]")
    parts += [italic(each.word) for each in verb.arguments]
    return " ".join(parts)


def manual(top: Verb) -> str:
    runnable = [each for each in top.all if not each.verbs]
    lines = [header(COMMAND, 8), ".SH NAME"]
    lines.append(
        f"{escaped(COMMAND)} \\- {escaped('hold music through a NAT firewall for Cisco UCM')}"
    )
    lines += [".SH SYNOPSIS", f"{bold(COMMAND)} {italic('VERB')} [{italic('OPTION')}\\&...]"]
    lines += [".br", f"{bold(COMMAND)} {bold('--version')} | {bold('--help')}", ".SH DESCRIPTION"]
    lines += [filled(top.help), ".PP", filled(_DESCRIPTION), ".SH COMMANDS"]
    for verb in runnable:
        lines += [f".SS {escaped(' '.join(verb.words))}", synopsis(verb), ".PP", filled(verb.help)]
        for each in verb.arguments:
            if each.help:
                lines += [".TP", italic(each.word), filled(each.help)]
        for option in verb.options:
            if option.name == "--help":
                continue
            word = f" {italic(option.word)}" if option.word else ""
            lines += [".TP", bold(option.name) + word, filled(option.help)]
    lines += [".SH SIGNALS", escaped("Of run:")]
    for signals, meaning in _SIGNALS.items():
        lines += [".TP", bold(signals), filled(meaning)]
    lines.append(".SH EXIT STATUS")
    for status in ExitStatus:
        lines += [".TP", bold(str(int(status))), filled(_STATUSES[status])]
    lines.append(".SH FILES")
    for path, meaning in _FILES.items():
        lines += [".TP", italic(path), filled(meaning)]
    lines += [
        ".SH SEE ALSO",
        f"{bold('moh-ebpf.toml')}(5), {bold('tc-bpf')}(8), {bold('systemd.service')}(5)",
    ]
    return "\n".join(lines) + "\n"


_DESCRIPTION = (
    "A UCM behind a NAT firewall names its phantom port 4000 when it puts a caller on hold, and "
    "sends the music from another port, so the provider's firewall drops it. Three small tc "
    "programs learn from the provider's inbound RTP which endpoints are on hold, and make the "
    "music to them come from where they send to, packet by packet, without connection tracking. "
    "Two-way calls stay with the firewall's own NAT. All commands but --version and --help need "
    "root."
)
_SIGNALS = {
    "SIGHUP": "Read the config again. One that is wrong changes nothing.",
    "SIGTERM, SIGINT": "Detach, unless --keep, and end.",
    "SIGUSR1": "End, and leave it attached: the next run adopts it. So restarts make no gap.",
}
_FILES = {
    "/etc/moh-ebpf.toml": "The settings of run and of the systemd units.",
    "/etc/default/moh-ebpf": "Further options of moh-ebpf.service.",
}


def config_manual(top: Verb) -> str:
    (attach,) = (each for each in top.verbs if each.words == ("attach",))
    help_of = {each.name.strip("-").replace("-", "_"): each for each in attach.options}
    lines = [header("moh-ebpf.toml", 5), ".SH NAME"]
    lines.append(f"{escaped('moh-ebpf.toml')} \\- settings of {escaped(COMMAND)}")
    lines += [".SH SYNOPSIS", italic("/etc/moh-ebpf.toml"), ".SH DESCRIPTION"]
    lines += [
        filled(
            "A TOML file with the settings of moh-ebpf attach, named as its options. Unknown names "
            "are errors. A list may be one value instead."
        ),
        ".SH SETTINGS",
    ]
    for each in fields(settings.Settings):
        option = help_of[each.name]
        what = option.word.rstrip("….").strip()
        kind = f"list of {_LISTS[what]}" if option.is_list else _scalar(each.default)
        must = " Required." if each.default is MISSING else ""
        told = option.help.replace("Default: yes.", "Default: true.")
        told = told.replace("Default: no.", "Default: false.")
        lines += [".TP", f"{bold(each.name)} ({escaped(kind)})", filled(told + must)]
    example = re.sub(r"^#(?=\w+ =)", "", (HERE / "moh-ebpf.toml").read_text(), flags=re.MULTILINE)
    lines += [".SH EXAMPLE", ".nf", escaped(example.rstrip("\n")), ".fi"]
    lines += [".SH SEE ALSO", f"{bold(COMMAND)}(8)"]
    return "\n".join(lines) + "\n"


def _scalar(default: object) -> str:
    kinds = {bool: "true or false", int: "number", float: 'duration: "500ms", "1.5s", "1m"'}
    return kinds.get(type(default), "string")


# Completions.


def bash(top: Verb) -> str:
    """Verbs; options; and after an option that takes them, files and interfaces."""
    cases, interfaces, files = [], set[str](), set[str]()
    for verb in top.all:
        words = [each.words[-1] for each in verb.verbs] + [each.name for each in verb.options]
        words += [choice for each in verb.arguments for choice in each.choices]
        cases.append(f'        "{" ".join(verb.words)}") words="{" ".join(words)}" ;;')
        interfaces |= {each.name for each in verb.options if each.takes_interface}
        files |= {each.name for each in verb.options if each.takes_file}
    others = {each.name for verb in top.all for each in verb.options if each.word}
    others -= interfaces | files
    groups = " | ".join(shlex.quote(" ".join(each.words)) for each in top.all if each.verbs)
    return f"""# bash completion of {COMMAND}
_moh_ebpf() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} verb="" option="" word words=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        if [[ $word == -* ]]; then
            option=$word
        else
            case $verb in
                {groups}) verb="${{verb:+$verb }}$word" ;;
            esac
        fi
    done
    COMPREPLY=()
    if [[ $current != -* ]]; then
        case $option in
            {" | ".join(sorted(interfaces))})
                words=$(cd /sys/class/net && printf '%s ' *)
                mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
                return ;;
            {" | ".join(sorted(files))})
                compopt -o filenames 2>/dev/null
                mapfile -t COMPREPLY < <(compgen -f -- "$current")
                return ;;
            {" | ".join(sorted(others))}) return ;;
        esac
    fi
    case $verb in
{chr(10).join(cases)}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -F _moh_ebpf {COMMAND}
"""


def zsh(top: Verb) -> str:
    functions = "\n".join(_zsh_function(each) for each in reversed(list(top.all)))
    return f'#compdef {COMMAND}\n{functions}\n_moh_ebpf "$@"\n'


def _zsh_name(words: tuple[str, ...]) -> str:
    return "_".join(("_moh_ebpf", *words))


def _zsh_function(verb: Verb) -> str:
    specs = [_zsh_option(each) for each in verb.options]
    if verb.verbs:
        specs += ["1: :->verb", "*:: :->rest"]
    for number, each in enumerate(verb.arguments, 1):
        last = "*" if each.word.endswith("...") else str(number)
        action = f"({' '.join(each.choices)})" if each.choices else "_command_names -e"
        specs.append(f"{last}:{each.word.lower().replace('|', ' or ').rstrip('.')}:{action}")
    arguments = " \\\n        ".join(shlex.quote(each) for each in specs)
    body = f"    _arguments -C \\\n        {arguments}"
    if verb.verbs:
        told = " ".join(
            shlex.quote(f"{each.words[-1]}:{each.help.replace(':', ',')}") for each in verb.verbs
        )
        calls = "\n".join(
            f"                {each.words[-1]}) {_zsh_name(each.words)} ;;" for each in verb.verbs
        )
        body = (
            f"    local context state state_descr line\n    typeset -A opt_args\n{body}\n"
            f"    case $state in\n        verb)\n            local -a verbs=({told})\n"
            "            _describe verb verbs ;;\n        rest)\n"
            f"            case $words[1] in\n{calls}\n            esac ;;\n    esac"
        )
    return f"{_zsh_name(verb.words)}() {{\n{body}\n}}"


def _zsh_option(option: Option) -> str:
    told = re.sub(r"([\[\]:\\])", r"\\\1", option.help)
    spec = f"{'*' if option.is_list else ''}{option.name}[{told}]"
    if not option.word:
        return spec
    action = "_files" if option.takes_file else "_net_interfaces" if option.takes_interface else ""
    word = re.sub(r"[\[\]:….]", "", option.word).lower()
    return f"{spec}:{word}:{action}"


def fish(top: Verb) -> str:
    lines = [f"# fish completion of {COMMAND}", f"complete -c {COMMAND} -f"]
    for verb in top.all:
        below = " ".join(each.words[-1] for each in verb.verbs)
        seen = [f"__fish_seen_subcommand_from {each}" for each in verb.words]
        if below:
            seen.append(f"not __fish_seen_subcommand_from {below}")
        condition = f"complete -c {COMMAND} -n {_fish('; and '.join(seen))}"
        for each in verb.verbs:
            lines.append(f"{condition} -a {each.words[-1]} -d {_fish(each.help)}")
        for argument in verb.arguments:
            if argument.choices:
                lines.append(f"{condition} -a {_fish(' '.join(argument.choices))}")
        for option in verb.options:
            takes = ""
            if option.takes_file:
                takes = " -r -F"
            elif option.takes_interface:
                takes = " -x -a '(__fish_print_interfaces)'"
            elif option.word:
                takes = " -x"
            lines.append(f"{condition} -l {option.name[2:]}{takes} -d {_fish(option.help)}")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{quoted}'"


def main() -> None:
    directory = Path(sys.argv[1])
    top = command_line()
    for name, text in {
        "moh-ebpf.8": manual(top),
        "moh-ebpf.toml.5": config_manual(top),
        "moh-ebpf.bash": bash(top),
        "_moh-ebpf": zsh(top),
        "moh-ebpf.fish": fish(top),
    }.items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
