/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What `moh-ebpf discover` sees: a filter of a packet socket that hears all packets, either way.
 * It takes none; it counts the flows of RTP and RTCP, and where SIP and TLS are spoken.
 *
 * The packet begins at its IP header (packet(7), SOCK_DGRAM). Nothing may be read in place.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "media.h"

#define IP_OFFSET 0x1fff /* of a fragment that is not the first */
#define VLAN_VID_MASK 0x0fff
#define LOOPBACK 1

enum traffic { TRAFFIC_RTP, TRAFFIC_RTCP, TRAFFIC_SIP, TRAFFIC_TLS, TRAFFIC_NOTHING };

/* moh_ebpf/discover/flows.py is the Python side of these two. */
struct flow_key {
	__be32 source;
	__be32 destination;
	__be16 sport;
	__be16 dport;
	u32 ifindex;
	u8 traffic;
	u8 is_outgoing;
	u16 zero;
};

struct flow {
	u64 first; /* CLOCK_MONOTONIC, ns, as `last` */
	u64 last;
	u64 longest_gap; /* between two packets, ns */
	u64 packets;
	u64 followed; /* RTP that follows the packet before it in sequence */
	__be32 ssrc;
	u16 sequence;
	u16 zero;
};

BPF_TABLE("hash", struct flow_key, struct flow, flows, MOST_FLOWS);
BPF_ARRAY(not_counted, u64, 1); /* packets of flows for which there was no room */

/* The beginnings of SIP's requests within dialogs and of those that begin one; and of responses. */
static __always_inline bool is_sip(char *text)
{
	return !__builtin_memcmp(text, "SIP/", 4) || !__builtin_memcmp(text, "INVI", 4) ||
	       !__builtin_memcmp(text, "ACK ", 4) || !__builtin_memcmp(text, "BYE ", 4) ||
	       !__builtin_memcmp(text, "REGI", 4) || !__builtin_memcmp(text, "UPDA", 4);
}

/* A record of TLS with a handshake: type 22, version 3.x (RFC 8446, 5.1). */
static __always_inline bool is_tls(unsigned char *text)
{
	return text[0] == 22 && text[1] == 3;
}

static __always_inline enum traffic media(struct __sk_buff *skb, u32 at, u32 payload,
					  struct flow_key *key, struct rtp_header *header)
{
	if (bpf_ntohs(key->sport) < FIRST_MEDIA_PORT || bpf_ntohs(key->dport) < FIRST_MEDIA_PORT ||
	    payload < RTCP_MIN || bpf_skb_load_bytes(skb, at, header, RTCP_MIN) ||
	    (header->version & RTP_VERSION_MASK) != RTP_VERSION_2)
		return TRAFFIC_NOTHING;
	if (is_rtcp(header, payload))
		return TRAFFIC_RTCP;
	if (payload < sizeof(*header) || !is_rtp(header) ||
	    bpf_skb_load_bytes(skb, at, header, sizeof(*header)))
		return TRAFFIC_NOTHING;
	return TRAFFIC_RTP;
}

static __always_inline enum traffic in_udp(struct __sk_buff *skb, u32 at, struct flow_key *key,
					   struct rtp_header *header)
{
	struct udphdr udp;
	char text[4];

	if (bpf_skb_load_bytes(skb, at, &udp, sizeof(udp)))
		return TRAFFIC_NOTHING;
	key->sport = udp.source;
	key->dport = udp.dest;
	if (!bpf_skb_load_bytes(skb, at + sizeof(udp), text, sizeof(text)) && is_sip(text))
		return TRAFFIC_SIP;
	return media(skb, at + sizeof(udp), bpf_ntohs(udp.len) - sizeof(udp), key, header);
}

static __always_inline enum traffic in_tcp(struct __sk_buff *skb, u32 at, struct flow_key *key)
{
	struct tcphdr tcp;
	char text[4];

	if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)))
		return TRAFFIC_NOTHING;
	key->sport = tcp.source;
	key->dport = tcp.dest;
	if (bpf_skb_load_bytes(skb, at + tcp.doff * 4, text, sizeof(text)))
		return TRAFFIC_NOTHING;
	return is_sip(text)		       ? TRAFFIC_SIP
	       : is_tls((unsigned char *)text) ? TRAFFIC_TLS
					       : TRAFFIC_NOTHING;
}

static __always_inline enum traffic read(struct __sk_buff *skb, struct flow_key *key,
					 struct rtp_header *header)
{
	struct iphdr ip;

	/* A tagged packet comes again, by its VLAN's own interface. */
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type == PACKET_OTHERHOST ||
	    skb->ifindex == LOOPBACK || (skb->vlan_present && skb->vlan_tci & VLAN_VID_MASK))
		return TRAFFIC_NOTHING;
	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 ||
	    ip.frag_off & bpf_htons(IP_OFFSET))
		return TRAFFIC_NOTHING;
	key->source = ip.saddr;
	key->destination = ip.daddr;
	key->ifindex = skb->ifindex;
	key->is_outgoing = skb->pkt_type == PACKET_OUTGOING;
	if (ip.protocol == IPPROTO_UDP)
		return in_udp(skb, ip.ihl * 4, key, header);
	if (ip.protocol == IPPROTO_TCP)
		return in_tcp(skb, ip.ihl * 4, key);
	return TRAFFIC_NOTHING;
}

static __always_inline void count(struct flow *flow, struct rtp_header *header, u64 now)
{
	u16 sequence = bpf_ntohs(header->sequence);

	if (now - flow->last > flow->longest_gap)
		flow->longest_gap = now - flow->last;
	flow->last = now;
	flow->packets++;
	if (header->ssrc == flow->ssrc && sequence == (u16)(flow->sequence + 1))
		flow->followed++;
	flow->ssrc = header->ssrc;
	flow->sequence = sequence;
}

int moh_flows(struct __sk_buff *skb)
{
	struct rtp_header header = {};
	struct flow_key key = {};
	struct flow begun = {};
	struct flow *flow;
	u64 *missed;
	int zero = 0;

	key.traffic = read(skb, &key, &header);
	if (key.traffic == TRAFFIC_NOTHING)
		return 0;
	flow = flows.lookup(&key);
	if (flow) {
		count(flow, &header, bpf_ktime_get_ns());
		return 0;
	}
	begun.first = bpf_ktime_get_ns();
	begun.last = begun.first;
	begun.packets = 1;
	begun.ssrc = header.ssrc;
	begun.sequence = bpf_ntohs(header.sequence);
	if (flows.update(&key, &begun)) {
		missed = not_counted.lookup(&zero);
		if (missed)
			__sync_fetch_and_add(missed, 1);
	}
	return 0;
}
