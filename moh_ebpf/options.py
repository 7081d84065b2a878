"""The options of the settings, made of their rows."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from moh_ebpf import settings


class ListsOfWords(TyperCommand):
    """A command whose list options take several words: `--wan eth1 eth2`.

    It has no arguments besides its options, so a word after a list option's word belongs to it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for each in self.params for name in each.opts if each.multiple}
        return super().parse_args(ctx, list(_repeat_options(args, lists)))


def _repeat_options(words: list[str], lists: set[str]) -> Iterator[str]:
    option, has_word = "", False
    for word in words:
        if word.startswith("-"):
            option, equals, _ = word.partition("=")
            has_word = bool(equals)
        else:
            if has_word and option in lists:
                yield option
            has_word = True
        yield word


def _setting_option(name: str) -> inspect.Parameter:
    """Of a setting: None and an empty list are not given."""
    row, default = settings.ROWS[name], settings.default_text(name)
    kind: type = list[str] if row.is_list else bool if row.is_switch else str
    option = typer.Option(
        [] if row.is_list else None,
        settings.option(name) + (f"/--no-{name.replace('_', '-')}" if row.is_switch else ""),
        metavar=row.metavar or None,
        show_default=False,
        help=row.help + (f" Default: {default}." if default else ""),
    )
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=option, annotation=kind
    )


def with_settings(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with an option for each setting; it gets the values by name, as `options`."""
    own = [each for each in inspect.signature(verb).parameters.values() if each.name != "options"]
    offered = [*map(_setting_option, settings.ROWS), *own]

    def with_settings(**given: Any) -> None:
        options = {name: given.pop(name) for name in settings.ROWS}
        verb(options=options, **given)

    with_settings.__name__, with_settings.__doc__ = verb.__name__, verb.__doc__
    with_settings.__annotations__ = {each.name: each.annotation for each in offered}
    with_settings.__signature__ = inspect.Signature(offered)  # type: ignore[attr-defined]
    return with_settings
