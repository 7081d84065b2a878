"""The bytes of a connection, whatever becomes of its segments."""

import random

from hypothesis import given
from hypothesis import strategies as st

from moh_ebpf.calls.tcp import InOrder

TEXT = bytes(range(256)) * 8


def heard(segments: list[tuple[int, bytes]], direction: InOrder | None = None) -> list[bytes]:
    """What is read, each piece that does not follow the one before on its own."""
    direction = direction or InOrder()
    pieces = [b""]
    for sequence, data in segments:
        for part in direction.feed(sequence % (1 << 32), data):
            if part is None:
                pieces.append(b"")
            else:
                pieces[-1] += part
    return pieces


def cut(sizes: list[int], first: int) -> list[tuple[int, bytes]]:
    segments, at, number = [], 0, 0
    while at < len(TEXT):
        size = sizes[number % len(sizes)]
        segments.append((first + at, TEXT[at : at + size]))
        at, number = at + size, number + 1
    return segments


@given(
    st.lists(st.integers(20, 500), min_size=1),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 1 << 30),
)
def test_segments_late_twice_and_cut_anew(sizes: list[int], first: int, seed: int) -> None:
    chance = random.Random(seed)
    (begin, *others) = cut(sizes, first)
    again = cut([97], first)
    rest = [*others, *others, *again]
    chance.shuffle(rest)
    # As far as a window goes: no segment is later than sixty others.
    order = sorted(range(len(rest)), key=lambda i: (rest[i][0] - first) / 400 + chance.random())
    pieces = heard([begin, *(rest[i] for i in order)])
    assert pieces == [TEXT]


def test_a_segment_that_never_comes() -> None:
    segments = cut([10], 5)
    without = [each for number, each in enumerate(segments) if number != 3]
    first, second = heard(without)
    assert first == TEXT[:30]
    assert second == TEXT[40:]


def test_another_connection_between_the_same_ports() -> None:
    direction = InOrder()
    for _ in range(2):  # its first segment may be sent again
        assert list(direction.feed(100, b"", begins=True)) == []
    assert heard([(101, b"one")], direction) == [b"one"]
    assert list(direction.feed(100, b"", begins=True)) == []
    assert list(direction.feed(4_000_000_000, b"", begins=True)) == [None]
    assert heard([(4_000_000_001, b"two")], direction) == [b"two"]


def test_joined_in_its_middle() -> None:
    assert heard([(7, b"abc"), (10, b"def"), (4, b"xyz")]) == [b"abcdef"]


def test_another_connection_whose_beginning_was_missed() -> None:
    """Wherever its numbers are. A few segments from far away change nothing: they may be forged."""
    first, far, back = 3_000_000_000, 3_500_000_000, 1_000_000_000
    direction = InOrder()
    assert heard([(first, b"one"), (far, b"x"), (far + 1, b"x"), (back, b"x")], direction) == [
        b"one"
    ]
    assert heard([(first + 3, b"two")], direction) == [b"two"]
    for begin in (back, far):
        apart = heard([(begin + number, b"z") for number in range(20)], direction)
        assert (apart[0], apart[-1][:5]) == (b"", b"zzzzz")
