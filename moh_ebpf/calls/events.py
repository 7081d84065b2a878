"""An event, as it is told: in a line, or as JSON."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from moh_ebpf.calls.peers import SipCall
from moh_ebpf.layout import Evidence, Kind, State

SECOND = 1e9  # ns

# How long a hold waits for its music, so that its event can tell when it came.
MUSIC_WITHIN_SECONDS = 1.0

Key = tuple[bytes, bytes]  # struct endpoint: address and port, network byte order


class KernelEvent(NamedTuple):
    """A struct event, unpacked; times are ns of CLOCK_MONOTONIC."""

    time: int
    heard: bytes
    lasted: int
    dropped: int
    address: bytes
    port: bytes
    kind: int
    before: int
    evidence: int = Evidence.RTP

    @property
    def kind_name(self) -> str:
        return Kind(self.kind).name.lower()


class Event(NamedTuple):
    """What happened to an endpoint; `time` in seconds of the epoch, times that lasted in seconds.

    `event` is new, hold, resume, expired, evicted or unheard; or, of a WAN, blind or seeing: then
    there is no endpoint, and `lasted` is how long learn had been silent there. `before` and `after`
    are states, None: not known. `lasted` is how long the state before did. On a hold,
    `time_to_music` is the time from UCM's first packet that was dropped to the first one that was
    sent on, 0 if none was dropped, and `dropped_before` counts them; both are None if no music came
    within a second, or none before the hold `ended_first`. Unheard is an endpoint that UCM has sent
    to for the whole of the patience, which `lasted`; UCM's RTP to it passes from then on.
    `identified` says by what an endpoint is known, or was; None: it is not.
    """

    time: float
    event: str
    address: str | None
    port: int | None
    before: State | None
    after: State | None
    public_address: str | None
    public_port: int | None
    interface: str
    lasted: float | None = None
    time_to_music: float | None = None
    dropped_before: int | None = None
    ended_first: bool = False
    identified: Evidence | None = None
    call: SipCall | None = None

    def to_json(self) -> dict[str, Any]:
        """A line of `events --json`."""
        shown: dict[str, Any] = {
            "time": round(self.time, 6),
            "event": self.event,
            "address": self.address,
            "port": self.port,
            "from": _name(self.before),
            "to": _name(self.after),
            "public_address": self.public_address,
            "public_port": self.public_port,
            "interface": self.interface or None,
            "lasted": _rounded(self.lasted),
            "identified": self.identified.name.lower() if self.identified else None,
            "call_id": self.call and self.call.call_id,
            "caller": self.call and self.call.caller,
            "called": self.call and self.call.called,
        }
        if self.event == "hold":
            shown["time_to_music"] = _rounded(self.time_to_music)
        if self.event in ("hold", "unheard"):
            shown["dropped_before"] = self.dropped_before
        return shown

    def __str__(self) -> str:
        """A line of `events`, without its time."""
        if self.event in _OF_A_WAN:
            return f"{self.event:<7} {self.interface}  {_OF_A_WAN[self.event].format(self.lasted)}"
        told = f"  call {self.call.call_id}" if self.call else ""
        return self._of_an_endpoint() + told

    def _of_an_endpoint(self) -> str:
        end = f"{self.event:<7} {self.address}:{self.port}"
        if self.after:
            by = _BY.get(self.identified, "")
            end += f"  {self.after.name} at {self.public_address}:{self.public_port}{by}"
        if self.before and self.lasted is not None and self.event != "unheard":
            end += f"  after {self.lasted:.1f} s of {self.before.name}"
        if self.event == "unheard":
            return (
                f"{end}  NOT HEARD in {self.lasted:.1f} s, {self.dropped_before} dropped; "
                "UCM's RTP to it passes now"
            )
        if self.event != "hold":
            return end
        if self.ended_first:
            return f"{end}  no music before it ended"
        if self.time_to_music is None:
            return f"{end}  NO MUSIC within {MUSIC_WITHIN_SECONDS:g} s"
        return f"{end}  music in {self.time_to_music * 1e3:.0f} ms, {self.dropped_before} dropped"


_BY: dict[Evidence | None, str] = {Evidence.RTCP: " by RTCP", Evidence.SIGNALLING: " by SIP"}

# Events of a WAN, in words, with how long learn was silent.
_OF_A_WAN = {
    "blind": "LEARN SEES NOTHING for {:.1f} s, UCM's RTP passes as without moh_ebpf",
    "seeing": "learn sees packets again, after {:.1f} s",
}


@dataclass(frozen=True)
class Lost:
    """So many records of the ring were overwritten before this reader came to read them."""

    time: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """A line of `events --json`."""
        return {"time": round(self.time, 6), "event": "lost", "count": self.count}

    def __str__(self) -> str:
        return f"lost    {self.count} events came faster than they were read"


def _name(state: State | None) -> str | None:
    return state.name.lower() if state else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
