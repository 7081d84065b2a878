"""From what a terminal sends to the names of keys, and what each key is for."""

import re
from codecs import getincrementaldecoder

# (keys, what they do), as `?` and docs/watch.md show them.
HELP = (
    ("s >", "sort by the next column"),
    ("S <", "by the one before"),
    ("r", "reverse"),
    ("i", "by interest again"),
    ("m t a", "MOH, TWO, all"),
    ("/", "filter by address or CIDR"),
    ("Esc", "back: help, detail, filters, selection"),
    ("p Space", "pause, go on"),
    ("↑ ↓ k j", "select"),
    ("PgUp PgDn", "by the page"),
    ("Home End g G", "first, last"),
    ("Enter d", "detail, and back"),
    ("? h", "these lines"),
    ("q Ctrl-C", "quit"),
)

_SEQUENCES = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x15": "erase",
}

# An escape sequence (CSI, SS3, Alt with a key), or one character; and what may still become one.
_KEY = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[^\[O\x1b])|[^\x1b]|\x1b", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")


class Decoder:
    """Bytes of a terminal, in pieces of any size, to keys.

    A key is its character, or a name of more than one: `up`, `enter`, `escape`.
    """

    def __init__(self) -> None:
        self._text = ""
        self._decoder = getincrementaldecoder("utf-8")("ignore")

    def feed(self, data: bytes) -> list[str]:
        """The keys that are complete; an escape sequence that is not waits for its rest."""
        text = self._text + self._decoder.decode(data)
        begun = _UNFINISHED.search(text)
        end = begun.start() if begun else len(text)
        self._text = text[end:]
        return _keys(text[:end])

    @property
    def waiting(self) -> bool:
        return bool(self._text)

    def flush(self) -> list[str]:
        """The keys of what has waited for its rest in vain: Esc alone."""
        text, self._text = self._text, ""
        return ["escape"] if text == "\x1b" else []


def _keys(text: str) -> list[str]:
    """Sequences and control characters that we do not know are no keys."""
    found = (_SEQUENCES.get(part, part) for part in _KEY.findall(text))
    return [key for key in found if key in _SEQUENCES.values() or key.isprintable()]
