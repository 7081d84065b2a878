"""What signalling says of each endpoint of the provider's, from the sessions of dialogs.

Only UCM's side of a session tells a state: port 4000 is a hold's, any other one a call's. The
provider's side only names the endpoint, which must be one that may be learned. Pure.
"""

from collections.abc import Collection, Iterator
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from moh_ebpf.calls import dialogs
from moh_ebpf.calls.dialogs import Session, SessionChange
from moh_ebpf.calls.events import Key
from moh_ebpf.layout import State
from moh_ebpf.settings import Settings

# bpf/peer.c has them as is_global().
_NO_PROVIDERS = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.168.0.0/16", "224.0.0.0/3"),
        ),
    )
)


@lru_cache(1024)
def is_global(address: IPv4Address) -> bool:
    return not any(address in each for each in _NO_PROVIDERS)


class Said(NamedTuple):
    """What is said of an endpoint. `port`: UCM's, which the provider is told to send to. `source`:
    UCM's struct endpoint in the call, or in the call that is on hold; None: not known."""

    state: State
    port: int
    source: Key | None
    call_id: bytes
    caller: bytes
    called: bytes
    dialog: int = 0  # names its dialog, to a reader that comes later


# An endpoint, and what a dialog says of it.
_Placed = tuple[Key, Said]


def _name(dialog: dialogs.Key) -> int:
    """Names a dialog, by its Call-ID and both tags, in 8 bytes."""
    digest = blake2b(b"\0".join(dialog), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class Board:
    """Who is said to be what. Two dialogs may name one endpoint; of different states, neither
    counts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._of: dict[dialogs.Key, _Placed] = {}
        self._at: dict[Key, dict[dialogs.Key, Said]] = {}
        # What was said before anything was heard here, by the dialog's name.
        self._adopted: dict[int, list[dialogs.Key]] = {}

    def __iter__(self) -> Iterator[Key]:
        """The endpoints that are named."""
        return iter(list(self._at))

    def __contains__(self, endpoint: Key) -> bool:
        return endpoint in self._at

    def adopt(self, endpoint: Key, said: Said) -> None:
        """What was said before anything was heard here: until its call is heard of."""
        key = dialogs.Key(b"", b"", b"".join(endpoint))
        self._adopted.setdefault(said.dialog, []).append(key)
        self._put(key, endpoint, said)

    def forget(self, endpoint: Key) -> None:
        """Nothing is said of it any more."""
        for dialog in self._at.pop(endpoint, {}):
            del self._of[dialog]

    def hear(self, change: SessionChange) -> Collection[Key]:
        """The endpoints of which something is said now, or is no more; be it as before."""
        adopted = self._take_adopted(_name(change.key))
        before = self._of.get(change.key) or next(iter(adopted), None)
        after = self._placed(change, before)
        self._take(change.key)
        if after:
            self._put(change.key, *after)
        return {each[0] for each in (before, after, *adopted) if each}

    def said(self, endpoint: Key) -> Said | None:
        """By the latest dialog that names it; None: nothing, or more than one thing."""
        said = list(self._at.get(endpoint, {}).values())
        return said[-1] if len({each.state for each in said}) == 1 else None

    def _take_adopted(self, dialog: int) -> list[_Placed]:
        taken = map(self._take, self._adopted.pop(dialog, ()))
        return [each for each in taken if each]

    def _put(self, dialog: dialogs.Key, endpoint: Key, said: Said) -> None:
        self._of[dialog] = endpoint, said
        self._at.setdefault(endpoint, {})[dialog] = said

    def _take(self, dialog: dialogs.Key) -> _Placed | None:
        """What a dialog has said, which it does not any more."""
        taken = self._of.pop(dialog, None)
        if taken:
            endpoint, _ = taken
            del self._at[endpoint][dialog]
            if not self._at[endpoint]:
                del self._at[endpoint]
        return taken

    def _placed(self, change: SessionChange, before: _Placed | None) -> _Placed | None:
        if change.session is None:
            return None
        endpoint = self._endpoint(change.session, before and before[0])
        said = self._said(change, change.session, before and before[1])
        return (endpoint, said) if endpoint and said else None

    def _endpoint(self, session: Session, before: Key | None) -> Key | None:
        """The provider's; where it names none, as it may while it is on hold, the one before."""
        address, port = session.provider
        if address is None:
            return before
        return (address.packed, port.to_bytes(2, "big")) if self._may_teach(address) else None

    def _said(self, change: SessionChange, session: Session, before: Said | None) -> Said | None:
        address, port = session.ucm
        if address is None:
            return before
        call = (change.key.call_id, *change.parties, _name(change.key))
        ucm = self._sends_from(address)
        if port in self.settings.phantom_ports:
            # Of a hold, anybody's word would do harm.
            is_ucm = ucm or address in self.settings.public
            return Said(State.MOH, port, before and before.source, *call) if is_ucm else None
        source = (ucm.packed, port.to_bytes(2, "big")) if ucm else None
        return Said(State.TWO, port, source, *call)

    def _sends_from(self, address: IPv4Address) -> IPv4Address | None:
        """UCM's own address; it may name the public one, behind static NAT. None: not UCM's."""
        if address in self.settings.public and len(self.settings.ucm) == 1:
            return self.settings.ucm[0]
        return address if address in self.settings.ucm else None

    def _may_teach(self, address: IPv4Address) -> bool:
        if self.settings.provider:
            return any(address in each for each in self.settings.provider)
        return is_global(address)
