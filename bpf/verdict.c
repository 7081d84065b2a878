/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What enforce and bypass have in common: what may be dropped, and what is counted.
 */

/* What is not RTP, or goes elsewhere, passes where nothing is known of its destination. */
static inline bool may_be_dropped(enum kind kind, struct packet *packet)
{
	return kind == KIND_RTP && may_be_provider(packet->daddr);
}

/* Sets the packet's counters and time, and looks up what decides about it; false: it passes. */
static inline bool begin_judging(enum kind kind, struct packet *packet, struct known *known)
{
	packet->count = this_cpu_counters();
	if (!packet->count)
		return false;
	packet->now = clock_ns();
	*known = identify(packet);
	return known->evidence || may_be_dropped(kind, packet);
}

/* The rewrite ran out of memory: what is half changed must not leave. */
static inline int drop_failed(struct counters *count)
{
	count->dropped_failed++;
	return TC_ACT_SHOT;
}

/* A packet of a call's endpoint that may be of a hold: dropped, and told with the hold's music. */
static inline int hold_back(struct counters *count, struct peer *peer)
{
	count->held_back++;
	__sync_fetch_and_add(&peer->new_held, 1);
	return TC_ACT_SHOT;
}

static inline void note_outbound(struct peer *peer, struct packet *packet)
{
	struct progress progress;

	if (!is_of_interest(peer, packet))
		return;
	progress = note_rtp(&peer->out_rtp, &packet->rtp, datagrams(packet->skb), packet->now);
	if (!KEEPS_QUALITY || !peer->told)
		return;
	packet->count->rtp_out_expected += progress.expected;
	packet->count->rtp_out_lost += progress.lost;
	packet->count->rtp_out_late += progress.late;
}

static inline void count_outbound(struct known *known, struct packet *packet)
{
	struct peer *peer = known->peer;

	if (!peer)
		return;
	__sync_fetch_and_add(&peer->out_packets, 1);
	__sync_fetch_and_add(&peer->out_bytes, packet->bytes);
	peer->out_last = packet->now;
	note_outbound(peer, packet);
	if (!peer->told)
		tell_of(packet, peer, endpoint_below(packet, 0), known->heard, known->evidence);
	/* A late packet of the call begins no hold's music. */
	if (!peer->out_first && peer->told && !packet->is_rtcp &&
	    known->heard.state == state_of(peer, packet->now))
		end_waiting(peer, packet, known->heard, known->evidence);
}
