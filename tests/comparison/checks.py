"""What the page says beside the table: each sentence with a run that shows it."""

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from scapy.layers.inet import UDP

from tests.comparison.contenders import CONTENDERS, Site, attached, site, with_rules
from tests.comparison.scenarios import (
    AS_HOLD,
    FIRST_HOLD,
    FLOOD,
    MUSIC,
    NEW,
    Result,
    flooded,
)
from tests.support import article
from tests.support.article import COUNT
from tests.support.firewall import GATEWAY, PROVIDER, PUBLIC, UCM
from tests.support.flood import ANYWHERE, spoofed
from tests.support.waiting import until
from tests.support.wire import udp

PREFIX = "203.0.0.0/16"
WITHIN_PREFIX = range(203 << 8, (203 << 8) + 1)
LEAKED = [(f"{UCM}:{FIRST_HOLD}", PROVIDER)] * COUNT

# Where the provider sends to, remembered whole. update leaves the value of a member as it is.
NFT_MAPS = f"""
table netdev stateless {{
    map address {{ type ipv4_addr . inet_service : ipv4_addr; size 65535; flags dynamic,timeout; timeout 60s; }}
    map port {{ type ipv4_addr . inet_service : inet_service; size 65535; flags dynamic,timeout; timeout 60s; }}
    chain wan {{
        type filter hook ingress device "wan" priority 0;
        udp dport 4000-4001 update @address {{ ip saddr . udp sport : ip daddr }} update @port {{ ip saddr . udp sport : udp dport }} drop
    }}
    chain lan {{
        type filter hook ingress device "lan" priority 0;
        ip saddr {UCM} udp sport set ip daddr . udp dport map @port ip saddr set ip daddr . udp dport map @address fwd ip to {GATEWAY} device "wan"
    }}
}}
"""  # noqa: E501


class Check(NamedTuple):
    """`run` fails where `says` is not so; `slow` is too long for the test suite."""

    says: str
    run: Callable[[], None]
    slow: bool = False


def started(name: str, start: Callable[[Site], None]) -> AbstractContextManager[Site]:
    """That contender's site, with a start of its own."""
    (contender,) = (each for each in CONTENDERS if each.name == name)
    return site(contender._replace(start=start))


def result_of_flood(name: str, start: Callable[[Site], None], networks: range = ANYWHERE) -> Result:
    with started(name, start) as made:
        return flooded(made, FLOOD, networks)


def notrack_leaks() -> None:
    with started("iptables + ipset", with_rules(article.SOLUTION + article.NOTRACK)) as made:
        made.start()
        assert made.talk(FIRST_HOLD, 4000) == LEAKED


def bypass_leaks() -> None:
    rules = article.REWRITER_SOLUTION.replace(article.QUEUE, article.QUEUE_WITH_BYPASS)
    with started("iptables + ipset", with_rules(rules)) as made:
        made.start()
        assert made.talk(FIRST_HOLD, 4000) == LEAKED


def ipset_does_not_renew() -> None:
    with started("iptables + ipset", with_rules(article.SOLUTION)) as made:
        made.start()
        made.talk(FIRST_HOLD, 4000)
        begun = time.monotonic()
        while made.article.identified()["MOH"] > article.TIMEOUT - 2:
            made.talk(FIRST_HOLD, 4000)
            assert time.monotonic() - begun < 30, "the provider's packets renew its membership"


def nft_renews() -> None:
    with started("nft netdev", with_rules(article.NFT_NETDEV)) as made:
        made.start()
        made.talk(FIRST_HOLD, 4000)
        while (aged := _expires(made)) > article.TIMEOUT - 1:
            pass

        def renewed() -> bool:
            made.talk(FIRST_HOLD, 4000)
            return _expires(made) > aged

        until("its time begins anew", renewed)  # which may have passed before it is looked at


def nft_members_have_timeouts() -> None:
    member = "update @phantom { ip saddr . udp sport"
    rules = article.NFT_NETDEV.replace(member, f"{member} timeout 30s")
    with started("nft netdev", with_rules(rules)) as made:
        made.start()
        assert made.talk(FIRST_HOLD, 4000) == MUSIC
        assert _expires(made) <= 30


def _expires(made: Site) -> float:
    """Seconds until nftables forgets the provider: "expires 58s921ms"."""
    shown = made.fw.namespace.run("nft", "list", "map", "netdev", "stateless", "phantom").stdout
    minutes, seconds, thousandths = re.findall(
        r"expires (?:(\d+)m(?!s))?(?:(\d+)s)?(?:(\d+)ms)?", shown
    )[0]
    return 60 * int(minutes or 0) + int(seconds or 0) + int(thousandths or 0) / 1000


def careless_nft_spoils_zero() -> None:
    for name, rules in (("nft ip", article.NFT_IP), ("nft netdev", article.NFT_NETDEV)):
        with started(name, with_rules(article.careless(rules))) as made:
            made.start()
            without = udp(f"{UCM}:{FIRST_HOLD}", PROVIDER)
            without[UDP].chksum = 0
            made.fw.wan.send(udp(PROVIDER, AS_HOLD[0]))
            made.fw.lan.send(without)
            (packet,) = made.packets()
            right = article.udp_checksum(packet)
            if article.nft_spoils_zero():
                assert packet[UDP].chksum not in (0, right)
            else:
                assert packet[UDP].chksum == 0


def maps_remember_where() -> None:
    endpoint, other = "203.0.113.20:9000", "198.51.100.3"
    with started("nft netdev", with_rules(NFT_MAPS)) as made:
        made.start()
        assert _answer(made, endpoint, f"{other}:4001") == f"{other}:4001"
        assert _answer(made, endpoint, f"{PUBLIC}:4000") == f"{other}:4001"

    for name, start in (
        ("nft netdev", with_rules(_deleting_first(NFT_MAPS))),
        ("moh_ebpf", attached()),
    ):
        with started(name, start) as made:
            made.fw.namespace.run("ip", "addr", "add", f"{other}/24", "dev", "wan")
            made.start()
            for public in (f"{other}:4001", f"{PUBLIC}:4000"):
                assert _answer(made, endpoint, public) == public


def _deleting_first(rules: str) -> str:
    return re.sub(r"update (@\w+ \{.*?\})", r"delete \1 update \1", rules)


def _answer(made: Site, endpoint: str, public: str) -> str:
    """Where UCM's packet to an endpoint leaves from, after that one's packet to `public`."""
    made.fw.wan.send(udp(endpoint, public))
    made.fw.lan.send(udp(f"{UCM}:{FIRST_HOLD}", endpoint))
    ((source, _),) = made.left()
    return source


def prefixes_keep_a_flood_out() -> None:
    for name, start in _with_prefix():
        assert result_of_flood(name, start).verdict == "works", name


def a_flood_from_within_the_prefixes() -> None:
    for name, start in _with_prefix():
        wanted = "works" if name == "moh_ebpf" else "partly"
        assert result_of_flood(name, start, WITHIN_PREFIX).verdict == wanted, name


def _with_prefix() -> list[tuple[str, Callable[[Site], None]]]:
    listed = article.SOLUTION.replace("-A PREROUTING -d", f"-A PREROUTING -s {PREFIX} -d")
    learn = f"ip daddr {PUBLIC} @th"
    ip, netdev = (
        rules.replace(learn, f"ip saddr {PREFIX} {learn}")
        for rules in (article.NFT_IP, article.NFT_NETDEV)
    )
    return [
        ("iptables + ipset", with_rules(listed)),
        ("nft ip", with_rules(ip)),
        ("nft netdev", with_rules(netdev)),
        ("moh_ebpf", attached("--provider", PREFIX)),
    ]


def ipset_does_not_grow() -> None:
    with started("iptables + ipset", with_rules(article.SOLUTION)) as made:
        made.start()
        for frame in spoofed(made.fw.wan, 65536):
            made.fw.wan.send_frame(frame)
        shown = made.fw.namespace.run("ipset", "list", "MOH", "-t").stdout
        assert "maxelem 65536" in shown
        assert re.findall(r"Number of entries: (\d+)", shown) == ["12288"]


def larger_sets_hold_out() -> None:
    for name, rules in (
        ("iptables + ipset", _ipset_options("hashsize 65536 maxelem 1048576")),
        ("nft ip", article.NFT_IP.replace("size 65535", "size 1048576")),
        ("nft netdev", article.NFT_NETDEV.replace("size 65535", "size 1048576")),
    ):
        assert result_of_flood(name, with_rules(rules)).verdict == "works", name


def forceadd_takes_some() -> None:
    rules = with_rules(_ipset_options("hashsize 65536 forceadd"))
    seen = result_of_flood("iptables + ipset", rules).how
    assert 0 < int(re.findall(r"new calls: (\d+) from public:4000", seen)[0]) < NEW


def _ipset_options(options: str) -> str:
    return article.SOLUTION.replace("hash:ip,port", f"hash:ip,port {options}")


CHECKS = [
    Check(
        "With the article's NOTRACK line, hold music leaves as "
        f"{UCM}:{FIRST_HOLD}, all {COUNT} packets of {COUNT}. The article says so itself.",
        notrack_leaks,
    ),
    Check(
        "With `--queue-bypass`, and the program dead, the NFQUEUE rules leak the same way, "
        f"{COUNT} of {COUNT}.",
        bypass_leaks,
    ),
    Check(
        "The article's rules do not renew a member of a set, for they lack `--exist`: the provider "
        "speaks, and its timeout runs down. With the timeout of 1 that is a gap in the music every "
        "second or two.",
        ipset_does_not_renew,
    ),
    Check("nftables' `update` renews a member with each packet.", nft_renews),
    Check(
        "A member of an nftables set can have a timeout of its own, longer for RTCP: `update "
        "@phantom { ip saddr . udp sport timeout 30s : udp dport }`.",
        nft_members_have_timeouts,
    ),
    Check(
        "Without the rule that puts a UDP checksum of 0 back, nftables 1.0 sends garbage in its "
        "place, which the receiver drops; 1.1 leaves the 0 alone.",
        careless_nft_spoils_zero,
    ),
    Check(
        "nftables can remember per endpoint which public address and port it sends to: two maps, "
        "`ip saddr set ip daddr . udp dport map @address`. `update` leaves a value that is there "
        "as it is, so an endpoint that moves to another public address is answered from the old "
        "one; `delete` before each `update` mends that. moh_ebpf does it without either.",
        maps_remember_where,
    ),
    Check(
        f"Provider prefixes keep a flood from elsewhere out of every set: with {PREFIX} in the "
        "rule that learns (`-s`, `ip saddr`, `--provider`), the flood above costs no contender a "
        "packet.",
        prefixes_keep_a_flood_out,
        slow=True,
    ),
    Check(
        f"The same flood with sources within {PREFIX} locks new calls out of ipset's and nftables' "
        "sets as before, and not out of moh_ebpf.",
        a_flood_from_within_the_prefixes,
        slow=True,
    ),
    Check(
        "The article's ipset is full at 12,288 members, not at its 65,536: packets cannot make a "
        "set's hash grow beyond the 1,024 buckets of 12 that it begins with; only `ipset add` can.",
        ipset_does_not_grow,
    ),
    Check(
        f"Sets with room for the whole flood stand it: 1,048,576 (with ipset, `hashsize 65536` as "
        f"well) take these {FLOOD:,} and the new calls. So what a set must hold is the packets "
        "that can come within the timeout; that is a matter of memory.",
        larger_sets_hold_out,
        slow=True,
    ),
    Check(
        "ipset's `forceadd`, with a hash of 65,536 buckets, lets some of the new calls in and not "
        "others, and throws out whom it meets.",
        forceadd_takes_some,
        slow=True,
    ),
]
