/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the programs and Python share: the maps' keys and values.
 *
 * moh_ebpf/layout.py is the Python side. tests/packets/test_layout.py compares the two field by
 * field; attach compares the names of the fields, and refuses to go on where they differ.
 */
#ifndef MOH_LAYOUT_H
#define MOH_LAYOUT_H

/*
 * A provider's media endpoint: the source of inbound RTP, the destination of UCM's. Or an endpoint
 * of UCM's: then it is one 8-byte word.
 */
struct endpoint {
	__be32 address;
	__be16 port;
	u16 zero;
};

/* Another host's way through the firewall's NAT, by a phantom port. */
struct anothers {
	__be32 address; /* the endpoint it has sent to */
	__be16 port;
	__be16 public_port;
};

enum state {
	STATE_MOH = 1, /* it sends to the phantom port: it is to hear hold music */
	STATE_TWO = 2, /* it sends to any other port: a two-way call */
};

/*
 * What the last packet of an endpoint said. One packet changes all of it together, so it
 * is stored and loaded as one 8-byte word: no CPU sees half of a change.
 */
struct heard {
	__be32 public_address; /* where the packet was sent to */
	__be16 public_port;
	u8 state;
	u8 wan; /* index of the WAN interface it came in by */
};

/*
 * One direction of a peer's RTP (not of its RTCP). `received` is 0 until two packets in sequence
 * have shown that it is RTP; without QUALITY, it goes no further than until the peer is told of.
 */
struct rtp {
	u64 arrival;	 /* when the last packet came, ns */
	u64 longest_gap; /* between two of one stream, ns */
	u64 jitter;	 /* 16 times the interarrival jitter (RFC 3550, A.8), ns */
	u64 began;	 /* the present stream */
	u64 timed;	 /* when the first packet with `timestamp` came */
	u32 timestamp;
	u32 first_timestamp;
	__be32 ssrc;
	__be32 odd_ssrc;   /* of a packet that did not fit */
	u16 odd_sequence;  /* which would follow it */
	u16 odd_datagrams; /* in it; 0: there is none */
	u32 odd_others;	   /* packets since, that did not fit either */
	u32 expected;	   /* packets of all streams, by their sequence numbers */
	u32 received;	   /* packets of all streams */
	u32 tick;	   /* ns, of the media clock; 0: not known yet */
	u16 last_sequence;
	u16 payload_type;
};

/*
 * A peer is a provider endpoint that we know. Times are ns of CLOCK_MONOTONIC, bytes are
 * those of whole IP packets. The inbound half is written by learn, the outbound half by
 * bypass and enforce.
 */
struct peer {
	u64 heard;     /* struct heard */
	u64 last_seen; /* the endpoint's last packet */
	u64 since;     /* the first packet of the present state */
	u64 told;      /* do readers know of it? UCM sends to it, or it is on hold; and it is RTP */
	u64 signalled; /* struct heard, by signalling; 0: it never said anything */
	u64 signalled_at;    /* when a message said so */
	u64 signalled_until; /* that it counts: the end of its lease, at the latest */
	u64 turned;	     /* `moved`, if it was heard in this call before; 0: it was not */
	u64 gainsaid;	     /* signalled_at of what RTP has shown to be out of date */
	u64 moved;	     /* when it last turned to another public address or port */
	__be32 moved_ssrc;   /* of the first packet there */
	u32 moved_sequence;
	u64 by_rtcp; /* struct heard, by the report that decided last; 0: none has since its RTP */
	u64 rtcp_at; /* when that report came */
	u64 longest_gap; /* the longest pause between two of its packets, in ns */
	u64 in_packets;
	u64 in_bytes;
	struct rtp in_rtp;

	u64 out_packets;
	u64 out_bytes;
	u64 out_last;	 /* the last packet sent to it; 0: none */
	u64 out_first;	 /* the first one in the present state; 0: none */
	u64 out_from;	 /* UCM's struct endpoint that sends to it in a call; 0: none known */
	u64 out_before;	 /* the one before that */
	u64 new_since;	 /* since when UCM has sent from others, not known to belong here yet */
	u64 new_last;	 /* the last packet from such a one */
	u64 new_held;	 /* packets of theirs that were dropped */
	u64 hop_checked; /* when the next hop was looked up, and HOP_SUM of its words */
	u64 hop_dst;	 /* struct hop_dst */
	u64 hop_src;	 /* struct hop_src */
	struct rtp out_rtp;
};

/*
 * A peer's next hop, in two words. `hop_checked` has a sum of both, so that no order of loads and
 * stores matters: a reader that sees words of two hops looks the hop up itself.
 */
struct hop_dst {
	u8 mac[6];
	u16 max_len; /* the longest IP packet found to fit the route's MTU */
};

struct hop_src {
	u8 mac[6];
	u8 heard; /* index of the WAN that the peer was heard on, for which this hop was found */
	u8 out;	  /* index of the WAN to leave by, plus 1: a word of 0 is no hop */
};

/* One per CPU. A name here is a name in `status --json`; moh_ebpf/counters.py says what each
 * counts.
 */
struct counters {
	u64 learned_moh;
	u64 learned_two;
	u64 moh_to_two;
	u64 two_to_moh;
	u64 learn_failed;
	u64 consumed;
	u64 rewritten;
	u64 bypassed;
	u64 passed_two;
	u64 passed_unnatted;
	u64 dropped_unidentified;
	u64 dropped_too_big;
	u64 dropped_failed;
	u64 left_to_stack;
	u64 routed_elsewhere;
	u64 passed_blind;
	u64 passed_unheard;
	u64 passed_no_rtp;
	u64 passed_anothers;
	u64 held_back;
	u64 fragments;
	u64 rtp_in_expected;
	u64 rtp_in_lost;
	u64 rtp_in_late;
	u64 rtp_out_expected;
	u64 rtp_out_lost;
	u64 rtp_out_late;
	u64 sip_flipped;
	u64 sip_restored;
	u64 sip_split;
	u64 sip_undirected;
	u64 events_unread;
};

/* UCM's RTP to an endpoint that is not heard: since when, until when, how much was dropped. */
struct waiting {
	u64 first;
	u64 last;
	u64 packets;
	u64 passed;  /* the first packet that passed all the same; 0: none */
	u64 flags;   /* WAITING_… */
	u64 from;    /* UCM's struct endpoint that sent last, RTP or what looks like it */
	__be32 ssrc; /* of its last packet */
	u16 next_sequence;
	u16 payload_type;
};

#define WAITING_TOLD 1	 /* readers know that it passes */
#define WAITING_RTCP 2	 /* it is of RTCP alone: no media wait */
#define WAITING_NO_RTP 4 /* the flow only looks like RTP */

/* What the last RTCP of an endpoint says of the RTP that it belongs to. */
struct report {
	u64 heard; /* struct heard: where it was sent to, and so the state */
	u64 at;	   /* ns of CLOCK_MONOTONIC */
};

/*
 * What signalling says of an endpoint: both sides have agreed in a session description that it is
 * sent to. User space alone writes it. `heard` is as if it had sent to where it was told to, with
 * NO_WAN. Texts end with zeros, if there is room; no program reads them.
 */
struct signalled {
	u64 heard;  /* struct heard */
	u64 from;   /* UCM's struct endpoint that sends to it in the call; 0: not known */
	u64 at;	    /* when a message said so */
	u64 until;  /* the end of its lease; both ns of CLOCK_MONOTONIC */
	u64 dialog; /* names its dialog, for user space */
	char call_id[128];
	char caller[32];
	char called[32];
};

/* What is known of a WAN. Times are ns of CLOCK_MONOTONIC, and some ms late; 0: never. */
struct wan {
	u64 learn_at;	 /* when learn last read an IPv4 packet to a public address */
	u64 open_at;	 /* when UCM's RTP last passed although its endpoint was not heard */
	u64 stale_from;	 /* since when it has passed without a pause because learn was stale */
	u64 blind_since; /* when learn last spoke before it fell silent; 0: it is not blind */
};

enum evidence {
	BY_RTP = 1,
	BY_RTCP = 2,
	BY_SIGNALLING = 3,
};

enum event_kind {
	EVENT_LEARNED = 1, /* an endpoint became known, or known again */
	EVENT_CHANGED,	   /* it went from the one state to the other */
	EVENT_MUSIC,	   /* on hold, it was sent the first packet of music */
	EVENT_UNHEARD,	   /* UCM's RTP to it passes from now on, although it is not heard */
	EVENT_BLIND,  /* of a WAN: learn is silent there, and UCM's RTP passes for that reason */
	EVENT_SEEING, /* of a WAN: learn speaks again */
	EVENT_UNSIGNALLED, /* signalling says nothing of an endpoint any more, and it is not heard
			    */
};

/* One record of the ring. All are of this size, so that a reader can tell how many it has missed.
 */
struct event {
	u64 time;	/* ns of CLOCK_MONOTONIC */
	u64 heard;	/* struct heard, as it is now */
	u64 lasted;	/* ns: the state before; music, unheard: since the first packet dropped */
	u64 dropped;	/* music, unheard: the packets dropped before it */
	__be32 address; /* the endpoint; of a WAN: 0 */
	__be16 port;
	u8 kind;
	u8 before;    /* enum state; 0: none */
	u64 evidence; /* enum evidence: by what it is known */
};

/* A provider network, as the kernel's LPM trie wants its keys. */
struct prefix {
	u32 length; /* bits */
	__be32 address;
};

#endif
