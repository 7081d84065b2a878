"""The kernel's interfaces, as far as they are used: netlink, tc, libbpf."""
