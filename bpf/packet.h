/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reading a packet: where the IP header is, IPv4, UDP, and whether it is RTP.
 *
 * Packets are read in place. Nothing is written in place: a program with direct writes makes
 * the kernel copy every cloned packet before it runs (bpf_unclone_prologue), among them all
 * that the firewall's own TCP sends, and those are none of our business. One call of
 * bpf_skb_store_bytes() for all headers together costs next to nothing more.
 */
#ifndef MOH_PACKET_H
#define MOH_PACKET_H

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include "attached.h"
#include "media.h"

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff
#define VLAN_VID_MASK 0x0fff

/* An Ethernet header, in the order of the wire. Type 0: none. */
struct link_header {
	u8 dst[6];
	u8 src[6];
	__be16 type;
} __attribute__((packed));

#define NO_LINK ((struct link_header){})

/*
 * The longest link header that is looked behind, in bytes: on Linux 5.10 an IPIP packet still has
 * the Ethernet and IP headers that the tunnel has taken it out of, and perhaps those of UDP.
 */
#define LONGEST_LINK_HEADER 42

/* BCC has no prototype of this helper. */
static long (*load_bytes_relative)(void *skb, u32 offset, void *to, u32 len,
				   u32 start) = (void *)BPF_FUNC_skb_load_bytes_relative;

enum kind {
	KIND_OTHER,    /* not IPv4, not UDP, or broken: never touched */
	KIND_FRAGMENT, /* of a UDP datagram: never touched, but counted */
	KIND_UDP,      /* whole, and no RTP: never touched */
	KIND_ALIKE,    /* it begins as RTP does, but is not RTP: rewritten on hold, never dropped */
	KIND_RTP,      /* RTP or RTCP, by all that their headers tell */
};

/* A packet on its way through a program, which sets `count` and `now` when it needs them. */
struct packet {
	struct __sk_buff *skb;
	struct counters *count; /* this CPU's */
	u64 now;		/* ns of CLOCK_MONOTONIC */
	u32 l3;			/* offset of the IP header */
	u32 l4;			/* offset of the UDP header */
	__be32 saddr;		/* both 0 where no IPv4 header can be read */
	__be32 daddr;
	__be16 sport; /* the ports are 0 in a fragment */
	__be16 dport;
	__be16 frag_off;
	u16 bytes; /* the IP packet's length, host byte order */
	__sum16 ip_check;
	__be16 udp_len;
	__sum16 udp_check;
	u8 ttl;
	u8 tos;
	bool is_rtcp;
	bool has_rtp; /* KIND_RTP and no RTCP: then `rtp` is its header */
	struct rtp_header rtp;
};

/*
 * To the compiler, a pointer of its own: clang 19 else checks one and reads through another that
 * it computes anew, which the verifier takes for unchecked.
 */
#define SAME_POINTER(pointer) asm volatile("" : "+r"(pointer))

/*
 * The size of the segments that a packet will be cut into; 0: it will not. By a pointer of its own,
 * too: otherwise the compiler computes the field's place long before, and the verifier takes no
 * such pointer.
 */
static __always_inline u32 segment_size(struct __sk_buff *skb)
{
	SAME_POINTER(skb);
	return skb->gso_size;
}

/*
 * A header of size bytes at offset, or NULL if the packet has no such bytes. What lies beyond
 * the linear area is pulled into it; pointers got before are invalid then.
 */
static __always_inline void *header_at(struct __sk_buff *skb, u32 offset, u32 size)
{
	void *header = (void *)(long)skb->data + offset;

	SAME_POINTER(header);
	if (header + size <= (void *)(long)skb->data_end)
		return header;
	if (bpf_skb_pull_data(skb, offset + size))
		return NULL;
	header = (void *)(long)skb->data + offset;
	SAME_POINTER(header);
	if (header + size <= (void *)(long)skb->data_end)
		return header;
	return NULL;
}

/* A VLAN with reorder_hdr off sends with its own tag before the IP header: then this is the tag's.
 */
static __always_inline bool is_own_tag(struct __sk_buff *skb)
{
	return finds_header(skb) && (skb->protocol == bpf_htons(ETH_P_8021Q) ||
				     skb->protocol == bpf_htons(ETH_P_8021AD));
}

/*
 * A tagged packet belongs to its VLAN's own interface. VID 0 is a priority tag and no VLAN. What is
 * behind an interface's own tag, the IP header's version tells.
 */
static __always_inline bool is_ipv4(struct __sk_buff *skb)
{
	if (skb->protocol != bpf_htons(ETH_P_IP) && !is_own_tag(skb))
		return false;
	return !skb->vlan_present || !(skb->vlan_tci & VLAN_VID_MASK);
}

/* The 20 bytes at which the kernel holds the IP header to be. */
static __always_inline bool load_ip(struct __sk_buff *skb, struct iphdr *ip)
{
	u32 most = LONGEST_LINK_HEADER + sizeof(*ip);

	if (!load_bytes_relative(skb, 0, ip, sizeof(*ip), BPF_HDR_START_NET))
		return true;
	/* They are beyond the linear area. */
	if (bpf_skb_pull_data(skb, skb->len < most ? skb->len : most))
		return false;
	return !load_bytes_relative(skb, 0, ip, sizeof(*ip), BPF_HDR_START_NET);
}

static __always_inline bool is_at(struct __sk_buff *skb, u32 offset, struct iphdr *ip)
{
	u32 *here = (void *)(long)skb->data + offset;
	u32 *there = (u32 *)ip;

	SAME_POINTER(here);
	if ((void *)here + sizeof(*ip) > (void *)(long)skb->data_end)
		return false;
	return here[0] == there[0] && here[1] == there[1] && here[2] == there[2] &&
	       here[3] == there[3] && here[4] == there[4];
}

/*
 * No program is told where the network header begins; but what stands there it may load. The first
 * place with the same 20 bytes is it: in a link header they are never by chance.
 */
static __always_inline bool search_ip(struct __sk_buff *skb, u32 *l3)
{
	struct iphdr ip;
	u32 offset;

	if (!load_ip(skb, &ip))
		return false;
	for (offset = 0; offset <= LONGEST_LINK_HEADER; offset = offset ? offset + 2 : ETH_HLEN)
		if (is_at(skb, offset, &ip))
			break;
	if (offset > LONGEST_LINK_HEADER)
		return false;
	*l3 = offset;
	return true;
}

/* Where the IP header begins. Most kinds of interfaces have it at one place in all packets. */
static __always_inline bool find_ip(struct __sk_buff *skb, u32 *l3)
{
	u32 offset = link_header_len(skb);

	if (finds_header(skb) && !search_ip(skb, &offset))
		return false;
	*l3 = ip_offset(skb, offset);
	return true;
}

static __always_inline enum kind read_ip(struct __sk_buff *skb, struct packet *packet)
{
	struct iphdr *ip;
	u32 header_len;

	if (!find_ip(skb, &packet->l3))
		return KIND_OTHER;
	ip = header_at(skb, packet->l3, sizeof(*ip));
	if (!ip || ip->version != 4 || ip->ihl < 5)
		return KIND_OTHER;
	packet->saddr = ip->saddr;
	packet->daddr = ip->daddr;
	if (ip->protocol != IPPROTO_UDP)
		return KIND_OTHER;

	header_len = ip->ihl * 4;
	packet->l4 = packet->l3 + header_len;
	packet->sport = 0;
	packet->dport = 0;
	packet->frag_off = ip->frag_off;
	packet->bytes = bpf_ntohs(ip->tot_len);
	packet->ip_check = ip->check;
	packet->ttl = ip->ttl;
	packet->tos = ip->tos;

	if (packet->bytes < header_len || packet->bytes > skb->len - packet->l3)
		return KIND_OTHER;
	if (packet->frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return KIND_FRAGMENT;
	return KIND_UDP;
}

/* So many bytes behind the UDP header. Reading may pull: pointers got before are invalid then. */
static __always_inline bool load_header(struct __sk_buff *skb, struct packet *packet, u32 size)
{
	struct udphdr *udp = header_at(skb, packet->l4, sizeof(*udp) + size);

	if (udp)
		__builtin_memcpy(&packet->rtp, udp + 1, size);
	return udp;
}

/*
 * A payload that begins as RTP does: is it RTP, as far as its header tells? A quarter of all DNS
 * answers begin so, because their id is random.
 */
static __always_inline enum kind read_media(struct __sk_buff *skb, struct packet *packet,
					    u32 udp_len)
{
	u32 payload = udp_len - sizeof(struct udphdr);
	bool is_long = payload >= sizeof(packet->rtp);

	if (payload < RTCP_MIN || bpf_ntohs(packet->sport) < FIRST_MEDIA_PORT ||
	    bpf_ntohs(packet->dport) < FIRST_MEDIA_PORT)
		return KIND_ALIKE;
	if (!(is_long ? load_header(skb, packet, sizeof(packet->rtp))
		      : load_header(skb, packet, RTCP_MIN)))
		return KIND_ALIKE;
	packet->is_rtcp = is_rtcp(&packet->rtp, payload);
	packet->has_rtp = !packet->is_rtcp && is_long && is_rtp(&packet->rtp);
	return packet->is_rtcp || packet->has_rtp ? KIND_RTP : KIND_ALIKE;
}

/* The UDP header and one byte of payload; its length must hold that byte and fit the packet. */
static __always_inline enum kind read_udp(struct __sk_buff *skb, struct packet *packet)
{
	struct udphdr *udp = header_at(skb, packet->l4, sizeof(*udp) + 1);
	u32 room = packet->bytes - (packet->l4 - packet->l3);
	u32 len;

	if (!udp)
		return KIND_OTHER;
	len = bpf_ntohs(udp->len);
	if (len <= sizeof(*udp) || len > room)
		return KIND_OTHER;
	packet->sport = udp->source;
	packet->dport = udp->dest;
	packet->udp_len = udp->len;
	packet->udp_check = udp->check;
	packet->is_rtcp = false;
	packet->has_rtp = false;
	if ((*(u8 *)(udp + 1) & RTP_VERSION_MASK) != RTP_VERSION_2)
		return KIND_UDP;
	return read_media(skb, packet, len);
}

static __always_inline enum kind read_packet(struct __sk_buff *skb, struct packet *packet)
{
	enum kind kind;

	packet->skb = skb;
	/* The compiler reads them early, where there is no IP header to have them from. */
	packet->saddr = 0;
	packet->daddr = 0;
	if (!is_ipv4(skb))
		return KIND_OTHER;
	kind = read_ip(skb, packet);
	return kind == KIND_UDP ? read_udp(skb, packet) : kind;
}

#endif
