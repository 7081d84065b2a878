"""Hold music through a NAT firewall for Cisco UCM: a stateless NAT in eBPF."""

__version__ = "0.1.0"
