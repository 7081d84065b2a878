/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The stateless NAT: one source address and port become another, checksums follow.
 */
#ifndef MOH_REWRITE_H
#define MOH_REWRITE_H

#include "layout.h"
#include "packet.h"

/* The part of the IP header that changes, as it lies in the packet (RFC 791). */
struct ip_tail {
	u8 ttl;
	u8 protocol;
	__sum16 check;
	__be32 saddr;
};

static __always_inline u32 fold(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* RFC 1624, equation 3, for one 16-bit word: a right checksum stays right, a wrong one wrong. */
static __always_inline __sum16 checksum_after(__sum16 check, u16 from, u16 to)
{
	return ~fold((u16)~check + (u16)~from + to);
}

static __always_inline __sum16 checksum_after_address(__sum16 check, __be32 from, __be32 to)
{
	check = checksum_after(check, (u16)from, (u16)to);
	return checksum_after(check, from >> 16, to >> 16);
}

/*
 * Source address and TTL (by `hops`). The IP header's sum is the same before and after, so
 * skb->csum, where a driver summed the whole packet, needs no change.
 */
static __always_inline long rewrite_ip(struct __sk_buff *skb, struct packet *packet, __be32 saddr,
				       u8 hops)
{
	struct ip_tail tail = {
		.ttl = packet->ttl - hops,
		.protocol = IPPROTO_UDP,
		.saddr = saddr,
	};
	u16 before = bpf_htons(packet->ttl << 8 | IPPROTO_UDP);
	u16 after = bpf_htons(tail.ttl << 8 | IPPROTO_UDP);

	tail.check = checksum_after(packet->ip_check, before, after);
	tail.check = checksum_after_address(tail.check, packet->saddr, saddr);
	return bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct iphdr, ttl), &tail,
				   sizeof(tail), 0);
}

/*
 * Source port and UDP checksum. Only the helper knows whether the checksum is partial (to be
 * completed by the sending interface): then it holds the pseudo header's sum alone, in which
 * the address counts and the port does not; that is what BPF_F_PSEUDO_HDR tells apart.
 * 0 means "no checksum" (RFC 768) and stays; skb->csum must then be told of the port.
 */
static __always_inline long rewrite_udp(struct __sk_buff *skb, struct packet *packet, __be32 saddr,
					__be16 sport)
{
	u32 check = packet->l4 + offsetof(struct udphdr, check);
	u32 source = packet->l4 + offsetof(struct udphdr, source);
	long error;

	if (!packet->udp_check)
		return bpf_skb_store_bytes(skb, source, &sport, sizeof(sport),
					   BPF_F_RECOMPUTE_CSUM);
	error = bpf_l4_csum_replace(skb, check, packet->saddr, saddr,
				    BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 | sizeof(saddr));
	if (!error)
		error = bpf_l4_csum_replace(skb, check, packet->sport, sport,
					    BPF_F_MARK_MANGLED_0 | sizeof(sport));
	if (!error)
		error = bpf_skb_store_bytes(skb, source, &sport, sizeof(sport), 0);
	return error;
}

/* Make the packet come from where its destination sends to. Not 0: out of memory, drop it. */
static __always_inline long rewrite_source(struct __sk_buff *skb, struct packet *packet,
					   struct heard *heard, u8 hops)
{
	long error = rewrite_ip(skb, packet, heard->public_address, hops);

	return error ? error : rewrite_udp(skb, packet, heard->public_address, heard->public_port);
}

#endif
