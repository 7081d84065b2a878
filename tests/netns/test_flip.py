"""--flip-hold between real sockets: what the kernel's TCP and UDP make of it, and what they accept.

A segment with a wrong checksum would not arrive, and one that is changed in half would be read.
"""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from tests.packets.test_flip import ANSWER, CALL, HOLD, flipped, message
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.hosts import Hosts, add_sip_helper, address, ethtool, hosts

SIP = 5060
PROVIDER_ADDRESS = address(PROVIDER)[0]
PATIENCE = 10.0
# UCM listens behind the firewall.
TO_UCM = f"""
table ip sip {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        iifname "wan" meta l4proto {{ tcp, udp }} th dport {SIP} dnat to {UCM}
    }}
    chain forward {{
        type filter hook forward priority filter;
    }}
}}
"""
# The kernel reads UCM's SIP, and writes what NAT makes of its addresses.
HELPER = """
table ip helper {
    ct helper sip_udp {
        type "sip" protocol udp;
    }
    ct helper sip_tcp {
        type "sip" protocol tcp;
    }
    chain prerouting {
        type filter hook prerouting priority filter;
        udp dport 5060 ct helper set "sip_udp"
        tcp dport 5060 ct helper set "sip_tcp"
    }
}
"""


@pytest.fixture(scope="module")
def nat() -> Iterator[Hosts]:
    """UCM behind a masquerading firewall."""
    with hosts() as made:
        made.firewall.nft(TO_UCM)
        made.attach("--lan", "lan", "--ucm", UCM, "--flip-hold")
        yield made


@pytest.fixture(scope="module")
def routed() -> Iterator[Hosts]:
    """UCM with an address of its own, no NAT."""
    with hosts(masquerade=False) as made:
        made.attach("--ucm", UCM, "--flip-hold")
        yield made


def counters(place: Hosts) -> dict[str, int]:
    return json.loads(place.firewall.moh("status", "--json").stdout)["counters"]


@contextmanager
def connected(place: Hosts) -> Iterator[tuple[socket.socket, socket.socket]]:
    """UCM's end and the provider's of a TCP connection that UCM has made."""
    with place.provider.entered():
        listening = socket.create_server((PROVIDER_ADDRESS, SIP))
    with closing(listening), ExitStack() as stack:
        with place.ucm.entered():
            ucm = socket.create_connection((PROVIDER_ADDRESS, SIP), timeout=PATIENCE)
        stack.enter_context(closing(ucm))
        listening.settimeout(PATIENCE)
        provider, _ = listening.accept()
        for each in (ucm, provider):
            each.settimeout(PATIENCE)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with closing(provider):
            yield ucm, provider


def received(end: socket.socket, length: int) -> bytes:
    text = b""
    while len(text) < length:
        part = end.recv(65536)
        assert part
        text += part
    return text


def through(ucm: socket.socket, provider: socket.socket, payload: bytes) -> bytes:
    ucm.sendall(payload)
    return received(provider, len(payload))


@pytest.fixture(params=["nat", "routed"])
def place(request: pytest.FixtureRequest) -> Hosts:
    return request.getfixturevalue(request.param)


def test_udp(place: Hosts) -> None:
    hold, answer = message(HOLD, call_id="Call-ID: udp"), message(ANSWER, call_id="i: udp")
    before = counters(place)
    with (
        closing(place.provider_socket((PROVIDER_ADDRESS, SIP))) as provider,
        closing(place.ucm_socket(SIP, (PROVIDER_ADDRESS, SIP))) as ucm,
    ):
        for payload in (message(CALL), hold):
            ucm.send(payload)
            text, source = provider.recvfrom(65536)
            assert text == payload.replace(b"a=sendonly", b"a=sendrecv")
        provider.sendto(answer, source)
        assert ucm.recv(65536) == answer.replace(b"a=sendrecv", b"a=recvonly")
    after = counters(place)
    assert after["sip_flipped"] - before["sip_flipped"] == 1
    assert after["sip_restored"] - before["sip_restored"] == 1


@pytest.mark.parametrize("tx", [True, False], ids=["partial", "complete"])
def test_tcp(place: Hosts, tx: bool) -> None:
    """Checksums left to the device, and made by UCM's kernel; many messages on one connection."""
    ethtool(place.ucm, "eth0", tx=tx)
    with connected(place) as (ucm, provider):
        for n in range(5):
            hold = message(HOLD, call_id=f"Call-ID: tcp{n}{'x' * n}")
            assert through(ucm, provider, hold) == flipped(hold)
            answer = message(ANSWER, start="SIP/2.0 200 OK", call_id=f"i:tcp{n}{'x' * n}")
            assert through(provider, ucm, answer) == answer.replace(b"a=sendrecv", b"a=recvonly")
    ethtool(place.ucm, "eth0", tx=True)


@pytest.mark.parametrize("gro", [False, True])
def test_messages_longer_than_a_segment(place: Hosts, gro: bool) -> None:
    """UCM's kernel sends them as one packet to be cut (GSO), or in two; the firewall may put them
    together again (GRO). Headers of 1,000 to 3,000 bytes move the word over all their borders."""
    ethtool(place.firewall, "lan", gro=gro)
    before = counters(place)
    whole = split = 0
    with connected(place) as (ucm, provider):
        for length in range(1000, 3000, 37):
            hold = message(HOLD).replace(b"Via", b"X: " + b"x" * length + b"\r\nVia")
            text = through(ucm, provider, hold)
            assert text in (hold, flipped(hold)), length
            whole += text != hold
            split += text == hold
        again = sent_again(ucm)  # by a busy machine, before the answer could come; also counted
    ethtool(place.firewall, "lan", gro=False)
    after = counters(place)
    assert whole <= after["sip_flipped"] - before["sip_flipped"] <= whole + again
    assert split <= after["sip_split"] - before["sip_split"] <= split + again
    assert whole >= 50


def sent_again(connection: socket.socket) -> int:
    """Segments: tcpi_total_retrans of struct tcp_info (linux/tcp.h)."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[100:104], sys.byteorder)


LOSS = """
table ip loss {{
    chain prerouting {{
        type filter hook prerouting priority raw;
        ip protocol tcp ip length {length} quota until {quota} bytes counter drop
    }}
}}
"""


@contextmanager
def lost_once(place: Hosts, segment: int) -> Iterator[None]:
    """The provider loses the first segment of so many bytes. It comes cut from the firewall."""
    length = 20 + 20 + 12 + segment  # IP, TCP, the timestamps that all of Linux's TCP carries
    ethtool(place.firewall, "lan", gro=True)
    ethtool(place.firewall, "wan", tso=False, gso=False)
    place.provider.nft(LOSS.format(length=length, quota=length * 3 // 2))
    try:
        yield
        table = place.provider.run("nft", "list", "table", "ip", "loss").stdout
        assert "counter packets 1 " in table
    finally:
        place.provider.run("nft", "delete", "table", "ip", "loss")
        ethtool(place.firewall, "wan", tso=True, gso=True)
        ethtool(place.firewall, "lan", gro=False)


@pytest.mark.parametrize("begun", [-300, -1, 0, 1, 5, 7, 9, 10])
def test_a_lost_segment_is_sent_again(place: Hosts, begun: int) -> None:
    """Two segments are one packet where the programs see them, of which the second comes again
    alone. It begins when so many bytes of the word are in the first."""
    with connected(place) as (ucm, provider):
        first = ucm.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        hold = message([*HOLD, f"a=x:{'y' * 300}"])
        space = first - begun - hold.index(b"a=sendonly") - len(b"X: \r\n")
        hold = hold.replace(b"Via", b"X: " + b"x" * space + b"\r\nVia")
        with lost_once(place, len(hold) - first):
            text = through(ucm, provider, hold)
        assert sent_again(ucm) >= 1
        assert text == (hold if 0 < begun < 10 else flipped(hold))


def test_several_calls_in_one_packet(place: Hosts) -> None:
    """As a trunk's connection has them: written at once, they leave UCM as one packet."""
    names = [f"{n}@several" for n in range(5)]
    texts = [
        message(HOLD if n % 2 else CALL, call_id=f"Call-ID: {name}") for n, name in enumerate(names)
    ]
    with connected(place) as (ucm, provider):
        written = b"".join(texts)
        assert through(ucm, provider, written) == written.replace(b"a=sendonly", b"a=sendrecv")
        answers = [message(ANSWER, start="SIP/2.0 200 OK", call_id=f"i: {name}") for name in names]
        back = through(provider, ucm, b"".join(answers))
        for n, answer in enumerate(answers):
            restored = answer.replace(b"a=sendrecv", b"a=recvonly") if n % 2 else answer
            assert back.startswith(restored), n
            back = back[len(restored) :]


def test_a_direction_beyond_what_is_read(place: Hosts) -> None:
    """A packet to be cut, of over 4,000 bytes within the section."""
    ethtool(place.firewall, "lan", gro=True)
    lines = [f"a=x:{'y' * 90}{n:02}" for n in range(50)]
    hold = message([HOLD[0], *lines, "a=sendonly"])
    before = counters(place)
    with connected(place) as (ucm, provider):
        assert through(ucm, provider, hold) == hold
        # Another one on that connection is changed.
        assert through(ucm, provider, message(HOLD)) == flipped(message(HOLD))
    ethtool(place.firewall, "lan", gro=False)
    after = counters(place)
    assert after["sip_split"] > before["sip_split"]


def test_written_byte_by_byte(place: Hosts) -> None:
    """Whatever segments come of it: left alone, or changed as a whole."""
    hold = message(HOLD)
    with connected(place) as (ucm, provider):
        begin = hold.index(b"m=audio")
        ucm.sendall(hold[:begin])
        for at in range(begin, len(hold)):
            ucm.sendall(hold[at : at + 1])
        assert received(provider, len(hold)) in (hold, flipped(hold))


def test_fragments_of_a_datagram(routed: Hosts) -> None:
    """The firewall cuts it for a WAN that is too narrow; the word is in one of the two, or between
    them. What arrives is whole, and so was its checksum."""
    routed.firewall.run("ip", "link", "set", "wan", "mtu", "600")
    before = counters(routed)
    with (
        closing(routed.provider_socket((PROVIDER_ADDRESS, SIP))) as provider,
        closing(routed.ucm_socket(SIP, (PROVIDER_ADDRESS, SIP))) as ucm,
    ):
        ucm.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: may be fragmented
        seen = set()
        for length in range(60, 400):
            hold = message(HOLD).replace(b"Via", b"X: " + b"x" * length + b"\r\nVia")
            ucm.send(hold)
            text = provider.recv(65536)
            assert text in (hold, flipped(hold)), length
            seen.add(text == hold)
    routed.firewall.run("ip", "link", "set", "wan", "mtu", "1500")
    assert seen == {True, False}
    after = counters(routed)
    assert after["sip_split"] > before["sip_split"]


def test_a_replacement_remembers_the_holds(nat: Hosts) -> None:
    with connected(nat) as (ucm, provider):
        hold = message(HOLD, call_id="Call-ID: replaced")
        assert through(ucm, provider, hold) == flipped(hold)
        nat.attach("--lan", "lan", "--ucm", UCM, "--flip-hold", "--max-peers", "1000")
        answer = message(ANSWER, start="SIP/2.0 200 OK", call_id="Call-ID: replaced")
        assert through(provider, ucm, answer) == answer.replace(b"a=sendrecv", b"a=recvonly")


def test_behind_the_sip_helper() -> None:
    """nf_nat_sip writes the public address into UCM's SDP, before it leaves; the lengths change."""
    with hosts() as made:
        made.firewall.nft(TO_UCM)
        add_sip_helper(made.firewall, HELPER)
        made.attach("--lan", "lan", "--ucm", UCM, "--flip-hold")
        hold, call = message(HOLD, call_id="i: helped"), message(CALL, call_id="i: helped")
        answer = message(ANSWER, start="SIP/2.0 200 OK", call_id="i: helped")
        with (
            closing(made.provider_socket((PROVIDER_ADDRESS, SIP))) as provider,
            closing(made.ucm_socket(SIP, (PROVIDER_ADDRESS, SIP))) as ucm,
        ):
            for sent, direction in ((hold, b"a=recvonly"), (call, b"a=sendrecv")):
                ucm.send(sent)
                text, source = provider.recvfrom(65536)
                helped = sent.replace(UCM.encode(), PUBLIC.encode())
                assert sdp(text) == sdp(helped.replace(b"a=sendonly", b"a=sendrecv"))
                provider.sendto(answer.replace(UCM.encode(), PUBLIC.encode()), source)
                assert direction in ucm.recv(65536)
        hold = message(HOLD, call_id="i: helped2").replace(b"Via: SIP/2.0/UDP", b"Via: SIP/2.0/TCP")
        with connected(made) as (ucm, provider):
            for _ in range(3):  # the helper changes the lengths, and so all sequence numbers
                ucm.sendall(hold)
                text = b""
                while not text.endswith(b"a=sendrecv\r\n"):
                    part = provider.recv(65536)
                    assert part
                    text += part
                assert UCM.encode() not in sdp(text)
                assert sdp(text).endswith(sdp(flipped(hold)).partition(b"t=0 0")[2])


def sdp(text: bytes) -> bytes:
    return text.partition(b"\r\n\r\n")[2]


def test_off_unless_asked_for() -> None:
    with hosts() as made:
        made.attach("--lan", "lan", "--ucm", UCM)
        with connected(made) as (ucm, provider):
            assert through(ucm, provider, message(HOLD)) == message(HOLD)
        assert counters(made)["sip_flipped"] == 0
