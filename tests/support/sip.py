"""SIP messages as texts, of UCM and of a provider."""

from tests.support.firewall import PROVIDER, UCM

PROVIDER_SIP = PROVIDER.split(":")[0]


def description(media: str, direction: str = "", *more: str) -> str:
    """A session description with audio at "address:port"."""
    address, port = media.split(":")
    head = ["v=0", f"o=- 1 1 IN IP4 {address}", "s=-", f"c=IN IP4 {address}", "t=0 0"]
    audio = [f"m=audio {port} RTP/AVP 0 101", *([f"a={direction}"] if direction else [])]
    return "\r\n".join([*head, *audio, *more, ""])


class Dialog:
    """A call of UCM's, message by message."""

    def __init__(self, call_id: str = "f3a4b280-1dd1f3f8-5c-a0a0a0a@10.10.10.10") -> None:
        self.call_id = call_id
        self.cseq = 100

    def ask(self, method: str, body: str = "", *, by_provider: bool = False) -> bytes:
        """A request; a new one, unless it is an ACK."""
        if method != "ACK":
            self.cseq += 1
        return self._text(f"{method} sip:x@y SIP/2.0", method, body, by_provider=by_provider)

    def answer(
        self, body: str = "", *, status: int = 200, method: str = "INVITE", by_provider: bool = True
    ) -> bytes:
        """A response to the last request."""
        return self._text(f"SIP/2.0 {status} X", method, body, by_provider=not by_provider)

    def _text(self, first: str, method: str, body: str, *, by_provider: bool) -> bytes:
        ucm, provider = "<sip:100@ucm>;tag=ucm", "<sip:+4930123@provider>"
        if self.cseq > 101 or not first.startswith("INVITE"):
            provider += ";tag=far"
        caller, called = (provider, ucm) if by_provider else (ucm, provider)
        head = [
            first,
            f"Via: SIP/2.0/UDP {UCM}:5060;branch=z9hG4bK-{self.cseq}",
            f"From: {caller}",
            f"To: {called}",
            f"Call-ID: {self.call_id}",
            f"CSeq: {self.cseq} {method}",
        ]
        if body:
            head.append("Content-Type: application/sdp")
        return "\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode()
