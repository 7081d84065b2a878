"""What each contender is put through, and how it is judged: by the packets that left."""

import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from scapy.layers.inet import ICMP, IP, UDP

from tests.comparison.contenders import Flow, Site
from tests.support.article import COUNT, udp_flows
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.flood import ANYWHERE, Streams, endpoints, spoofed
from tests.support.wire import flow, udp

# UCM takes a new port for every hold; in a call it says which port it listens on.
FIRST_HOLD, CALL, SECOND_HOLD = 24576, 24600, 24700
AS_HOLD = (f"{PUBLIC}:4000", PROVIDER)
AS_CALL = (f"{PUBLIC}:{CALL}", PROVIDER)
MUSIC, SPEECH = [AS_HOLD] * COUNT, [AS_CALL] * COUNT

BRANCH_PHONE = "10.20.0.5:24580"
SOFTPHONE = "10.10.10.77:4000"
FAX, FAX_PORT = 20, 24800  # packets, and UCM's port
NOT_APPLICABLE = "n/a"
LIVE = NEW = 50
FLOOD, FLOOD_BETWEEN = 200_000, 10_000
FLOOD_OF_OURS = 1_000_000


class Result(NamedTuple):
    """`verdict` is works, partly, fails or n/a; `how` is what was seen."""

    verdict: str
    how: str


class Leg(NamedTuple):
    """A part of a scenario: did it go as it should (None: not judged here), and what was seen."""

    right: bool | None
    seen: str


class Scenario(NamedTuple):
    """`sent`, `wanted` and `why` are for the reader; `slow` is too long for the test suite."""

    title: str
    sent: str
    wanted: str
    run: Callable[[Site], Result]
    why: str
    slow: bool = False


def judge(*legs: Leg) -> Result:
    right = [leg.right for leg in legs if leg.right is not None]
    verdict = "works" if all(right) else "partly" if any(right) else "fails"
    return Result(verdict, "; ".join(leg.seen for leg in legs))


def leg(name: str, left: Sequence[Flow], wanted: Sequence[Flow]) -> Leg:
    return Leg(list(left) == list(wanted), f"{name}: {sources(left)}" if name else sources(left))


def sources(flows: Sequence[Flow]) -> str:
    """ "23 from public:4000": how many left, and where from."""
    if not flows:
        return "none left"
    counted = Counter(source.replace(PUBLIC, "public") for source, _ in flows)
    return ", ".join(f"{number} from {source}" for source, number in counted.items())


def first_hold(site: Site) -> Result:
    site.start()
    return judge(leg("", site.talk(FIRST_HOLD, 4000), MUSIC))


def second_hold(site: Site) -> Result:
    site.start()
    return judge(
        Leg(None, f"hold: {sources(site.talk(FIRST_HOLD, 4000))}"),
        Leg(None, f"call: {sources(site.talk(CALL, CALL))}"),
        leg("second hold", site.talk(SECOND_HOLD, 4000), MUSIC),
    )


def transfer(site: Site) -> Result:
    site.start()
    site.talk(FIRST_HOLD, 4000)
    voicemail = leg("voicemail", site.talk(CALL, CALL), SPEECH)
    to_and_fro = [
        packet
        for _ in range(COUNT)
        for ports in ((FIRST_HOLD, 4000), (CALL, CALL))
        for packet in site.turn(*ports)
    ]
    return judge(voicemail, leg("to and fro", to_and_fro, [AS_HOLD, AS_CALL] * COUNT))


def unidentified(site: Site) -> Result:
    site.start()
    return judge(
        leg("before", site.say(FIRST_HOLD), []),
        leg("after", site.talk(FIRST_HOLD, 4000), MUSIC),
    )


def seen_before(site: Site) -> Result:
    site.say(FIRST_HOLD, 1)
    site.start()
    return judge(leg("", site.talk(FIRST_HOLD, 4000), MUSIC))


def zero_checksum(site: Site) -> Result:
    site.start()
    without = udp(f"{UCM}:{FIRST_HOLD}", PROVIDER)
    without[UDP].chksum = 0
    site.fw.wan.send(udp(PROVIDER, f"{PUBLIC}:4000"))
    site.fw.lan.send(*[without] * COUNT)
    packets = site.packets()
    zero = sum(packet[UDP].chksum == 0 for packet in packets)
    left = sources([flow(packet) for packet in packets])
    return judge(Leg(zero == COUNT, f"{zero} of {COUNT} without checksum; {left}"))


def rtcp(site: Site) -> Result:
    """The endpoint of RTCP is one port above its RTP's."""
    site.start()
    ours, theirs = f"{UCM}:{FIRST_HOLD + 1}", PROVIDER.replace("21000", "21001")
    report = b"\x80\xc8\x00\x06" + bytes(24)
    wanted = [(f"{PUBLIC}:4001", theirs)]
    site.turn(FIRST_HOLD, 4000)
    site.fw.lan.send(udp(ours, theirs, report))
    first = leg("UCM's before the provider's", site.left(), wanted)
    site.fw.wan.send(udp(theirs, f"{PUBLIC}:4001", report))
    site.fw.lan.send(udp(ours, theirs, report))
    return judge(first, leg("after it", site.left(), wanted))


def turning(site: Site) -> Result:
    """UCM's music begins a round trip before the provider turns to the phantom port."""
    site.start()
    return judge(
        Leg(None, f"call: {sources(site.talk(CALL, CALL))}"),
        leg("before it turns", site.say(FIRST_HOLD), []),
        leg("after", site.talk(FIRST_HOLD, 4000), MUSIC),
    )


def by_rtcp(site: Site) -> Result:
    """The provider does as sendonly says: it sends reports, and no RTP."""
    site.start()
    report = b"\x81\xc9\x00\x07" + bytes(28)
    site.fw.wan.send(udp(PROVIDER.replace("21000", "21001"), f"{PUBLIC}:4001", report))
    return judge(leg("", site.say(FIRST_HOLD), MUSIC))


def another_host(site: Site) -> Result:
    """A softphone in the LAN whose RTP port is 4000."""
    address, _ = SOFTPHONE.split(":")
    site.fw.add_neighbour(address, site.fw.lan)
    snat = f"iptables -t nat -A POSTROUTING -s {address} -o wan -j SNAT --to-source {PUBLIC}"
    site.article.run(snat)
    site.start()
    far = "203.0.113.66:41700"
    site.fw.lan.send(udp(SOFTPHONE, far))
    site.packets()
    site.fw.wan.send(*[udp(far, f"{PUBLIC}:4000")] * COUNT)
    reached = sum(to == SOFTPHONE for _, to in udp_flows(site.fw.lan))
    return judge(Leg(reached == COUNT, f"{reached} of {COUNT} answers reached it"))


def looks_like_rtp(site: Site) -> Result:
    """A quarter of all DNS ids begin as RTP does, and so do a quarter of a fax's packets."""
    site.start()
    query = b"\x9a\xbc\x01\x00\x00\x01" + bytes(20)
    site.fw.lan.send(*[udp(f"{UCM}:{CALL}", "203.0.113.10:53", query)] * COUNT)
    queries = len(site.left())
    # UDPTL: a sequence number, then the data with its length.
    lines = [n * 0x9E3779B97F4A7C15 % 2**64 for n in range(FAX)]
    pages = [struct.pack("!HBHQ", 0x8000 + n, 10, 0xC001, lines[n]) for n in range(FAX)]
    site.fw.lan.send(*[udp(f"{UCM}:{FAX_PORT}", PROVIDER, page) for page in pages])
    fax = len(site.left())
    return judge(
        Leg(queries == COUNT, f"{queries} of {COUNT} DNS queries left"),
        Leg(fax >= FAX - 1, f"{fax} of {FAX} packets of a fax"),
    )


def phantom_port(site: Site) -> Result:
    site.start()
    site.talk(FIRST_HOLD, 4000)
    reached = len(udp_flows(site.fw.lan))
    site.article.run("iptables -P INPUT ACCEPT")
    site.fw.wan.send(*[udp("203.0.113.11:21000", f"{PUBLIC}:4000")] * COUNT)
    answered = any(ICMP in packet for packet in site.packets())
    return judge(
        Leg(not reached, f"{reached} of {COUNT} reached UCM's port of the music"),
        Leg(not answered, f"INPUT open: {'ICMP port unreachable' if answered else 'no answer'}"),
    )


def other_branch(site: Site) -> Result:
    branch = site.fw.add_wire("branch", "10.20.0.1/24", BRANCH_PHONE.split(":")[0])
    site.article.run("iptables -A FORWARD -i lan -o branch -j ACCEPT")
    site.start()
    site.fw.lan.send(*[udp(f"{UCM}:{FIRST_HOLD}", BRANCH_PHONE)] * COUNT)
    wanted = [(f"{UCM}:{FIRST_HOLD}", BRANCH_PHONE)] * COUNT
    return judge(leg("", udp_flows(branch), wanted))


def private_leak(site: Site) -> Result:
    """All that UCM sends in a call's life, also while a program that helps is dead."""
    site.start()
    site.say(FIRST_HOLD)
    for ucm_port, public_port in ((FIRST_HOLD, 4000), (CALL, CALL), (SECOND_HOLD, 4000)):
        site.talk(ucm_port, public_port)
    if site.program:
        site.kill_program()
    site.say(SECOND_HOLD)
    leaked = sum(packet[IP].src == UCM for packet in site.seen)
    return judge(Leg(not leaked, f"{leaked} of {len(site.seen)} that left"))


def dead_program(site: Site) -> Result:
    site.start()
    if not site.program:
        return Result(NOT_APPLICABLE, "there is none")
    site.talk(FIRST_HOLD, 4000)
    site.kill_program()
    return judge(leg("killed", site.talk(FIRST_HOLD, 4000), MUSIC))


def detach(site: Site) -> Result:
    before = traces(site)
    site.start()
    site.talk(FIRST_HOLD, 4000)
    site.talk(CALL, CALL)
    commands = site.remove()
    if not commands:
        return Result(NOT_APPLICABLE, "nothing to remove")
    left = traces(site)
    entries = [f"conntrack {ucm} as {public.replace(PUBLIC, 'public')}"
               for ucm, public in site.article.entries() if public == AS_HOLD[0]]  # fmt: skip
    stays = [*sorted(left - before), *entries] or ["nothing"]
    plural = "s" if commands > 1 else ""
    return judge(
        Leg(left == before and not entries, f"{commands} command{plural}; stays: {stays[0]}"),
        leg("the call", site.talk(CALL, CALL), SPEECH),
    )


def traces(site: Site) -> set[str]:
    """Rules, sets, tables, qdiscs, filters: all that a contender might leave behind."""
    run = site.fw.namespace.run
    rules = run(site.article.iptables + "-save").stdout
    return {
        *re.findall(r"^-.*$", rules, re.MULTILINE),
        *run("ipset", "list", "-n").stdout.splitlines(),
        *(line for line in run("nft", "list", "tables").stdout.splitlines() if "stateless" in line),
        *(site.fw.namespace.tc_state(interface) for interface in ("lan", "wan")),
    }


def flood(site: Site) -> Result:
    return flooded(site, FLOOD_OF_OURS if site.contender.name == "moh_ebpf" else FLOOD)


def flooded(site: Site, size: int, networks: range = ANYWHERE) -> Result:
    """Live holds play on while the flood comes; then new ones begin."""
    site.start()
    live, new = endpoints(LIVE), endpoints(LIVE + NEW)[LIVE:]
    playing, rounds = Streams(site.fw, live), 1
    playing.play_round()
    heard = site.left()
    for number, frame in enumerate(spoofed(site.fw.wan, size, networks), 1):
        site.fw.wan.send_frame(frame)
        if number % FLOOD_BETWEEN == 0:
            playing.play_round()
            heard += site.left()
            rounds += 1
    Streams(site.fw, new).play_round()
    return judge(
        _from_phantom("live", heard, live * rounds), _from_phantom("new", site.left(), new)
    )


def _from_phantom(name: str, left: Sequence[Flow], to: Sequence[str]) -> Leg:
    wanted = Counter((AS_HOLD[0], each) for each in to)
    ports = [source if source == AS_HOLD[0] else "UCM's ports" for source, _ in left]
    return Leg(Counter(left) == wanted, f"{name} calls: {sources([(port, '') for port in ports])}")


SCENARIOS = [
    Scenario(
        "First hold",
        f"The provider and UCM by turns, {COUNT} packets each: to public:4000, from a random port.",
        f"{COUNT} from public:4000.",
        first_hold,
        "Without rules, SNAT keeps UCM's random port, which the provider's firewall does not know.",
    ),
    Scenario(
        "Second hold",
        "A hold, the call again, and within 180 s a hold for which UCM takes a new port; "
        f"{COUNT} packets each way each time. The second hold is judged.",
        f"{COUNT} from public:4000.",
        second_hold,
        "conntrack keeps the first hold's entry at public:4000 for 180 s; SNAT to the same port "
        "finds no free place for the second, and its packets are dropped. Who does not track has "
        "no entry.",
    ),
    Scenario(
        "Transfer",
        f"A call on hold goes to voicemail, at once and from the same endpoint: {COUNT} packets "
        f"each way. Then {COUNT} times to and fro, one packet each way in each state.",
        f"Voicemail as SNAT sends it, from public:{CALL}; each state with its first packet.",
        transfer,
        "An endpoint is in one set at a time: `--del-set` with ipset, `delete` with nftables.",
    ),
    Scenario(
        "Unidentified first packets",
        f"UCM speaks first, {COUNT} packets; then the provider and UCM by turns.",
        f"Nothing, then {COUNT} from public:4000.",
        unidentified,
        "A provider latches on to the first source that it sees: one packet from a wrong port can "
        "spoil a call.",
    ),
    Scenario(
        "A flow from before",
        "UCM spoke once before the contender was there, so conntrack knows the flow; then a hold.",
        f"{COUNT} from public:4000.",
        seen_before,
        "conntrack asks the nat table for a flow's first packet only. `conntrack -D` when the "
        "rules are loaded would help the article's.",
    ),
    Scenario(
        "UDP checksum of 0",
        f"Hold music without checksum, {COUNT} packets. The checksum alone is judged.",
        f"{COUNT} packets without.",
        zero_checksum,
        "nftables has a rule for it here that 1.0 needs and 1.1 does not; see below.",
    ),
    Scenario(
        "RTCP on hold",
        "RTP has made the endpoint known. UCM's RTCP to the next port, then the provider's to "
        "public:4001, then UCM's again.",
        "1 from public:4001, both times.",
        rtcp,
        "To the article's rules, 4001 is any other port. nftables cannot add one to a port, so RTP "
        "says nothing about its RTCP; and RTCP comes every few seconds, when a timeout of 1 s has "
        "forgotten the last (a member may have a longer one). Hold music does not need RTCP.",
    ),
    Scenario(
        "A hold begins",
        f"A call, {COUNT} packets each way. UCM's music from a new port, {COUNT} packets, before "
        "the provider has turned to public:4000; then by turns.",
        f"Nothing, then {COUNT} from public:4000.",
        turning,
        "The endpoint is in a call until its first packet to port 4000, a round trip later. A "
        "provider that latches onto the first source it hears never hears the rest. moh_ebpf "
        "holds a new port of UCM's back for 200 ms at most.",
    ),
    Scenario(
        "A hold that RTCP alone tells of",
        f"The provider sends a report to public:4001, and no RTP; then UCM's music, {COUNT} "
        "packets.",
        f"{COUNT} from public:4000.",
        by_rtcp,
        "A provider that is told sendonly stops its RTP and goes on with RTCP (RFC 3264, 5.1): "
        "without a proxy, or behind TLS, nothing else tells of the hold.",
    ),
    Scenario(
        "Another host's port 4000",
        f"A softphone behind the same address sends from port 4000 to another endpoint, which "
        f"answers with {COUNT} packets.",
        "Every answer reaches it.",
        another_host,
        "What comes to public:4000 is not always a hold's. pjsua's first RTP port is 4000.",
    ),
    Scenario(
        "What only looks like RTP",
        f"UCM's DNS queries with the id 0x9abc, {COUNT} packets; {FAX} packets of a fax (UDPTL) "
        "from number 0x8000 on. Nobody has been heard.",
        "All of them leave; of the fax, all but one at most.",
        looks_like_rtp,
        "Rules see ports, and not what a packet carries. A fax is cut for the quarter of an hour "
        "in which its numbers begin with 0x80 to 0xbf.",
    ),
    Scenario(
        "Inbound RTP to the phantom port",
        "A hold as above; then, with an INPUT chain that accepts everything, "
        f"{COUNT} packets from another endpoint to public:4000.",
        "It ends at the firewall, unanswered; ICMP port unreachable can make a provider hang up.",
        phantom_port,
        "With the article's, conntrack takes it for the answer to the music. One more rule would "
        "end it: a DROP at the end of MOH-LIST for port 4000. With an INPUT chain that drops, as "
        "an ordinary firewall's does, no contender answers.",
    ),
    Scenario(
        "Another branch's phone",
        f"UCM's RTP to {BRANCH_PHONE}, behind another interface, {COUNT} packets. Nobody has been "
        "heard from there.",
        f"{COUNT} from {UCM}:{FIRST_HOLD}, as they came.",
        other_branch,
        "iptables asks in FORWARD, where the way out is known; nftables before it, by `fib`.",
    ),
    Scenario(
        "Private leak",
        "UCM speaks first, a hold, a call, a second hold; then the program is killed, where there "
        f"is one, and UCM speaks on; {COUNT} packets each time.",
        f"None of what leaves by the WAN is from {UCM}.",
        private_leak,
        "As they stand, none leaks. With the article's NOTRACK line and no rewriter, or a queue "
        "with `--queue-bypass` whose program is dead, every packet of hold music does: see below.",
    ),
    Scenario(
        "A program dies",
        f"In a hold, the contender's program is killed; then {COUNT} packets each way.",
        f"{COUNT} from public:4000.",
        dead_program,
        "Without a program a queue drops (or, with `--queue-bypass`, leaks, see below). A "
        "supervisor would start it again. The others have nothing that runs.",
    ),
    Scenario(
        "Detach",
        "A hold, a call, and the contender is taken away while both are known; the call goes on.",
        f"No rule, set, table, qdisc, filter, or conntrack entry of the hold stays; {COUNT} from "
        f"public:{CALL}.",
        detach,
        "The entry keeps the hold at public:4000 until 180 s after its last packet, or `conntrack "
        "-D`.",
    ),
    Scenario(
        "Flood",
        f"{LIVE} live holds, 1 packet each way every {FLOOD_BETWEEN:,} of {FLOOD:,} spoofed RTP "
        f"sources to public:4000 ({FLOOD_OF_OURS:,} for moh_ebpf); then {NEW} new holds begin.",
        f"Every packet of the live holds, {NEW} of the new ones, all from public:4000.",
        flood,
        "A full set takes no new member until one times out: nftables' is full at its 65,535, the "
        "article's at 12,288 (see below). The map of moh_ebpf has 65,536 places, and gives one "
        "that was not used for long to the newest. The timeout is 60 s here; with 1 s it takes "
        "that many endpoints in each second. What helps a set is below, too.",
        slow=True,
    ),
]
