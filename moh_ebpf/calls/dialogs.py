"""What SIP says of calls: which endpoint of the provider's each has, and which port of UCM's.

Dialogs by Call-ID and both tags (RFC 3261, 12), offers and answers as RFC 3264 has them with RFC
3262 (PRACK) and RFC 3311 (UPDATE). An offer counts when it is answered. A request that fails leaves
what was before. Messages may come twice, late, or not at all; copies of one message may differ,
where a proxy has them pass again: the first one counts. Pure: messages in, changes out.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from moh_ebpf.calls import sip
from moh_ebpf.calls.sdp import Audio, audio
from moh_ebpf.calls.sip import Message

# So many calls at once, those not heard of for the longest time go first; so many others, which
# strangers may ask for; so many requests of one dialog that are not answered, and forks of a call.
MOST_DIALOGS = 20_000
_MOST_PENDING = 8
_MOST_FORKS = 16
# What has no answer ends the dialog (RFC 3261, 12.2.1.2), if it is of the dialog itself: a CANCEL,
# a PRACK or a NOTIFY that comes too late is no reason (RFC 5057). If nobody answers at all (408),
# the call goes on as it was, or is ended by a BYE.
_UNKNOWN_DIALOG = 481
_OF_THE_DIALOG = ("INVITE", "UPDATE", "BYE")


class Key(NamedTuple):
    """A dialog: tags are UCM's and the provider's, whoever began it."""

    call_id: bytes
    ucm_tag: bytes
    provider_tag: bytes


class Session(NamedTuple):
    """What both sides have agreed on: where each expects the other's audio."""

    ucm: Audio
    provider: Audio


class Parties(NamedTuple):
    """The numbers of who has called whom; empty if they are not wanted."""

    caller: bytes
    called: bytes


class SessionChange(NamedTuple):
    """A dialog's session, which may be the one before; None: it has none any more."""

    key: Key
    session: Session | None
    parties: Parties


class _Request(NamedTuple):
    """A request in its dialog: who has sent it, its CSeq, its method (an ACK's is INVITE)."""

    is_ucm: bool
    cseq: int
    method: str


class _Spoken(NamedTuple):
    """A session description: whose it is, and its audio, medium by medium."""

    is_ucm: bool
    media: list[Audio | None]


# Call-ID, the tag of who called, whether that is UCM.
_Caller = tuple[bytes, bytes, bool]


@dataclass
class _Invitation:
    """What may make dialogs, one for each who answers: a call that is forked has several. Those
    that are `over` are not made again by what comes late."""

    request: _Request
    offer: _Spoken | None
    parties: Parties
    dialogs: list[Key] = field(default_factory=list)
    over: set[Key] = field(default_factory=set)
    is_taken: bool = False

    def joins(self, key: Key) -> bool:
        """One more that has answered, unless there are too many."""
        if key not in self.dialogs and len(self.dialogs) < _MOST_FORKS:
            self.dialogs.append(key)
        return key in self.dialogs


@dataclass
class _Transaction:
    """What a request has found, and its offer; the responses that have answered that."""

    session: Session | None
    by: _Request | None
    offer: _Spoken | None = None
    answers: set[int] = field(default_factory=set)
    is_void: bool = False  # another request has changed the session since


@dataclass
class _Dialog:
    parties: Parties
    session: Session | None = None
    by: _Request | None = None  # which has brought that session
    is_confirmed: bool = False
    pending: dict[_Request, _Transaction] = field(default_factory=dict)
    latest: dict[bool, int] = field(default_factory=dict)  # CSeq of either side
    has_news: bool = False

    def begin(self, request: _Request) -> _Transaction | None:
        """Its transaction; None: it is one that is over."""
        if request not in self.pending:
            if request.cseq <= self.latest.get(request.is_ucm, -1):
                return None
            self.latest[request.is_ucm] = request.cseq
            while len(self.pending) >= _MOST_PENDING:
                del self.pending[next(iter(self.pending))]
            self.pending[request] = _Transaction(self.session, self.by)
        return self.pending[request]

    def end(self, request: _Request) -> None:
        self.pending.pop(request, None)

    def offer(self, request: _Request, spoken: _Spoken) -> None:
        transaction = self.begin(request)
        if transaction and transaction.offer is None:
            transaction.offer = spoken

    def take(self, request: _Request, spoken: _Spoken | None, status: int) -> bool:
        """An answer, if an offer waits for it: both count from now on. The response that is final
        may have another one than a provisional one had."""
        transaction = self.pending.get(request)
        offer = transaction and transaction.offer
        if not spoken or not transaction or not offer or offer.is_ucm == spoken.is_ucm:
            return False
        if transaction.is_void or status in transaction.answers:
            return True
        transaction.answers.add(status)
        ucm, provider = (offer, spoken) if offer.is_ucm else (spoken, offer)
        both = zip(ucm.media, provider.media, strict=False)
        self.session = next((Session(one, two) for one, two in both if one and two), None)
        self.by, self.has_news = request, True
        for other, each in self.pending.items():
            each.is_void |= other != request and bool(each.answers)
        return True

    def take_back(self, request: _Request) -> None:
        """It has failed: what it has found counts again, unless another has changed that since."""
        transaction = self.pending.pop(request, None)
        if transaction and self.by == request:
            self.session, self.by, self.has_news = transaction.session, transaction.by, True


class Dialogs:
    """Tells of changes; `hear` takes messages in the order in which they came. With
    `keeps_numbers`, changes have those of caller and called."""

    def __init__(self, most: int = MOST_DIALOGS, *, keeps_numbers: bool = False) -> None:
        self._most, self._keeps_numbers = most, keeps_numbers
        # Those with a session are kept apart: strangers, who have none, push them out of nothing.
        self._talking: OrderedDict[Key, _Dialog] = OrderedDict()
        self._others: OrderedDict[Key, _Dialog] = OrderedDict()
        self._invitations: dict[bool, OrderedDict[_Caller, _Invitation]] = {
            True: OrderedDict(),
            False: OrderedDict(),
        }

    def __len__(self) -> int:
        return len(self._talking) + len(self._others)

    def hear(self, message: Message, *, from_ucm: bool) -> list[SessionChange]:
        """What a message changes. Raises ValueError if its session description is none; then it
        has changed nothing."""
        told = audio(message.sdp) if message.sdp is not None else None
        is_ucm = from_ucm if not message.status else not from_ucm
        method = "INVITE" if message.method == "ACK" else message.method
        request = _Request(is_ucm, message.cseq, method)
        spoken = _Spoken(from_ucm, told) if told is not None else None
        caller = message.call_id, message.from_tag, is_ucm
        if message.method == "INVITE" and message.status >= 300:
            changes = list(self._not_taken(caller, request))
        else:
            changes = []
        if not message.to_tag:
            if message.method == "INVITE" and not message.status:
                self._invite(message, caller, request, spoken)
            return changes
        tags = (message.from_tag, message.to_tag)
        key = Key(message.call_id, *(tags if is_ucm else reversed(tags)))
        return changes + list(self._in_dialog(message, key, caller, request, spoken))

    # What begins, before there is a dialog.

    def _invite(
        self, message: Message, caller: _Caller, request: _Request, spoken: _Spoken | None
    ) -> None:
        if self._invitation(caller, request):
            return
        invitations = self._invitations[request.is_ucm]
        invitations[caller] = _Invitation(request, spoken, self._parties(message))
        while len(invitations) > self._most:
            invitations.popitem(last=False)

    def _invitation(self, caller: _Caller, request: _Request) -> _Invitation | None:
        found = self._invitations[request.is_ucm].get(caller)
        return found if found and found.request == request else None

    def _parties(self, message: Message) -> Parties:
        if not self._keeps_numbers:
            return Parties(b"", b"")
        return Parties(sip.number(message.from_), sip.number(message.to))

    def _not_taken(self, caller: _Caller, request: _Request) -> Iterator[SessionChange]:
        """A call that somebody does not take: its early dialogs end. A proxy may try elsewhere, by
        the same request, and somebody may have taken it."""
        invitation = self._invitation(caller, request)
        for key in list(invitation.dialogs if invitation else ()):
            dialog = self._find(key)
            if dialog and not dialog.is_confirmed:
                yield from self._end(key)

    def _make(self, message: Message, key: Key, caller: _Caller, request: _Request) -> None:
        """The dialog that this message makes, or that it is the first to be heard of."""
        invitation = self._invitation(caller, request)
        if invitation and 100 < message.status < 300:
            is_late = invitation.is_taken and message.status < 200
            if is_late or key in invitation.over or not invitation.joins(key):
                return
            dialog = _Dialog(invitation.parties)
            dialog.begin(request)
            if invitation.offer:
                dialog.offer(request, invitation.offer)
        elif message.method in ("INVITE", "UPDATE") and not message.status:
            dialog = _Dialog(self._parties(message), is_confirmed=True)
        else:
            return
        self._others[key] = dialog
        while len(self._others) > self._most:
            self._others.popitem(last=False)

    def _find(self, key: Key) -> _Dialog | None:
        return self._talking.get(key) or self._others.get(key)

    def _hang_up(self, key: Key) -> None:
        """What comes late does not make it again."""
        for tag, is_ucm in ((key.ucm_tag, True), (key.provider_tag, False)):
            invitation = self._invitations[is_ucm].get((key.call_id, tag, is_ucm))
            if invitation and len(invitation.over) < _MOST_FORKS:
                invitation.over.add(key)

    def _end(self, key: Key) -> list[SessionChange]:
        dialog = self._talking.pop(key, None) or self._others.pop(key, None)
        return [SessionChange(key, None, dialog.parties)] if dialog and dialog.session else []

    def _in_dialog(
        self,
        message: Message,
        key: Key,
        caller: _Caller,
        request: _Request,
        spoken: _Spoken | None,
    ) -> Iterator[SessionChange]:
        is_unknown = message.status == _UNKNOWN_DIALOG and message.method in _OF_THE_DIALOG
        if message.method == "BYE" or is_unknown:
            # Of one that is not known, too: somebody before us may have told of it.
            unknown = SessionChange(key, None, self._parties(message))
            self._hang_up(key)
            yield from self._end(key) or [unknown]
            return
        if self._find(key) is None:
            self._make(message, key, caller, request)
        dialog = self._find(key)
        if dialog is None:
            return
        if not message.status:
            self._requested(dialog, message, request, spoken)
        else:
            self._answered(dialog, message, request, spoken)
        yield from self._placed(key, dialog)
        if request.method == "INVITE" and 200 <= message.status < 300:
            yield from self._taken(key, caller, request)

    def _placed(self, key: Key, dialog: _Dialog) -> Iterator[SessionChange]:
        """Among those that talk, or the others, as the one heard of last."""
        self._talking.pop(key, None)
        self._others.pop(key, None)
        (self._talking if dialog.session else self._others)[key] = dialog
        if dialog.has_news:
            dialog.has_news = False
            yield SessionChange(key, dialog.session, dialog.parties)
        while len(self._talking) > self._most:
            yield from self._end(next(iter(self._talking)))

    def _taken(self, key: Key, caller: _Caller, request: _Request) -> Iterator[SessionChange]:
        """Who was asked besides has not taken it: nobody tells of that."""
        invitation = self._invitation(caller, request)
        if invitation is None:
            return
        invitation.is_taken = True
        for each in invitation.dialogs:
            other = self._find(each)
            if each != key and other and not other.is_confirmed:
                yield from self._end(each)

    # Offers and answers.

    def _requested(
        self, dialog: _Dialog, message: Message, request: _Request, spoken: _Spoken | None
    ) -> None:
        if message.method == "ACK":
            dialog.take(request, spoken, 0)
            dialog.end(request)
        elif message.method == "PRACK" and message.rack:
            # The answer to what a reliable response has offered, or an offer of its own.
            acknowledged = _Request(request.is_ucm, message.rack[1], message.rack[2])
            waiting = dialog.pending.get(acknowledged)
            is_answer = waiting and not waiting.answers and dialog.take(acknowledged, spoken, 0)
            if spoken and not is_answer:
                dialog.offer(request, spoken)
        elif message.method in ("INVITE", "UPDATE"):
            dialog.begin(request)
            if spoken:
                dialog.offer(request, spoken)

    def _answered(
        self, dialog: _Dialog, message: Message, request: _Request, spoken: _Spoken | None
    ) -> None:
        transaction = dialog.pending.get(request)
        if transaction is None or message.status == 100:
            return
        if message.status >= 300:
            dialog.take_back(request)
            return
        is_answer = dialog.take(request, spoken, message.status)
        # The request had no offer, and this response is one that is acknowledged.
        is_acknowledged = message.status >= 200 or bool(message.rseq)
        if spoken and not is_answer and request.method == "INVITE" and is_acknowledged:
            dialog.offer(request, spoken)
        if message.status < 200:
            return
        if request.method == "INVITE":
            dialog.is_confirmed = True
        waits_for_ack = (
            request.method == "INVITE"
            and transaction.offer is not None
            and transaction.offer.is_ucm != request.is_ucm
            and not transaction.answers
        )
        if not waits_for_ack:
            dialog.end(request)
