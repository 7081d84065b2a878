"""SIP messages (RFC 3261), read for what they say of dialogs and their session descriptions.

Only what bears on that is read. What cannot be read for certain is Malformed: a reader of other
people's calls teaches nothing then.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

LONGEST_MESSAGE = 1 << 16  # bytes: what UDP can carry, and more than any call needs
_MOST_HEADERS = 256
_LONGEST_ID = 512  # bytes of a Call-ID, a tag
_LONGEST_VALUE = 1024  # of any header that is read
_MOST_PARTS = 16  # of a multipart body

# RFC 3261, 7.3.3, and 20 for those that have no compact form.
_COMPACT = {
    b"c": b"content-type",
    b"e": b"content-encoding",
    b"f": b"from",
    b"i": b"call-id",
    b"l": b"content-length",
    b"t": b"to",
}
_REQUEST = re.compile(rb"([A-Z]{1,32}) \S{1,2048} SIP/2\.0")
_RESPONSE = re.compile(rb"SIP/2\.0 ([1-6][0-9]{2})(?: [^\r\n]*)?")
_FOLD = re.compile(rb"\n[ \t]+")
_CSEQ = re.compile(rb"([0-9]{1,10})[ \t]+([A-Z]{1,32})")
_RACK = re.compile(rb"([0-9]{1,10})[ \t]+([0-9]{1,10})[ \t]+([A-Z]{1,32})")
# A parameter of a header, behind the address: a tag of a URI's own is none of the header's.
_TAG = re.compile(rb";[ \t]*tag[ \t]*=[ \t]*([^\s;,>\"]+)", re.I)
_DIGITS = re.compile(rb"[0-9]{1,10}")
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
# Where a message may begin, for whoever has joined a connection in its middle.
_START = re.compile(
    rb"(?:^|\n)(?=SIP/2\.0 [1-6][0-9]{2}[ \r]|[A-Z]{1,32} \S{1,2048} SIP/2\.0\r?\n)"
)
# A name is a token, or it is none: text that is read as a header would be anybody's (25.1).
_LINES = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*(?:\n|\Z))*")
# The headers that are read; most lines of a message are others.
_READ = re.compile(
    rb"^([cefilt]|call-id|cseq|from|to|rack|rseq"
    rb"|content-(?:type|length|encoding|transfer-encoding|disposition))[ \t]*:([^\n]*)",
    re.I | re.M,
)
_BOUNDARY = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.I)
# Without an "\r?" at their beginning, these and _FOLD are found by their first byte: four times
# as fast.
_END_OF_HEADERS = re.compile(rb"\n\r?\n")


class Malformed(ValueError):
    """This is not SIP, or not such that it can be relied on."""


class Message(NamedTuple):
    """A request, or where `status` is not 0 the response to one.

    `method` and `cseq` are those of its CSeq: a response's are its request's. `to_tag` is empty in
    what begins a dialog. `from_` and `to` are whole, as they stand there. `sdp` is the session
    description, None: there is none. `rseq` is that of a reliable provisional response, else 0;
    `rack` what a PRACK acknowledges: RSeq, CSeq and method (RFC 3262)."""

    method: str
    status: int
    call_id: bytes
    from_tag: bytes
    to_tag: bytes
    cseq: int
    from_: bytes = b""
    to: bytes = b""
    sdp: bytes | None = None
    rseq: int = 0
    rack: tuple[int, int, str] | None = None


def parse(data: bytes) -> Message:
    """A message that is the whole of a datagram. Raises Malformed."""
    head, body = _split(data.lstrip(b"\r\n"))
    return _message(head, body)


def _split(data: bytes) -> tuple[bytes, bytes]:
    if len(data) > LONGEST_MESSAGE:
        raise Malformed("too long")
    end = _END_OF_HEADERS.search(data)
    if not end:
        raise Malformed("its headers have no end")
    return data[: end.start()].removesuffix(b"\r"), data[end.end() :]


def _headers(head: bytes) -> tuple[bytes, dict[bytes, list[bytes]]]:
    """The first line, and the values of each header that is read by its long name in small
    letters."""
    first, _, lines = _FOLD.sub(b" ", head.replace(b"\r\n", b"\n")).partition(b"\n")
    if lines.count(b"\n") >= _MOST_HEADERS:
        raise Malformed("too many headers")
    if not _LINES.fullmatch(lines):
        raise Malformed("a header without a name")
    headers: dict[bytes, list[bytes]] = {}
    for name, value in _READ.findall(lines):
        name = name.lower()
        headers.setdefault(_COMPACT.get(name, name), []).append(value.strip())
    return first, headers


def _one(headers: dict[bytes, list[bytes]], name: bytes) -> bytes:
    """A header that there must be once: two that differ would be read by each in his own way."""
    values = headers.get(name, [])
    if not values or not values[0] or values.count(values[0]) != len(values):
        raise Malformed(f"not one {name.decode()}")
    if len(values[0]) > _LONGEST_VALUE:
        raise Malformed(f"too long a {name.decode()}")
    return values[0]


def _tag(value: bytes) -> bytes:
    """Of From or To: behind the address in angle brackets, or behind the URI."""
    unquoted = _QUOTED.sub(b'""', value)
    behind = unquoted.rpartition(b">")[2] if b"<" in unquoted else unquoted
    tags = _TAG.findall(behind)
    if len(tags) > 1:
        raise Malformed("two tags")
    return _bounded(tags[0]) if tags else b""


_PLAIN = (b"7bit", b"8bit", b"binary")
_NUMBER = re.compile(rb"sips?:([^@;:>\s]+)[^@>\s]*@|tel:([^;>\s]+)", re.I)


def number(party: bytes) -> bytes:
    """The user of a From or a To, as it stands in its URI; empty: there is none."""
    found = _NUMBER.search(_QUOTED.sub(b"", party))
    return found[1] or found[2] if found else b""


def _bounded(value: bytes) -> bytes:
    if len(value) > _LONGEST_ID:
        raise Malformed("too long an identifier")
    return value


def _message(head: bytes, body: bytes) -> Message:
    first, headers = _headers(head)
    cseq = _CSEQ.fullmatch(_one(headers, b"cseq"))
    if not cseq:
        raise Malformed("its CSeq is none")
    number, method = int(cseq[1]), cseq[2].decode()
    status, method = _kind(first, method)
    caller, called = _one(headers, b"from"), _one(headers, b"to")
    from_tag = _tag(caller)
    if not from_tag:
        raise Malformed("From has no tag")
    return Message(
        method,
        status,
        _bounded(_one(headers, b"call-id")),
        from_tag,
        _tag(called),
        number,
        caller,
        called,
        _sdp(headers, _cut(headers, body)),
        _number(headers, b"rseq"),
        _rack(headers),
    )


def _kind(first: bytes, method: str) -> tuple[int, str]:
    """The status of a response, 0 for a request; and its method, which must be that of its CSeq. Of
    an ACK, some say there which request it is for."""
    if response := _RESPONSE.fullmatch(first):
        return int(response[1]), method
    request = _REQUEST.fullmatch(first)
    if not request:
        raise Malformed("it begins neither as a request nor as a response")
    own = request[1].decode()
    if own != method and (own, method) != ("ACK", "INVITE"):
        raise Malformed("its CSeq is of another method")
    return 0, own


def _number(headers: dict[bytes, list[bytes]], name: bytes) -> int:
    if name not in headers:
        return 0
    value = _one(headers, name)
    if not _DIGITS.fullmatch(value):
        raise Malformed(f"{name.decode()} is no number")
    return int(value)


def _rack(headers: dict[bytes, list[bytes]]) -> tuple[int, int, str] | None:
    if b"rack" not in headers:
        return None
    rack = _RACK.fullmatch(_one(headers, b"rack"))
    if not rack:
        raise Malformed("its RAck is none")
    return int(rack[1]), int(rack[2]), rack[3].decode()


def _cut(headers: dict[bytes, list[bytes]], body: bytes) -> bytes:
    """The body as long as Content-Length says: in a datagram, what follows is ignored (18.3)."""
    if b"content-length" not in headers:
        return body
    length = _number(headers, b"content-length")
    if length > len(body):
        raise Malformed("its body is cut off")
    return body[:length]


def _sdp(headers: dict[bytes, list[bytes]], body: bytes) -> bytes | None:
    """The session description: the body, or the one part of a multipart body that is one."""
    if not body or b"content-type" not in headers:
        return None
    if headers.get(b"content-encoding", [b"identity"]) != [b"identity"]:
        raise Malformed("its body is encoded")
    kind = _one(headers, b"content-type")
    media = _media(kind)
    if media == b"application/sdp":
        return body
    if not media.startswith(b"multipart/"):
        return None
    found = [content for each in _parts(kind, body) if (content := _description(each)) is not None]
    if len(found) > 1:
        raise Malformed("two session descriptions")
    return found[0] if found else None


def _media(kind: bytes) -> bytes:
    return kind.partition(b";")[0].strip().lower()


def _parts(kind: bytes, body: bytes) -> list[bytes]:
    """What is between the delimiters (RFC 2046, 5.1.1); not what is before or behind them."""
    boundary = _BOUNDARY.search(kind)
    if not boundary:
        raise Malformed("a body of parts without a boundary")
    delimiter = b"\r\n--" + (boundary[1] or boundary[2])
    parts = (b"\r\n" + body).split(delimiter, _MOST_PARTS)
    return [each for each in parts[1:] if not each.startswith(b"--")]


def _description(part: bytes) -> bytes | None:
    """The session description that a part is; None: it is none, or one of early media (RFC 3959).
    The rest of the delimiter's line is before its headers."""
    head, end, content = part.partition(b"\r\n\r\n")
    if not end:
        return None
    _, *lines = head.split(b"\r\n")
    _, headers = _headers(b"\r\n".join([b"", *lines]))
    if b"content-type" not in headers or _media(_one(headers, b"content-type")) != (
        b"application/sdp"
    ):
        return None
    if headers.get(b"content-transfer-encoding", [b"binary"])[0].lower() not in _PLAIN:
        raise Malformed("a part is encoded")
    disposition = headers.get(b"content-disposition", [b"session"])[0]
    return content if _media(disposition) == b"session" else None


class Stream:
    """One direction of a TCP connection: messages one after the other (RFC 3261, 18.3).

    `lost` counts the places where it had to look for a next beginning.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._is_joined = False
        self.lost = 0

    @property
    def held(self) -> int:
        """Bytes of a message that is not whole yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole by now; those that are Malformed are left out."""
        self._rest += data
        while self._begins():
            end = _END_OF_HEADERS.search(self._rest)
            if not end:
                if len(self._rest) > LONGEST_MESSAGE:
                    self.skip()  # whatever that is
                return
            head = self._rest[: end.start()].removesuffix(b"\r")
            try:
                length = self._length(head)
            except Malformed:
                self._lose(end.end())
                continue
            if len(self._rest) < end.end() + length:
                return
            body = self._rest[end.end() : end.end() + length]
            self._rest = self._rest[end.end() + length :]
            try:
                yield _message(head, body)
            except Malformed:
                self.lost += 1

    def skip(self) -> None:
        """Segments are missing: what has begun is not ended."""
        self._rest, self._is_joined = b"", False
        self.lost += 1

    def _begins(self) -> bool:
        """Is there a beginning? Blank lines before one are keepalives (RFC 5626, 3.5.1)."""
        self._rest = self._rest.lstrip(b"\r\n")
        if not self._is_joined:
            start = _START.search(self._rest)
            if not start:
                self._rest = self._rest[-2200:]  # the longest first line may be in two segments
                return False
            self._rest, self._is_joined = self._rest[start.end() :], True
        return bool(self._rest)

    def _length(self, head: bytes) -> int:
        first, headers = _headers(head)
        if not _RESPONSE.fullmatch(first) and not _REQUEST.fullmatch(first):
            raise Malformed("no beginning")
        # Over TCP it must be there (20.14).
        length = _number(headers, b"content-length") if b"content-length" in headers else None
        if length is None or length > LONGEST_MESSAGE:
            raise Malformed("its end is not known")
        return length

    def _lose(self, length: int) -> None:
        self._rest, self._is_joined = self._rest[length:], False
        self.lost += 1
