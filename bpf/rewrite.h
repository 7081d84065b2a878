/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The stateless NAT: one source address and port become another, checksums follow.
 *
 * A plain packet's headers are composed anew and written in one call. What is not plain takes
 * the careful way, on which the kernel's helpers find out what its checksum stands for.
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

static __always_inline __sum16 ip_checksum_after(struct packet *packet, __be32 saddr, u8 hops)
{
	u16 before = bpf_htons(packet->ttl << 8 | IPPROTO_UDP);
	u16 after = bpf_htons((u8)(packet->ttl - hops) << 8 | IPPROTO_UDP);
	__sum16 check = checksum_after(packet->ip_check, before, after);

	return checksum_after_address(check, packet->saddr, saddr);
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
		.check = ip_checksum_after(packet, saddr, hops),
		.saddr = saddr,
	};

	return bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct iphdr, ttl), &tail,
				   sizeof(tail), 0);
}

/*
 * Source port and UDP checksum. The helper knows for certain whether the checksum is partial (to be
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

/* What precedes the payload of a packet without IP options. */
struct headers {
	struct link_header link;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

/* The sum over the pseudo header (RFC 768), folded, not complemented. */
static __always_inline u16 pseudo_sum(struct packet *packet)
{
	u32 sum = (u16)packet->saddr + (packet->saddr >> 16) + (u16)packet->daddr +
		  (packet->daddr >> 16) + bpf_htons(IPPROTO_UDP) + packet->udp_len;

	return fold(sum);
}

/*
 * A partial checksum (CHECKSUM_PARTIAL) is the sum over the pseudo header and nothing else; it
 * has one form only, for a folded sum of numbers that are not all 0 is never 0. A
 * full one is the same number once in 65,535 packets: that one then takes the careful way, too.
 */
static __always_inline bool is_plain(struct __sk_buff *skb, struct packet *packet)
{
	return packet->l4 - packet->l3 == sizeof(struct iphdr) && !segment_size(skb) &&
	       packet->udp_check != pseudo_sum(packet);
}

/* 0 stands for "no checksum" and stays; one that would become 0 is written as its other form. */
static __always_inline __sum16 udp_checksum_after(struct packet *packet, struct heard *heard)
{
	__sum16 check = packet->udp_check;

	if (!check)
		return 0;
	check = checksum_after_address(check, packet->saddr, heard->public_address);
	check = checksum_after(check, packet->sport, heard->public_port);
	return check ?: 0xffff;
}

/*
 * Where a driver has summed the whole packet (CHECKSUM_COMPLETE), skb->csum is told what has
 * changed in the UDP header; elsewhere the helper does nothing.
 */
static __always_inline long rewrite_plain(struct __sk_buff *skb, struct packet *packet,
					  struct heard *heard, u8 hops, struct link_header link)
{
	struct headers new = {};
	void *old = header_at(skb, packet->l3, sizeof(new.ip) + sizeof(new.udp));
	u32 changed;
	long error;

	if (!old)
		return -1;
	__builtin_memcpy(&new.ip, old, sizeof(new.ip) + sizeof(new.udp));
	new.ip.ttl -= hops;
	new.ip.saddr = heard->public_address;
	new.ip.check = ip_checksum_after(packet, heard->public_address, hops);
	new.udp.source = heard->public_port;
	new.udp.check = udp_checksum_after(packet, heard);

	if (link.type) {
		new.link = link;
		error = bpf_skb_store_bytes(skb, 0, &new, sizeof(new), 0);
	} else {
		error = bpf_skb_store_bytes(skb, packet->l3, &new.ip,
					    sizeof(new.ip) + sizeof(new.udp), 0);
	}
	changed = (u16)~packet->sport + new.udp.source + (u16)~packet->udp_check + new.udp.check;
	bpf_csum_update(skb, fold(changed)); /* BCC's prototype takes 16 bits */
	return error;
}

static __always_inline long rewrite_carefully(struct __sk_buff *skb, struct packet *packet,
					      struct heard *heard, u8 hops, struct link_header link)
{
	long error = rewrite_ip(skb, packet, heard->public_address, hops);

	if (!error)
		error = rewrite_udp(skb, packet, heard->public_address, heard->public_port);
	if (!error && link.type)
		error = bpf_skb_store_bytes(skb, 0, &link, sizeof(link), 0);
	return error;
}

/*
 * Make the packet come from where its destination sends to, with `link`, if it is one, for its link
 * header. Not 0: out of memory, drop it.
 */
static __always_inline long rewrite_source(struct __sk_buff *skb, struct packet *packet,
					   struct heard *heard, u8 hops, struct link_header link)
{
	return is_plain(skb, packet) ? rewrite_plain(skb, packet, heard, hops, link)
				     : rewrite_carefully(skb, packet, heard, hops, link);
}

#endif
