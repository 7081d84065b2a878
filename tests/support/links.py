"""Every kind of link that Linux has, each over a veth of its own between two namespaces."""

import os
import select
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any

from tests.support.namespace import Namespace
from tests.support.waiting import until
from tests.support.wire import Tun

_BELOW = """
address add {local}/24 dev {below}
link set {below} up
"""
# Batches of ip's: `below` is the end of the veth, `name` the link's end that is made of it.
_PLAIN = """
link set {below} down
link set {below} name {name}
"""
_VLAN = "link add link {below} name {name} type vlan id 7"
_IPSEC = """
xfrm state add src {local} dst {remote} proto esp spi {number} mode tunnel \
enc cbc(aes) 0x000102030405060708090a0b0c0d0e0f auth hmac(sha256) 0x00010203 {state}
xfrm state add src {remote} dst {local} proto esp spi {number} mode tunnel \
enc cbc(aes) 0x000102030405060708090a0b0c0d0e0f auth hmac(sha256) 0x00010203 {state}
xfrm policy add dir out {policy} tmpl src {local} dst {remote} proto esp mode tunnel
xfrm policy add dir in {policy} tmpl src {remote} dst {local} proto esp mode tunnel
xfrm policy add dir fwd {policy} tmpl src {remote} dst {local} proto esp mode tunnel
"""
_XFRM = "link add {name} type xfrm dev {below} if_id {number}" + _IPSEC.replace(
    "{state}", "if_id {number}"
).replace("{policy}", "if_id {number}")
_VTI = "link add {name} type vti local {local} remote {remote} key {number}" + _IPSEC.replace(
    " {state}", ""
).replace("{policy}", "mark {number}")
_BOND = """
link set {below} down
link add {name} type bond mode active-backup
link set {below} master {name}
link set {below} up
"""
_BRIDGE = """
link add {name} type bridge
link set {below} master {name}
"""
_QINQ = """
link add link {below} name {below}s type vlan proto 802.1ad id 100
link set {below}s up
link add link {below}s name {name} type vlan id 7
"""
_VRF_PORT = f"""
link add vrf{{number}} type vrf table {{number}}
link set vrf{{number}} up
{_PLAIN}
link set {{name}} master vrf{{number}}
"""
_IPVLAN = "link add link {below} name {name} type ipvlan mode"
# An ipvlan in mode l3 answers no ARP, and what it sends is routed again, out of the veth, whose own
# ARP it takes for itself.
_IPVLAN_L3_KNOWN = "neigh replace {other} lladdr {mac} dev {name} nud permanent"
_IPVLAN_L3_ROUTES = """
route replace {other} dev {below} metric 9999
route replace {beyond} via {other} dev {below} onlink metric 9999
neigh replace {other} lladdr {far_mac} dev {below} nud permanent
"""
_GRE_KNOWS = "neigh replace {other} lladdr {remote} dev {name} nud permanent"


@dataclass(frozen=True)
class End:
    """Of a link: its interface there, and its address in a network of 24 bits."""

    place: Namespace
    name: str
    address: str


@dataclass(frozen=True)
class Kind:
    """`near` and `far` make the two ends, which are alike if `far` is None; `then` and `far_then`
    follow when they have their addresses. `start` makes a link that takes more than ip. Some are
    refused as LAN.
    """

    name: str
    near: str = ""
    far: str | None = _PLAIN
    then: str = ""
    far_then: str = ""
    is_lan: bool = True
    start: Callable[["Kind", int, ExitStack, End, End], None] | None = None


def make(kind: Kind, number: int, stack: ExitStack, near: End, far: End, beyond: str) -> str | None:
    """Make the link, with what is `beyond` the far end (address/length) to be routed to. If this
    kernel has no such kind, what was said of it. The number is the link's own, up to 250."""
    below = f"u{near.name}"
    mac = f"02:00:00:00:00:{number:02x}"
    far_mac = f"02:00:00:00:01:{number:02x}"
    there = f"peer name {below} address {far_mac} netns {far.place.name}"
    must(near.place, f"link add {below} address {mac} type veth {there}")
    sides = []
    for end, other, side in ((near, far, 1), (far, near, 2)):
        local, remote = f"172.16.{number}.{side}", f"172.16.{number}.{3 - side}"
        words = {
            "name": end.name,
            "other": other.address,
            "below": below,
            "number": number,
            "local": local,
            "remote": remote,
            "mac": mac,
            "far_mac": far_mac,
            "beyond": beyond,
        }
        sides.append((end, words))
    for end, words in sides:
        commands = kind.near if end is near or kind.far is None else kind.far
        if said := batch(end.place, (_BELOW + commands).format(**words)):
            return said
    if kind.start:
        try:
            kind.start(kind, number, stack, near, far)
        except (OSError, AssertionError) as error:
            return str(error)
    for end, words in sides:
        address = "" if kind.start is pppd else f"address add {end.address}/24 dev {end.name}\n"
        then = kind.then if end is near or kind.far is None else kind.far_then
        must(end.place, f"{address}link set {end.name} up\n{then}".format(**words))
    return None


def batch(place: Namespace, commands: str) -> str | None:
    """What ip has said of the first command that failed."""
    done = subprocess.run(
        ["ip", "-n", place.name, "-batch", "-"],
        input=commands, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return " ".join(done.stderr.split()) if done.returncode else None


def must(place: Namespace, commands: str) -> None:
    said = batch(place, commands)
    assert said is None, f"{commands}: {said}"


def _wireguard(kind: Kind, number: int, stack: ExitStack, near: End, far: End) -> None:
    def wg(*words: str, **options: Any) -> str:
        return subprocess.check_output(["wg", *words], text=True, **options).strip()

    directory = stack.enter_context(tempfile.TemporaryDirectory())
    keys = [wg("genkey") for _ in (near, far)]
    publics = [wg("pubkey", input=key) for key in keys]
    for side, (end, key) in enumerate(zip((near, far), keys, strict=True), 1):
        file = os.path.join(directory, end.place.name)
        with open(file, "w") as written:
            written.write(key)
        port = str(51000 + number)
        peer = ["peer", publics[2 - side], "endpoint", f"172.16.{number}.{3 - side}:{port}"]
        end.place.run("wg", "set", end.name, "private-key", file, "listen-port", port, *peer,
                      "allowed-ips", "0.0.0.0/0")  # fmt: skip


def _tun(kind: Kind, number: int, stack: ExitStack, near: End, far: End) -> None:
    """Two tun devices, and a thread that carries what comes out of one into the other."""
    ends = [stack.enter_context(closing(Tun(end.place, end.name))) for end in (near, far)]
    asleep, awake = os.pipe()

    def relay() -> None:
        other = dict(zip([end.fileno() for end in ends], reversed(ends), strict=True))
        while True:
            ready, _, _ = select.select([asleep, *other], [], [])
            if asleep in ready:
                return
            for each in ready:
                os.write(other[each].fileno(), os.read(each, 65535))

    thread = Thread(target=relay)
    thread.start()

    def stop() -> None:
        os.close(awake)
        thread.join()
        os.close(asleep)

    stack.callback(stop)


def pppd(kind: Kind, number: int, stack: ExitStack, near: End, far: End) -> None:
    """A pppd at each end, connected by a pty."""
    if not os.path.exists("/dev/ppp"):
        raise OSError("this kernel has no PPP")
    common = "nodetach noauth local nodefaultroute noipv6 noccp nopcomp noaccomp novj"
    there = (
        f"ip netns exec {far.place.name} pppd notty {common} ifname {far.name} "
        f"{far.address}:{near.address}"
    )
    here = f"pppd {common} ifname {near.name} {near.address}:{far.address} pty".split()
    nowhere = subprocess.DEVNULL
    started = subprocess.Popen(
        ["ip", "netns", "exec", near.place.name, *here, there],
        stdin=nowhere, stdout=nowhere, stderr=nowhere,
    )  # fmt: skip

    def hang_up() -> None:
        started.terminate()
        started.wait()

    stack.callback(hang_up)
    for end in (near, far):
        until(f"{end.name} is up", partial(_is_up, end))


def _is_up(end: End) -> bool:
    return end.address in _addresses(end)


def _addresses(end: End) -> str:
    return end.place.run(
        "ip", "-brief", "address", "show", "up", "dev", end.name, check=False
    ).stdout


VETH = Kind("veth", _PLAIN)
KINDS = [
    VETH,
    Kind("VLAN", _VLAN, None),
    Kind("VLAN with reorder_hdr off", f"{_VLAN} reorder_hdr off", _VLAN),
    Kind("QinQ", _QINQ, None),
    Kind("QinQ with reorder_hdr off", f"{_QINQ.rstrip()} reorder_hdr off", _QINQ),
    Kind("bond", _BOND),
    Kind("bridge", _BRIDGE),
    Kind("macvlan", "link add link {below} name {name} type macvlan mode bridge"),
    Kind("ipvlan, mode l2", f"{_IPVLAN} l2", is_lan=False),
    Kind("ipvlan, mode l3", f"{_IPVLAN} l3", _PLAIN, _IPVLAN_L3_ROUTES, _IPVLAN_L3_KNOWN,
         is_lan=False),
    Kind("port of a VRF", _VRF_PORT),
    Kind("xfrm", _XFRM, None),
    Kind("vti", _VTI, None),
    Kind("GRE", "link add {name} type gre local {local} remote {remote}", None),
    Kind("multipoint GRE", "link add {name} type gre local {local}", None, _GRE_KNOWS),
    Kind("multipoint GRE with a key", "link add {name} type gre local {local} key 5", None,
         _GRE_KNOWS),
    Kind("GRE for Ethernet (gretap)", "link add {name} type gretap local {local} remote {remote}",
         None),
    Kind("VXLAN", "link add {name} type vxlan id {number} dstport 4789 local {local} "
         "remote {remote}", None),
    Kind("IPIP", "link add {name} type ipip local {local} remote {remote}", None),
    Kind("WireGuard", "link add {name} type wireguard", None, start=_wireguard),
    Kind("tun", "", None, start=_tun),
    Kind("PPP", "", None, start=pppd),
]  # fmt: skip

# Those that tc sees nothing come in by.
REFUSED = [
    Kind("VRF", "link add {name} type vrf table {number}\nlink set {below} master {name}"),
    Kind("IFB", "link add {name} type ifb"),
    Kind("ipvlan, mode l3s", f"{_IPVLAN} l3s"),
]
