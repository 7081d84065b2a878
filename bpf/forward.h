/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where a packet goes: what the kernel's routes and neighbours say, and handing it to an
 * interface as ip_forward() would.
 */
#ifndef MOH_FORWARD_H
#define MOH_FORWARD_H

#include "layout.h"
#include "packet.h"

/* BCC's own prototype of this helper lacks an argument up to 0.26. */
static long (*redirect_neigh)(u32 ifindex, void *params, int size,
			      u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/* The source MAC, destination MAC and type of an Ethernet header, in the order of the wire. */
struct link_header {
	u8 dst[6];
	u8 src[6];
	__be16 type;
} __attribute__((packed));

/*
 * The kernel's route for the packet (BPF_FIB_LKUP_RET_*, or negative). With flags 0: as the
 * stack would forward it. With BPF_FIB_LOOKUP_OUTPUT: out of this ifindex, from this address.
 */
static __always_inline long look_up_route(struct __sk_buff *skb, struct packet *packet,
					  struct bpf_fib_lookup *fib, u32 ifindex, __be32 saddr,
					  u32 flags)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = 2; /* AF_INET */
	fib->l4_protocol = IPPROTO_UDP;
	fib->sport = packet->sport;
	fib->dport = packet->dport;
	fib->tos = packet->tos;
	fib->ipv4_src = saddr;
	fib->ipv4_dst = packet->daddr;
	fib->ifindex = ifindex;
	return bpf_fib_lookup(skb, fib, sizeof(*fib), flags);
}

/*
 * A route that ends at a WAN. Without a neighbour, or too long for it, it still does; what is
 * unreachable, prohibited, local or not forwarded at all does not.
 */
static __always_inline bool is_forwarded(long route)
{
	return route == BPF_FIB_LKUP_RET_SUCCESS || route == BPF_FIB_LKUP_RET_NO_NEIGH ||
	       route == BPF_FIB_LKUP_RET_FRAG_NEEDED;
}

/*
 * The band a qdisc such as pfifo_fast or prio sends it in: ip_forward() derives it from the
 * TOS (rt_tos2priority), so what goes around ip_forward() does as well. The constant is the
 * kernel's ip_tos2prio table, four bits an entry.
 */
static __always_inline u32 tos_priority(u8 tos)
{
	return 0x4444666622220000ULL >> ((tos & 0x1e) >> 1) * 4 & 0xf;
}

/*
 * Write the next hop's link header. A packet that came without one (from a tunnel) is given
 * room for it first; one that leaves without one loses it in bpf_redirect().
 */
static __always_inline long write_link_header(struct __sk_buff *skb, u32 wan, struct hop_dst *dst,
					      struct hop_src *src)
{
	struct link_header header = { .type = bpf_htons(ETH_P_IP) };
	long error;

	if (!LINK_HEADER(wan))
		return 0;
	if (!LINK_HEADER(skb->ifindex)) {
		error = bpf_skb_change_head(skb, sizeof(header), 0);
		if (error)
			return error;
	}
	__builtin_memcpy(header.dst, dst->mac, sizeof(header.dst));
	__builtin_memcpy(header.src, src->mac, sizeof(header.src));
	return bpf_skb_store_bytes(skb, 0, &header, sizeof(header), 0);
}

#endif
