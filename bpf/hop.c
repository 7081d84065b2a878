/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How hold music leaves: by which WAN, and to which next hop.
 */

static inline int leave_to_stack(struct counters *count)
{
	count->left_to_stack++;
	return TC_ACT_UNSPEC;
}

static inline int leave_routed_elsewhere(struct counters *count)
{
	count->routed_elsewhere++;
	return TC_ACT_UNSPEC;
}

/* Too long for the WAN: the stack answers a DF packet with ICMP; we have no fragments to offer. */
static inline int refuse_too_big(struct packet *packet)
{
	if (packet->frag_off & bpf_htons(IP_DF))
		return leave_to_stack(packet->count);
	packet->count->dropped_too_big++;
	return TC_ACT_SHOT;
}

/* How a packet leaves. */
struct way {
	u8 wan;			 /* index of the WAN */
	u32 ifindex;		 /* the same one */
	struct link_header link; /* the next hop's, or none: not known, or the WAN has no such */
	struct next_hop hop;	 /* whom the kernel's neighbour code is to ask for */
};

/* Names the hop that two words make together. */
static inline u64 hop_sum(u64 dst, u64 src)
{
	return (dst ^ src * HOP_FACTOR) * HOP_FACTOR >> 48;
}

/* By the next hop that the peer keeps, if it is good for this packet. */
static inline bool keep_hop(struct peer *peer, struct packet *packet, struct heard heard,
			    struct way *way)
{
	u64 checked, first, second;
	struct hop_dst dst;
	struct hop_src src;

	if (!peer)
		return false;
	checked = *(volatile u64 *)&peer->hop_checked;
	first = *(volatile u64 *)&peer->hop_dst;
	second = *(volatile u64 *)&peer->hop_src;
	__builtin_memcpy(&dst, &first, sizeof(dst));
	__builtin_memcpy(&src, &second, sizeof(src));
	if ((s64)(packet->now - checked) >= (s64)HOP_LIFETIME_NS || !src.out ||
	    src.heard != heard.wan || wire_length(packet->skb, packet) > dst.max_len ||
	    (checked & HOP_SUM) != hop_sum(first, second))
		return false;
	way->wan = src.out - 1;
	way->ifindex = wan_ifindex(packet->skb, way->wan);
	way->link = link_on(way->wan, dst.mac, src.mac);
	return true;
}

static inline void remember_hop(struct peer *peer, struct packet *packet,
				struct bpf_fib_lookup *fib, struct heard heard, u8 out)
{
	struct hop_dst dst = { .max_len = wire_length(packet->skb, packet) };
	struct hop_src src = { .heard = heard.wan, .out = out + 1 };
	u64 first, second;

	__builtin_memcpy(dst.mac, fib->dmac, sizeof(dst.mac));
	__builtin_memcpy(src.mac, fib->smac, sizeof(src.mac));
	__builtin_memcpy(&first, &dst, sizeof(first));
	__builtin_memcpy(&second, &src, sizeof(second));
	*(volatile u64 *)&peer->hop_dst = first;
	*(volatile u64 *)&peer->hop_src = second;
	*(volatile u64 *)&peer->hop_checked = (packet->now & ~HOP_SUM) | hop_sum(first, second);
}

/*
 * Once in HOP_LIFETIME_NS: ask anew where the WAN's next hop is. Only while that is plain, and the
 * first time in each ROUTE_PERIOD is left to find_route().
 */
static inline bool renew_hop(struct peer *peer, struct packet *packet, struct heard heard,
			     struct way *way)
{
	u32 wan = wan_ifindex(packet->skb, heard.wan);
	struct bpf_fib_lookup fib;

	if (!peer || peer->hop_checked / ROUTE_PERIOD_NS != packet->now / ROUTE_PERIOD_NS ||
	    !has_link_header(heard.wan))
		return false;
	if (!has_neighbour(route_by_wan(packet->skb, packet, &fib, wan, &heard), &fib) ||
	    fib.ifindex != wan)
		return false;
	remember_hop(peer, packet, &fib, heard, heard.wan);
	way->wan = heard.wan;
	way->ifindex = wan;
	way->link = link_on(way->wan, fib.dmac, fib.smac);
	return true;
}

/*
 * The WAN to leave by, for a packet that the stack would send out of some WAN: the one that the
 * peer was heard on. Where that has no route to the peer (asymmetric uplinks), the WAN that the
 * stack would choose. NO_WAN: the routes have changed meanwhile.
 */
static inline u8 way_out(struct packet *packet, struct bpf_fib_lookup *fib, struct heard *heard,
			 long *route)
{
	/* Where nothing was heard, the stack's choice it is. */
	u8 index = heard->wan == NO_WAN ? wan_index(packet->skb, fib->ifindex) : heard->wan;
	u32 wan = wan_ifindex(packet->skb, index);

	*route = route_by_wan(packet->skb, packet, fib, wan, heard);
	if (*route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return index;
	if (is_forwarded(*route) && fib->ifindex == wan)
		return index;
	*route = route_as_stack(packet->skb, packet, fib);
	return is_forwarded(*route) ? wan_index(packet->skb, fib->ifindex) : NO_WAN;
}

/*
 * Ask the kernel for everything, remember the next hop, and let the kernel's own neighbour code
 * send this one packet. It resolves a neighbour not known yet, and keeps probing a known one,
 * which nobody would if all packets went past it. TC_ACT_REDIRECT: there is a way.
 */
static inline int find_route(struct peer *peer, struct packet *packet, struct heard heard,
			     struct way *way)
{
	struct bpf_fib_lookup fib;
	long route = route_as_stack(packet->skb, packet, &fib);
	u8 out;

	if (!is_forwarded(route))
		return leave_to_stack(packet->count);
	/* Who was heard on a WAN may be forged: media go where the routes send them. */
	if (wan_index(packet->skb, fib.ifindex) == NO_WAN)
		return leave_routed_elsewhere(packet->count);
	out = way_out(packet, &fib, &heard, &route);
	if (out == NO_WAN)
		return leave_routed_elsewhere(packet->count);
	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return refuse_too_big(packet);
	way->wan = out;
	way->ifindex = wan_ifindex(packet->skb, out);
	way->link = NO_LINK;
	/* Rules may lead UCM's address to a WAN, and not the public one. */
	if (has_link_header(way->wan))
		way->hop = next_hop_of(&fib);
	if (peer && (has_neighbour(route, &fib) || !has_link_header(way->wan)))
		remember_hop(peer, packet, &fib, heard, out);
	return TC_ACT_REDIRECT;
}

/* The WAN that a packet would leave by as the stack forwards it; NO_WAN: by none. */
static inline u8 wan_by_route(struct packet *packet)
{
	struct bpf_fib_lookup fib;

	return is_forwarded(route_as_stack(packet->skb, packet, &fib))
		       ? wan_index(packet->skb, fib.ifindex)
		       : NO_WAN;
}
