/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The settings of this attachment, given by moh_ebpf/compiler.py as -D flags: the programs
 * are compiled at attach, so a setting is a constant of theirs and costs no map lookup.
 */
#ifndef MOH_CONFIG_H
#define MOH_CONFIG_H

#if !defined(IS_UCM) || !defined(IS_PUBLIC) || !defined(IS_LAN) || !defined(WAN_INDEX) || \
	!defined(WAN_IFINDEX) || !defined(LINK_HEADER) || !defined(FINDS_HEADER)
#error "IS_UCM(address), IS_PUBLIC(address): is this __be32 one of them? \
IS_LAN(ifindex): is bypass attached there? \
WAN_INDEX(ifindex), WAN_IFINDEX(index): the order of the WANs; NO_WAN and 0 for no such. \
LINK_HEADER(ifindex): bytes before the IP header there, 14 or 0. \
FINDS_HEADER(ifindex): is it for each packet to tell? Then LINK_HEADER is 0."
#endif

#if !defined(MOH_PORT) || !defined(RTP_PORT_MIN) || !defined(RTP_PORT_MAX) ||     \
	!defined(TIMEOUT_NS) || !defined(MAX_PEERS) || !defined(SETTINGS_SIZE) || \
	!defined(PAGE_SIZE)
#error "MOH_PORT, RTP_PORT_MIN and RTP_PORT_MAX in host byte order; \
TIMEOUT_NS; MAX_PEERS, SETTINGS_SIZE (bytes): sizes of maps; PAGE_SIZE: the kernel's. \
MAX_PROVIDERS, if defined: the size of the trie that says who may be learned. \
IS_SIP_PORT(port), PHANTOM_TEXT and PHANTOM_DIGITS, if defined: the sendonly of a hold is \
flipped; is this __be16 a port of SIP; MOH_PORT as text, as it is loaded, and its length. \
QUALITY, if defined: loss and jitter of each stream are kept. \
COARSE_CLOCK, if defined: the kernel has bpf_ktime_get_coarse_ns (Linux 5.11), and its ticks \
will do."
#endif

#define NO_WAN 0xff /* WAN_INDEX of an interface that is none */

/* How long a next hop is trusted before the kernel's routes and neighbours are asked again. */
#define HOP_LIFETIME_NS 100000000ULL

/* In each such period of the clock, one packet of a stream asks for the whole route. */
#define ROUTE_PERIOD_NS (1ULL << 29)

/* A longer silence than this is no pause within a call, but the time between two of them. */
#define LONGEST_PAUSE_NS 10000000000ULL

/* The ring of events, in pages of memory: of 4 KiB, some 5,000 events. */
#define EVENTS_PAGES 64

#endif
