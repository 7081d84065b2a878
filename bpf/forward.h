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

/* A gateway, or the peer itself, as bpf_redirect_neigh() takes it (struct bpf_redir_neigh). */
struct next_hop {
	u32 family; /* 0: none, the kernel looks for one, as from the public address */
	u32 address[4];
};

/* The longest IP packet that it is on the wire: a GSO packet is cut into segments there. */
static __always_inline u16 wire_length(struct __sk_buff *skb, struct packet *packet)
{
	u32 size = segment_size(skb);

	if (size)
		return packet->l4 - packet->l3 + sizeof(struct udphdr) + size;
	return packet->bytes;
}

static __always_inline void ask_for(struct bpf_fib_lookup *fib, struct packet *packet)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = 2; /* AF_INET */
	fib->l4_protocol = IPPROTO_UDP;
	fib->dport = packet->dport;
	fib->tos = packet->tos;
	fib->ipv4_dst = packet->daddr;
}

/* The kernel's route as the stack would forward the packet: BPF_FIB_LKUP_RET_*, or negative. */
static __always_inline long route_as_stack(struct __sk_buff *skb, struct packet *packet,
					   struct bpf_fib_lookup *fib)
{
	ask_for(fib, packet);
	fib->sport = packet->sport;
	fib->ipv4_src = packet->saddr;
	fib->ifindex = skb->ifindex;
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

/*
 * The route out of this WAN and from where the peer was heard. A packet too long for it is
 * FRAG_NEEDED, and fib->ifindex is not set then; before Linux 5.12 some bytes too many pass.
 */
static __always_inline long route_by_wan(struct __sk_buff *skb, struct packet *packet,
					 struct bpf_fib_lookup *fib, u32 wan, struct heard *heard)
{
	ask_for(fib, packet);
	fib->sport = heard->public_port;
	fib->ipv4_src = heard->public_address;
	fib->tot_len = wire_length(skb, packet);
	fib->ifindex = wan;
	return bpf_fib_lookup(skb, fib, sizeof(*fib), BPF_FIB_LOOKUP_OUTPUT);
}

/* A way out: without a neighbour yet, or too long for it, it is one still. */
static __always_inline bool is_forwarded(long route)
{
	return route == BPF_FIB_LKUP_RET_SUCCESS || route == BPF_FIB_LKUP_RET_NO_NEIGH ||
	       route == BPF_FIB_LKUP_RET_FRAG_NEEDED;
}

/* An IPv4 route may have an IPv6 gateway. */
static __always_inline struct next_hop next_hop_of(struct bpf_fib_lookup *fib)
{
	struct next_hop hop = { .family = fib->family };

	__builtin_memcpy(hop.address, fib->ipv6_dst, sizeof(hop.address));
	return hop;
}

/* Before Linux 6.4 a neighbour that is still asked for is found, too, without an address. */
static __always_inline bool has_neighbour(long route, struct bpf_fib_lookup *fib)
{
	return route == BPF_FIB_LKUP_RET_SUCCESS && (fib->dmac[0] | fib->dmac[1] | fib->dmac[2] |
						     fib->dmac[3] | fib->dmac[4] | fib->dmac[5]);
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

/* A link header from one MAC address to another, for this WAN: none if that has no such. */
static __always_inline struct link_header link_on(u8 wan, u8 *dst, u8 *src)
{
	struct link_header link = { .type = has_link_header(wan) ? bpf_htons(ETH_P_IP) : 0 };

	__builtin_memcpy(link.dst, dst, sizeof(link.dst));
	__builtin_memcpy(link.src, src, sizeof(link.src));
	return link;
}

/*
 * To a WAN with link headers by bpf_redirect() if the packet has the right one; else by
 * bpf_redirect_neigh(), which finds it. To one without, by bpf_redirect() if the packet has none
 * either; else by bpf_redirect_neigh() again, which takes it away: before Linux 6.6 (or the stable
 * release with its fix) bpf_redirect() leaves it on PPP. To one whose link header the kernel alone
 * can make (multipoint GRE), always by bpf_redirect_neigh(), and so goes what came with a link
 * header that is not Ethernet's: bpf_redirect() would leave the network header where that ended.
 */
static __always_inline bool is_redirected(u32 l3, u8 wan, struct link_header *link)
{
	if (makes_link_header(wan) || l3 > ETH_HLEN)
		return false;
	return has_link_header(wan) ? link->type : !l3;
}

/* A packet that came without a link header (from a tunnel) is given one. */
static __always_inline long add_link_header(struct __sk_buff *skb, struct link_header *link)
{
	long error = bpf_skb_change_head(skb, sizeof(*link), 0);

	return error ? error : bpf_skb_store_bytes(skb, 0, link, sizeof(*link), 0);
}

/* An empty link header, and as much of the packet as stands in for the rest of a longer one. */
struct front {
	struct link_header link;
	u8 packet[32]; /* a power of two; LONGEST_LINK_HEADER takes fewer */
} __attribute__((packed));

/*
 * bpf_redirect_neigh() takes 14 bytes away, and drops what has a group address there. A longer
 * link header (a VLAN's with reorder_hdr off, multipoint GRE's) is made that short. The helper
 * takes the bytes away that follow the link header, so those are stored in its place before.
 */
static __always_inline long shorten_link_header(struct __sk_buff *skb, u32 l3)
{
	u32 more = l3 - ETH_HLEN - 1;
	struct front front = {};
	long error;

	/* 1 to 32, which the verifier cannot see, nor the compiler say in its words. */
	asm volatile("" : "+r"(more));
	more = (more & (sizeof(front.packet) - 1)) + 1;
	error = bpf_skb_load_bytes(skb, l3, front.packet, more);
	if (!error)
		error = bpf_skb_store_bytes(skb, 0, &front, sizeof(front.link) + more, 0);
	if (!error)
		error = bpf_skb_adjust_room(skb, -(s32)more, BPF_ADJ_ROOM_MAC,
					    BPF_F_ADJ_ROOM_FIXED_GSO |
						    BPF_F_ADJ_ROOM_NO_CSUM_RESET);
	return error;
}

#endif
