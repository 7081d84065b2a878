"""The article itself: its iptables and ipset rules, how far they carry, and ours from there on.

Each test sets up its own firewall, with Debian's iptables (nftables inside) and with the legacy
one where the kernel has it.
"""

import time
from collections.abc import Iterator
from functools import cache

import pytest
from scapy.layers.inet import UDP
from scapy.packet import Packet

from tests.support.article import (
    COUNT,
    DROP_UNIDENTIFIED,
    IDENTIFY,
    NFT_IP,
    NFT_NETDEV,
    NOTRACK,
    PASS_IDENTIFIED,
    PRINTED_SNAT,
    SNAT,
    SOLUTION,
    TIMEOUT,
    VARIANTS,
    ArticleFirewall,
    article_firewall,
    careless,
    left,
    nft_spoils_zero,
    say,
    talk,
    udp_checksum,
    udp_flows,
    why_not,
)
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall, firewall
from tests.support.wire import flow, udp

# UCM takes a new port for every hold; in a call it says which port it listens on.
FIRST_HOLD, CALL, SECOND_HOLD = 24576, 24600, 24700

AS_HOLD = (f"{PUBLIC}:4000", PROVIDER)
AS_CALL = (f"{PUBLIC}:{CALL}", PROVIDER)

why_not = cache(why_not)


@pytest.fixture(params=VARIANTS)
def article(request: pytest.FixtureRequest) -> Iterator[ArticleFirewall]:
    """An ordinary firewall, without the article's rules yet."""
    reason = why_not(request.param)
    if reason:
        pytest.skip(reason)
    with article_firewall(request.param) as made:
        yield made


@pytest.fixture
def fw(article: ArticleFirewall) -> Firewall:
    """The same ordinary firewall; for ours."""
    return article.fw


def attach(fw: Firewall) -> None:
    fw.attach("--timeout", "60s")  # expiry is none of this file's subjects


def hold_call_hold(fw: Firewall) -> list[list[tuple[str, str]]]:
    """What leaves by the WAN in the article's story."""
    return [left(fw, FIRST_HOLD, 4000), left(fw, CALL, CALL), left(fw, SECOND_HOLD, 4000)]


def test_the_printed_snat_rule_lacks_two_words(article: ArticleFirewall) -> None:
    article.run(IDENTIFY)
    assert article.run(PRINTED_SNAT, check=False) != 0
    assert article.run(PRINTED_SNAT.replace("-I", "-t nat -I"), check=False) != 0
    assert article.run(SNAT) == 0


def test_its_unidentified_packets_are_dropped(article: ArticleFirewall) -> None:
    article.run(SOLUTION)
    say(article.fw, FIRST_HOLD)
    assert udp_flows(article.fw.wan) == []
    assert article.entries() == []


def test_its_first_hold_works(article: ArticleFirewall) -> None:
    article.run(SOLUTION)
    assert left(article.fw, FIRST_HOLD, 4000) == [AS_HOLD] * COUNT
    assert [*article.identified()] == ["MOH"]
    assert article.entries() == [(f"{UCM}:{FIRST_HOLD}", f"{PUBLIC}:4000")]
    # "A connection is established and the inbound packets are let in as well."
    assert udp_flows(article.fw.lan) == [(PROVIDER, f"{UCM}:{FIRST_HOLD}")] * (COUNT - 1)


def test_its_sets_forget_a_provider_while_it_speaks(article: ArticleFirewall) -> None:
    """No --exist, no renewal: with its timeout of 1, music is lost every second or two."""
    article.run(SOLUTION)
    begun = time.monotonic()
    talk(article.fw, FIRST_HOLD, 4000)
    while article.identified()["MOH"] >= TIMEOUT - 1:
        talk(article.fw, FIRST_HOLD, 4000)
        assert time.monotonic() - begun < 30, "the provider's packets renew its place in the set"


def test_its_conversation_works(article: ArticleFirewall) -> None:
    article.run(SOLUTION)
    assert left(article.fw, CALL, CALL) == [AS_CALL] * COUNT
    assert [*article.identified()] == ["TWO"]
    assert udp_flows(article.fw.lan) == [(PROVIDER, f"{UCM}:{CALL}")] * (COUNT - 1)


def test_its_second_hold_fails(article: ArticleFirewall) -> None:
    article.run(SOLUTION)
    assert hold_call_hold(article.fw) == [[AS_HOLD] * COUNT, [AS_CALL] * COUNT, []]

    # As the author saw: the provider is in the right set, the packets come in, none goes out.
    assert [*article.identified()] == ["MOH"]
    # As he assumed: it is conntrack, which already has an entry answered at public:4000.
    assert article.conntrack_errors() == {"insert_failed": COUNT, "drop": COUNT}
    assert article.entries() == [
        (f"{UCM}:{FIRST_HOLD}", f"{PUBLIC}:4000"),
        (f"{UCM}:{CALL}", f"{PUBLIC}:{CALL}"),
    ]
    article.forget(FIRST_HOLD)
    assert left(article.fw, SECOND_HOLD, 4000) == [AS_HOLD] * COUNT


def test_its_second_hold_passes_with_ours(fw: Firewall) -> None:
    attach(fw)
    assert hold_call_hold(fw) == [[AS_HOLD] * COUNT, [AS_CALL] * COUNT, [AS_HOLD] * COUNT]


def test_a_flow_seen_before_it_was_identified_stays_wrong(article: ArticleFirewall) -> None:
    """The state of the article before it blocks: conntrack asks nat for the first packet only."""
    article.run(IDENTIFY + PASS_IDENTIFIED + SNAT)
    wrong = (f"{PUBLIC}:{FIRST_HOLD}", PROVIDER)
    say(article.fw, FIRST_HOLD, 1)
    assert udp_flows(article.fw.wan) == [wrong]
    assert left(article.fw, FIRST_HOLD, 4000) == [wrong] * COUNT
    assert [*article.identified()] == ["MOH"]

    # Dropping what is unidentified is the article's cure, but none for a flow already wrong.
    article.run(DROP_UNIDENTIFIED)
    assert left(article.fw, FIRST_HOLD, 4000) == [wrong] * COUNT


def test_ours_is_right_as_soon_as_it_is_identified(fw: Firewall) -> None:
    say(fw, FIRST_HOLD, 1)  # conntrack has seen it, and NATs it as any other flow
    assert udp_flows(fw.wan) == [(f"{PUBLIC}:{FIRST_HOLD}", PROVIDER)]
    attach(fw)
    say(fw, FIRST_HOLD)
    assert udp_flows(fw.wan) == []
    assert left(fw, FIRST_HOLD, 4000) == [AS_HOLD] * COUNT


def test_notrack_leaks_the_private_address(article: ArticleFirewall) -> None:
    article.run(SOLUTION + NOTRACK)
    assert hold_call_hold(article.fw) == [
        [(f"{UCM}:{FIRST_HOLD}", PROVIDER)] * COUNT,
        [AS_CALL] * COUNT,
        [(f"{UCM}:{SECOND_HOLD}", PROVIDER)] * COUNT,
    ]


def test_ours_leaks_nothing_and_troubles_conntrack_with_calls_only(
    article: ArticleFirewall,
) -> None:
    fw = article.fw
    attach(fw)
    say(fw, FIRST_HOLD)
    talk(fw, FIRST_HOLD, 4000)
    assert article.entries() == []
    talk(fw, CALL, CALL)
    talk(fw, SECOND_HOLD, 4000)
    say(fw, SECOND_HOLD)
    assert article.entries() == [(f"{UCM}:{CALL}", f"{PUBLIC}:{CALL}")]
    assert article.conntrack_errors() == {"insert_failed": 0, "drop": 0}
    assert udp_flows(fw.wan) == [AS_HOLD] * COUNT + [AS_CALL] * COUNT + [AS_HOLD] * 2 * COUNT


def hold_music_without_checksum(fw: Firewall) -> list[Packet]:
    """On hold, UCM sends a packet with a checksum and COUNT without; what leaves by the WAN."""
    with_checksum = udp(f"{UCM}:{FIRST_HOLD}", PROVIDER)
    without = with_checksum.copy()
    without[UDP].chksum = 0
    fw.wan.send(udp(PROVIDER, f"{PUBLIC}:4000"))
    fw.lan.send(with_checksum, *[without] * COUNT)
    packets = fw.wan.sent()
    assert [flow(packet) for packet in packets] == [AS_HOLD] * (1 + COUNT)
    return packets


def zero_rewritten() -> int:
    """0 taken for a checksum and adjusted (RFC 1624) to the new port and address: garbage."""
    before, after = udp(f"{UCM}:{FIRST_HOLD}", PROVIDER), udp(f"{PUBLIC}:4000", PROVIDER)
    # Of a checksum, only what it differs by between the two packets counts here.
    return (udp_checksum(after) - udp_checksum(before)) % 0xFFFF


@pytest.mark.parametrize("rules", [NFT_IP, NFT_NETDEV], ids=["ip", "netdev"])
def test_nftables_spoils_packets_without_checksum_unless_told(rules: str) -> None:
    """nftables 1.0 does, as Debian 12 has it; 1.1, as Debian 13 has it, leaves the 0 alone.

    A rule of their own that puts the 0 back is what 1.0 takes.
    """
    with firewall() as theirs:
        theirs.namespace.nft(careless(rules))
        first, *others = hold_music_without_checksum(theirs)
    assert first[UDP].chksum == udp_checksum(first)
    assert zero_rewritten() not in (0, udp_checksum(first))
    theirs_sent = zero_rewritten() if nft_spoils_zero() else 0
    assert [packet[UDP].chksum for packet in others] == [theirs_sent] * COUNT

    with firewall() as told:
        told.namespace.nft(rules)
        first, *others = hold_music_without_checksum(told)
    assert first[UDP].chksum == udp_checksum(first)
    assert [packet[UDP].chksum for packet in others] == [0] * COUNT


def test_ours_leaves_packets_without_checksum_alone(fw: Firewall) -> None:
    attach(fw)
    first, *others = hold_music_without_checksum(fw)
    assert first[UDP].chksum == udp_checksum(first)
    assert [packet[UDP].chksum for packet in others] == [0] * COUNT


@pytest.mark.parametrize("attached", [False, True], ids=["alone", "with ours"])
def test_an_open_input_chain_moves_the_port_of_a_call(
    article: ArticleFirewall, attached: bool
) -> None:
    """A fault of the firewall's rules, the same with and without ours.

    Inbound RTP that the input chain lets in, while no DNAT rule leads to UCM, makes an entry for
    the firewall itself at public:CALL; SNAT must then give UCM's own packets another port.
    """
    fw = article.fw
    article.run("iptables -P INPUT ACCEPT")
    if attached:
        attach(fw)
    talk(fw, CALL, CALL)
    # Nobody listens there, so the stack answers with ICMP as well.
    flows = [flow(packet) for packet in fw.wan.sent() if UDP in packet]
    moved = flows[0][0]
    assert moved.startswith(f"{PUBLIC}:")
    assert moved != f"{PUBLIC}:{CALL}"
    assert flows == [(moved, PROVIDER)] * COUNT
    assert article.entries() == [
        (f"{UCM}:{CALL}", moved),
        (PROVIDER, PROVIDER),
    ]
