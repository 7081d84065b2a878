"""On which ports SIP is spoken. Pure."""

from collections.abc import Iterable

from moh_ebpf.discover.seen import Flow, Traffic
from moh_ebpf.settings import DEFAULTS


def sip_ports(flows: Iterable[Flow]) -> set[int]:
    """The ports that SIP is spoken at: of a connection's or a pair's two, the one that is a
    server's: 5060, or else the one that most speak with."""
    pairs = {
        frozenset((flow.source.port, flow.destination.port))
        for flow in flows
        if flow.traffic is Traffic.SIP
    }
    ports = {port for pair in pairs for port in pair}
    often = sorted(ports, key=lambda port: (port not in DEFAULTS["sip_ports"], port))
    found = set[int]()
    for port in often:
        if any(port in pair and not pair & found for pair in pairs):
            found.add(port)
    return found
