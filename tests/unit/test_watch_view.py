"""Keys to what is looked at, that to rows; bytes to keys; rates to a line of blocks."""

import math
import random
from itertools import pairwise

import pytest

from moh_ebpf.calls.peers import Peer, PeerRate, by_interest
from moh_ebpf.layout import State
from moh_ebpf.show.peers import WATCH_COLUMNS, Row
from moh_ebpf.show.watch.history import History, sparkline
from moh_ebpf.show.watch.keys import HELP, Decoder
from moh_ebpf.show.watch.view import ACTIONS, Shown, View, address_filter, pressed, settle
from tests.support.samples import peer

RATES = {peer(n).endpoint: PeerRate(10.0 * n, 50.0 - n) for n in range(1, 10)}
TITLES = [column.title for column in WATCH_COLUMNS]


def after(
    keys: list[str] | str, known: list[Peer], room: int = 5, view: View | None = None
) -> tuple[View, Shown]:
    """The view and its rows after the keys, drawn after each as the loop does."""
    view, shown = settle(view or View(), known, RATES, WATCH_COLUMNS, room)
    for key in keys:
        view = pressed(view, key, WATCH_COLUMNS)
        view, shown = settle(view, known, RATES, WATCH_COLUMNS, room)
    return view, shown


def numbers(shown: Shown) -> list[int]:
    return [row.peer.port - 20000 for row in shown.rows]


def chosen(shown: Shown) -> int | None:
    return shown.selected.peer.port - 20000 if shown.selected else None


FIVE = [
    peer(1, State.TWO, since=5, in_packets=10),
    peer(2, State.MOH, since=9, in_packets=50),
    peer(3, State.TWO, since=1, in_packets=40),
    peer(4, State.MOH, since=3, in_packets=20),
    peer(5, State.MOH, expired=True, since=2, age=3.0, in_packets=30),
]


@pytest.mark.parametrize(
    ("keys", "order"),
    [
        ("", [4, 2, 3, 1, 5]),
        ("r", [1, 3, 2, 4, 5]),
        ("s", [1, 2, 3, 4, 5]),
        ("sr", [4, 3, 2, 1, 5]),
        ("ss", [2, 4, 1, 3, 5]),
        ("sss", [3, 4, 1, 2, 5]),
        ("s" * (TITLES.index("IN/s") + 1), [4, 3, 2, 1, 5]),
        ("s" * (TITLES.index("OUT/s") + 1), [1, 2, 3, 4, 5]),
        ("s" * (TITLES.index("IN-PACKETS") + 1), [2, 3, 4, 1, 5]),
        ("s" * (TITLES.index("IN-PACKETS") + 1) + "r", [1, 4, 3, 2, 5]),
        ("ssi", [4, 2, 3, 1, 5]),
        ("m", [4, 2, 5]),
        ("t", [3, 1]),
        ("ta", [4, 2, 3, 1, 5]),
    ],
)
def test_order_and_state(keys: str, order: list[int]) -> None:
    """The forgotten stay last, whichever way."""
    assert numbers(after(keys, FIVE)[1]) == order


def test_every_column_can_be_sorted_by_and_back_to_interest() -> None:
    view, seen = View(), []
    for _ in range(len(WATCH_COLUMNS) + 1):
        seen.append(view.sort)
        view = pressed(view, ">", WATCH_COLUMNS)
    assert seen == ["", *TITLES]
    assert view.sort == ""
    assert pressed(view, "<", WATCH_COLUMNS).sort == TITLES[-1]


def test_few_of_many_are_the_first_of_all_sorted() -> None:
    chance = random.Random(7)
    known = [
        peer(n, chance.choice(list(State)), since=chance.random(), in_packets=chance.randrange(9),
             expired=chance.random() < 0.2)
        for n in range(400)
    ]  # fmt: skip
    for reverse in (False, True):
        for title in ("", *TITLES):
            view = View(sort=title, reverse=reverse)
            few = settle(view, known, RATES, WATCH_COLUMNS, 8)[1].rows
            assert few == settle(view, known, RATES, WATCH_COLUMNS, 400)[1].rows[:7]
    assert [row.peer for row in after("", known, 400)[1].rows] == by_interest(known)


@pytest.mark.parametrize(
    ("text", "matching"),
    [
        ("", [1, 12, 200, 300]),
        ("203.0.113.1", [1, 12]),
        ("203.0.113.1:", [1]),
        ("203.0.113.1:2", [1]),
        ("203.0.113.0/24", [1, 12, 200, 300]),
        ("203.0.113.0/28", [1, 12]),
        ("203.0.113.12/32", [12]),
        ("203.0.113.200/255.255.255.128", [200]),
        ("203/8", [1, 12, 200, 300]),
        ("203.0.113.1/", [1, 12]),
        ("203.0.113.44/33", [300]),
        ("10/8", []),
        ("198.51.100.2", []),
    ],
)
def test_addresses_by_beginning_or_network(text: str, matching: list[int]) -> None:
    wanted = address_filter(text)
    assert [n for n in (1, 12, 200, 300) if wanted(peer(n))] == matching


def test_an_address_filters_while_it_is_typed_and_is_kept_by_enter() -> None:
    typed = [*"/203.0.113.4"]
    view, shown = after(typed, FIVE)
    assert (view.typing, numbers(shown)) == ("203.0.113.4", [4])
    view, shown = after(["enter"], FIVE, view=view)
    assert (view.typing, view.address, numbers(shown)) == (None, "203.0.113.4", [4])
    assert after(["escape"], FIVE, view=view)[0].address == ""
    # Typed anew, and not kept: the one before is back.
    view, shown = after([*"/10.", "escape"], FIVE, view=view)
    assert (view.address, numbers(shown)) == ("203.0.113.4", [4])


def test_what_is_typed_can_be_taken_back_and_keys_are_no_commands_meanwhile() -> None:
    view, _ = after([*"/203x?q", "backspace"], FIVE)
    assert view.typing == "20"
    assert not view.quit
    assert after(["erase"], FIVE, view=view)[0].typing == ""
    assert after(["erase", "backspace"], FIVE, view=view)[0].typing is None


def test_what_is_no_network_is_not_kept() -> None:
    assert after([*"/203.0.113.0/99", "enter"], FIVE)[0].typing == "203.0.113.0/99"


def test_the_selection_stays_with_its_peer() -> None:
    view, shown = after(["down", "j"], FIVE)
    assert chosen(shown) == 2
    for key in "srm":
        view, shown = after(key, FIVE, view=view)
        assert chosen(shown) == 2


def test_the_selection_goes_from_end_to_end_and_the_rows_scroll() -> None:
    known = [peer(n, since=float(n)) for n in range(30)]
    view, shown = after("", known, 11)
    assert (chosen(shown), numbers(shown)) == (None, [*range(10)])
    view, shown = after(["end"], known, 11, view)
    assert (chosen(shown), numbers(shown)) == (29, [*range(20, 30)])
    view, shown = after(["k"], known, 11, view)
    assert (chosen(shown), numbers(shown)) == (28, [*range(20, 30)])
    view, shown = after(["page up"], known, 11, view)
    assert (chosen(shown), numbers(shown)) == (19, [*range(19, 29)])
    view, shown = after(["home", "up"], known, 11, view)
    assert (chosen(shown), numbers(shown)) == (0, [*range(10)])
    view, shown = after(["escape"], known, 11, view)
    assert chosen(shown) is None


def test_when_the_selected_is_gone_its_neighbour_is_selected() -> None:
    view, _ = after(["j", "j"], FIVE)
    assert chosen(after("", FIVE[:1] + FIVE[2:], view=view)[1]) == 3
    assert chosen(after("", FIVE[3:4], view=view)[1]) == 4
    view, shown = after("", [], view=view)
    assert (view.selected, shown.rows) == (None, [])


def test_detail_is_of_the_selected_and_of_the_first_without() -> None:
    view, shown = after(["enter"], FIVE)
    assert (view.detail, chosen(shown)) == (True, 4)
    view, shown = after(["j"], FIVE, view=view)
    assert (view.detail, chosen(shown)) == (True, 2)
    # It stays with its peer, whatever is filtered, also when that is gone.
    view, shown = after("t", FIVE, view=view)
    assert (view.detail, chosen(shown)) == (True, 2)
    view, shown = after("", FIVE[2:], view=view)
    assert (view.detail, chosen(shown), view.selected) == (True, None, ("203.0.113.2", 20002))
    assert not after(["escape"], FIVE, view=view)[0].detail


def test_detail_of_nobody_is_none() -> None:
    assert not after(["enter"], [])[0].detail


def test_escape_goes_back_one_thing_at_a_time() -> None:
    view, _ = after([*"mjd?"], FIVE)
    seen = []
    for _ in range(4):
        seen.append((view.help, view.detail, view.filtered, view.selected is not None))
        view, _ = after(["escape"], FIVE, view=view)
    assert seen == [
        (True, True, True, True),
        (False, True, True, True),
        (False, False, True, True),
        (False, False, False, True),
    ]
    assert view.selected is None


def test_unknown_keys_change_nothing() -> None:
    assert pressed(View(), "x", WATCH_COLUMNS) == View()


# Keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"sS", ["s", "S"]),
        (b"\x1b[A\x1bOB\x1b[5~\x1b[6~", ["up", "down", "page up", "page down"]),
        (b"\x1b[H\x1bOF\x1b[1~\x1b[4~", ["home", "end"] * 2),
        (b"\r\n\x7f\x15", ["enter", "enter", "backspace", "erase"]),
        (b"\x1b[1;5Cq", ["q"]),  # Ctrl with →: none of ours
        (b"\x1b[?1;2c\x1bxq", ["q"]),  # an answer of the terminal's; Alt with a key
        (b"\x1b\x1b[A", ["escape", "up"]),
        (b"\x00\x01\xff\xfeq", ["q"]),
        ("é/".encode(), ["é", "/"]),
    ],
)  # fmt: skip
def test_bytes_are_keys_in_whatever_pieces_they_come(data: bytes, keys: list[str]) -> None:
    assert Decoder().feed(data) == keys
    decoder = Decoder()
    pieces = [decoder.feed(data[at : at + 1]) for at in range(len(data))]
    assert [key for piece in pieces for key in piece] == keys


def test_escape_alone_is_known_when_nothing_follows() -> None:
    decoder = Decoder()
    assert decoder.feed(b"\x1b") == []
    assert decoder.waiting
    assert decoder.flush() == ["escape"]
    assert decoder.feed(b"\x1b[") == []
    assert decoder.flush() == []
    assert decoder.feed(b"q") == ["q"]


def test_every_key_is_in_the_help() -> None:
    spelled = {"Space": " ", "Esc": "escape", "↑": "up", "↓": "down", "PgUp": "page up",
               "PgDn": "page down", "Home": "home", "End": "end", "Enter": "enter"}  # fmt: skip
    named = {spelled.get(name, name) for names, _ in HELP for name in names.split()}
    assert named - {"Ctrl-C"} == set(ACTIONS)


# History


def test_history_is_of_the_last_looks_with_gaps() -> None:
    history = History(samples=4)
    for number in (1.0, None, 3.0):
        history.add({"a": PeerRate(number, 2 * number)} if number else {})
    inbound, outbound = history.of("a")
    assert [inbound[0], inbound[2], outbound[2]] == [1.0, 3.0, 6.0]
    assert math.isnan(inbound[1])
    history.add({})
    history.add({})
    inbound, _ = history.of("a")
    assert [math.isnan(value) for value in inbound] == [True, False, True, True]
    assert history.of("b") == ((), ())


def test_history_is_bounded_and_keeps_what_is_asked_for() -> None:
    history = History(samples=5, peers=3)
    rates = {str(n): PeerRate(1.0, 1.0) for n in range(100)}
    history.add(rates)
    history.add(rates, ["98", "99"])
    history.add(rates, ["98", "99"])
    assert len(history) == 3
    assert [len(history.of(name)[0]) for name in ("98", "99")] == [2, 2]
    for _ in range(6):
        history.add({})
    assert len(history) == 0


@pytest.mark.parametrize(
    ("values", "width", "looks", "line"),
    [
        ([], 10, 0, ""),
        ([50, 50, 0, 25, math.nan, 50], 10, 6, "██_▅ █"),
        ([0, 0], 10, 2, "__"),
        ([0, 50, 50, 50], 2, 4, "▅█"),
        ([50, 50, 50, 0], 2, 5, "█_"),
        ([1, 1, 1, 1, 8, 8], 3, 6, "▂▂█"),
        ([math.nan, 8, math.nan, math.nan], 2, 4, "█ "),
    ],
)
def test_a_line_of_blocks(values: list[float], width: int, looks: int, line: str) -> None:
    assert sparkline(values, width, looks) == line


def test_a_line_of_blocks_does_not_flicker() -> None:
    """Looks that share a cell go on sharing it: the line moves, its shape stays."""
    chance = random.Random(3)
    values = [float(chance.choice((0, 50, 100))) for _ in range(400)]
    lines = [sparkline(values[end - 300 : end], 60, end) for end in range(300, 400)]
    for before, now in pairwise(lines):
        assert now[1:-1] in (before[1:-1], before[2:])


def test_a_terminal_without_blocks_gets_digits() -> None:
    assert sparkline([50, 25, 0], 9, 3, ascii_only=True) == "85_"


def test_a_row_without_a_rate_sorts_below_one_that_is_0() -> None:
    (column,) = [column for column in WATCH_COLUMNS if column.title == "IN/s"]
    assert column.key
    assert column.key(Row(peer())) < column.key(Row(peer(), PeerRate(0.0, 0.0)))
