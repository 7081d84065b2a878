/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The settings of this attachment, given by moh_ebpf/attach/compiler.py as -D flags: the programs
 * are compiled at attach, so a setting is a constant of theirs and costs no map lookup.
 */
#ifndef MOH_CONFIG_H
#define MOH_CONFIG_H

#if !defined(IS_UCM) || !defined(IS_PUBLIC) || !defined(IS_LAN) || !defined(WAN_INDEX) || \
	!defined(WAN_IFINDEX) || !defined(LINK_HEADER) || !defined(FINDS_HEADER) ||       \
	!defined(WANS_WITH_HEADER) || !defined(WANS_MAKING_HEADER)
#error "IS_UCM(address), IS_PUBLIC(address): is this __be32 one of them? \
IS_LAN(ifindex): is bypass attached there? \
WAN_INDEX(ifindex), WAN_IFINDEX(index): the order of the WANs; NO_WAN and 0 for no such. \
LINK_HEADER(ifindex): bytes before the IP header there, 14 or 0. \
FINDS_HEADER(ifindex): is it for each packet to tell? Then LINK_HEADER is 0. \
WANS_WITH_HEADER, WANS_MAKING_HEADER: a bit for each WAN whose LINK_HEADER is 14, or that FINDS_HEADER; \
the lowest is that of the first one. attached.h alone asks these."
#endif

#if !defined(MOH_PORT) || !defined(LAST_PHANTOM_PORT) || !defined(RTP_PORT_MIN) ||     \
	!defined(RTP_PORT_MAX) || !defined(TIMEOUT_NS) || !defined(MAX_PEERS) ||       \
	!defined(LRU_SPARE) || !defined(MAX_WANS) || !defined(LONGEST_DEAF_HOLD_NS) || \
	!defined(GOES_ON_NS) || !defined(SETTINGS_SIZE) || !defined(PAGE_SIZE)
#error "MOH_PORT, LAST_PHANTOM_PORT, RTP_PORT_MIN and RTP_PORT_MAX in host byte order; \
TIMEOUT_NS; MAX_PEERS, MAX_WANS, SETTINGS_SIZE (bytes): sizes of maps; LRU_SPARE: the elements that an LRU \
hash has besides, because CPUs hold some back; PAGE_SIZE: the kernel's. \
MAX_PROVIDERS, if defined: the size of the trie that says who may be learned. \
IS_SIP_PORT(port), PHANTOM_TEXT and PHANTOM_DIGITS, if defined: the sendonly of a hold is \
flipped; is this __be16 a port of SIP; MOH_PORT as text, as it is loaded, and its length. \
MAX_SIP_FROM, if defined: the size of the trie that says where SIP may come from. \
MAX_SIGNALLED, if defined: signalling says what an endpoint is; the size of its map. \
QUALITY, if defined: loss and jitter of each stream are kept. \
LONGEST_DEAF_HOLD_NS: an MOH state that outlives learn by so much says nothing any more. \
GOES_ON_NS: the longest time between two packets of a stream. RTCP takes over from RTP that expired so \
lately; where RTP has paused for less, RTCP has no word. \
PATIENCE_NS, if defined: how long UCM's RTP waits for an endpoint to be heard. \
RTCP_TIMEOUT_NS, if defined: how long a report is evidence. \
COARSE_CLOCK, if defined: the kernel has bpf_ktime_get_coarse_ns (Linux 5.11)."
#endif

#ifdef QUALITY
#define KEEPS_QUALITY true
#else
#define KEEPS_QUALITY false
#endif

#define NO_WAN 0xff /* WAN_INDEX of an interface that is none */

/* The interface of a network namespace's loopback (Linux: LOOPBACK_IFINDEX). What a test run of
 * learn's is given comes by it; attach attaches nothing there. */
#define LOOPBACK 1

/* How long a next hop is trusted before the kernel's routes and neighbours are asked again. */
#define HOP_LIFETIME_NS 100000000ULL

/* The bits of the time of a lookup (65 us) that name the hop it found, and a factor of their sum.
 */
#define HOP_SUM 0xffffULL
#define HOP_FACTOR 0x9e3779b97f4a7c15ULL

/* In each such period of the clock, one packet of a stream asks for the whole route. */
#define ROUTE_PERIOD_NS (1ULL << 29)

/* A longer silence than this is no pause within a call, but the time between two of them. */
#define LONGEST_PAUSE_NS 10000000000ULL

/*
 * Learn on a WAN is stale when it has read no packet for so long. Below the default timeout, so
 * that a two-way call whose learn is taken away loses no packet: its WAN is stale when its peer
 * expires.
 */
#define STALE_NS 800000000ULL

/* How exactly a WAN's times are kept: a store for each packet would cost each packet. */
#define WAN_STEP_NS (STALE_NS / 16)

/* For so long, UCM's RTP to an endpoint that is not known is held back on a stale WAN, too. */
#define HELD_BACK_NS 1000000000ULL

/*
 * A WAN that has been stale for so long, while UCM's RTP passed for that reason, is blind: readers
 * are told. Longer than from one RTCP report to the next, which a silent provider still sends.
 */
#define BLIND_NS 10000000000ULL

/* UCM's RTP passes no longer when none has for so long. */
#define OPEN_PAUSE_NS 2000000000ULL

/* For so long, RTP from a new port of UCM's to an endpoint in a call may be the music of a hold
 * that the provider does not know of yet: a round trip. */
#define NEW_SOURCE_NS 200000000ULL

/* A provider may turn so long after a message as that message and its answer say; later than that,
 * it has been told something else. */
#define TURNS_WITHIN_NS 1000000000ULL

/* UCM sends nothing to an endpoint for so long between two calls, and the reports of the first one
 * come no later than that after UCM's last packet. */
#define CALL_OVER_NS 5000000000ULL
#define LAST_REPORT_NS 1000000000ULL

/* A dialog whose end is not seen is forgotten. UCM refreshes a session each half hour by default
 * (RFC 4028), with the SDP of its hold. */
#define LONGEST_HOLD_NS (4 * 3600 * 1000000000ULL)

/* As long as conntrack keeps a UDP connection by default (nf_conntrack_udp_timeout_stream), and how
 * exactly that is kept. */
#define ANOTHERS_NS 120000000000ULL
#define ANOTHERS_STEP_NS 1000000000ULL

/* The ring of events: 256 KiB, some 5,000 events, whatever the size of a page; one page at least.
 */
#define EVENTS_PAGES (PAGE_SIZE < (256 << 10) ? (256 << 10) / PAGE_SIZE : 1)

#endif
