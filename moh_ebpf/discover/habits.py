"""How a provider behaves, by what was seen of its endpoints (docs/evidence.md has the table). Pure.

Each habit is what so many endpoints did; nothing is said of what did not happen meanwhile.
"""

from collections import defaultdict
from dataclasses import asdict, dataclass

from moh_ebpf.discover.picture import Hold, Picture
from moh_ebpf.discover.seen import End, Flow, Traffic

# A flow that was there at once may have begun before.
_BEGINS_SECONDS = 0.5
# Of a hold: what comes so much later belongs to it; and as long as it must last to tell anything.
_TURNS_SECONDS = 1.5
_TELLING_SECONDS = 4.0
# A pause that the default --timeout does not bridge.
PAUSE_SECONDS = 1.0


@dataclass
class Habits:
    """Counts of endpoints, or of holds. `longest_pause` in seconds."""

    speak_first: int = 0
    speak_second: int = 0
    holds: int = 0
    send_on_hold: int = 0
    silent_on_hold: int = 0
    rtcp_on_hold: int = 0
    keep_phantom_port: int = 0
    pause: int = 0
    longest_pause: float = 0.0
    send_rtcp: int = 0

    def to_json(self) -> dict[str, float]:
        """The counts, by the names above."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def habits(picture: Picture) -> Habits:
    """What is to be told of the provider's endpoints."""
    found = Habits()
    sent, received = _by_end(picture)
    rtcp = [each for each in picture.flows if each.traffic is Traffic.RTCP and not each.is_outgoing]
    for end, flows in sent.items():
        found.send_rtcp += bool(_reports(end, rtcp, 0.0))
        _count_beginning(found, flows, received.get(end, []))
    ends_in_holds = {each.source for each in picture.held}
    for hold in picture.holds:
        ends_in_holds.add(hold.endpoint)
        _count_hold(found, hold, picture, sent.get(hold.endpoint, []), rtcp)
    named = {each.endpoint for each in picture.holds}
    alone = {each.source for each in picture.held} - named
    found.holds += len(alone)
    found.send_on_hold += len(alone)
    for end, flows in sent.items():
        pause = max((each.longest_gap for each in flows), default=0.0)
        if pause > PAUSE_SECONDS and end not in ends_in_holds:
            found.pause += 1
            found.longest_pause = max(found.longest_pause, pause)
    return found


def _by_end(picture: Picture) -> tuple[dict[End, list[Flow]], dict[End, list[Flow]]]:
    """The provider's endpoints: what each has sent, and what it was sent."""
    sent, received = defaultdict[End, list[Flow]](list), defaultdict[End, list[Flow]](list)
    for each in picture.from_provider:
        sent[each.source].append(each)
    for each in picture.to_provider + picture.from_here:
        received[each.destination].append(each)
    return sent, received


def _count_beginning(found: Habits, sent: list[Flow], received: list[Flow]) -> None:
    if not received:
        return
    here, there = min(each.first for each in received), min(each.first for each in sent)
    if min(here, there) < _BEGINS_SECONDS:
        return
    if there <= here:
        found.speak_first += 1
    else:
        found.speak_second += 1


def _reports(end: End, rtcp: list[Flow], after: float) -> list[Flow]:
    """RTCP of an endpoint: muxed, or by the next port."""
    ports = (end.port, end.port + 1)
    return [
        each
        for each in rtcp
        if each.source.address == end.address and each.source.port in ports and each.last > after
    ]


def _count_hold(
    found: Habits, hold: Hold, picture: Picture, sent: list[Flow], rtcp: list[Flow]
) -> None:
    found.holds += 1
    to_phantom = [each for each in sent if each.destination.port == picture.phantom_port]
    if any(_goes_on(each, hold) for each in to_phantom):
        found.send_on_hold += 1
    elif hold.end - hold.begin >= _TELLING_SECONDS and not any(
        _goes_on(each, hold) for each in sent
    ):
        found.silent_on_hold += 1
        found.rtcp_on_hold += bool(_reports(hold.endpoint, rtcp, hold.begin))
    if hold.is_over and any(each.last > hold.end + _TURNS_SECONDS for each in to_phantom):
        found.keep_phantom_port += 1


def _goes_on(flow: Flow, hold: Hold) -> bool:
    """While it is on hold, and not only before and after."""
    begin, end = max(flow.first, hold.begin + _TURNS_SECONDS), min(flow.last, hold.end)
    return end > begin and flow.longest_gap < hold.end - hold.begin - _TURNS_SECONDS
