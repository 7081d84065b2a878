/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * UCM's RTP to an endpoint that is not heard is dropped until it is: but only while learn can hear
 * it, and not for ever.
 */

/*
 * The wait of UCM's for an endpoint; NULL: there is none, it was given up long ago, or the endpoint
 * has been heard since it began. If packets have passed, a call's does not begin anew: an endpoint
 * that is heard once in some seconds would have its call cut to pieces.
 */
static inline struct waiting *present_wait(struct endpoint *endpoint, u64 now)
{
	struct waiting *waiting = waiting_for.lookup(endpoint);
	struct peer *peer;

	if (!waiting || (s64)(now - waiting->last) > (s64)LONGEST_PAUSE_NS)
		return NULL;
	peer = peers.lookup(endpoint);
	if (!peer || (s64)(peer->last_seen - waiting->first) <= 0)
		return waiting;
	return waiting->passed && heard_of(peer).state == STATE_TWO ? waiting : NULL;
}

/*
 * The wait for the packet's endpoint. RTCP shares that of its RTP, which is to the same port or to
 * the one below; where no RTP is sent, it has one of its own. NULL: there is no memory for it.
 */
static inline struct waiting *wait_of(struct packet *packet)
{
	struct endpoint endpoint = endpoint_below(packet, 0);
	struct endpoint below = endpoint_below(packet, 1);
	struct waiting fresh = { .first = packet->now, .last = packet->now };
	struct waiting *waiting = packet->is_rtcp ? present_wait(&below, packet->now) : NULL;

	if (waiting)
		return waiting;
	waiting = present_wait(&endpoint, packet->now);
	if (!waiting) {
		fresh.flags = packet->is_rtcp ? WAITING_RTCP : 0;
		waiting_for.update(&endpoint, &fresh);
		waiting = waiting_for.lookup(&endpoint);
	}
	if (!waiting)
		return NULL;
	if (!packet->is_rtcp)
		waiting->flags &= ~(u64)WAITING_RTCP;
	if (!packet->is_rtcp || waiting->flags & WAITING_RTCP)
		waiting->last = packet->now;
	return waiting;
}

/* What may become a hold is held back for a while, unless the WAN is known to be blind. */
static inline bool is_held_back(struct wan *wan, u64 waited)
{
	return waited <= HELD_BACK_NS && !wan->blind_since;
}

/*
 * The WAN that is stale and on which this endpoint would be heard; NO_WAN: none is. The one that
 * the peer was heard on of late decides, whatever WAN its route leaves by (asymmetric uplinks). If
 * the peer was live when learn last spoke there, then it fell silent with learn, and a two-way call
 * goes on at once.
 */
static inline u8 stale_wan(struct peer *peer, u8 by_route, u64 waited, u64 now)
{
	struct heard heard;
	struct wan *wan;

	if (peer && state_of(peer, now)) {
		heard = latest_of(peer, now);
		if (heard.wan == NO_WAN)
			heard.wan = by_route;
		wan = wan_at(heard.wan);
		if (wan && !is_stale(wan, now, STALE_NS) &&
		    (s64)(now - last_word(peer)) < (s64)LONGEST_DEAF_HOLD_NS)
			return NO_WAN;
		if (wan && is_stale(wan, now, STALE_NS) &&
		    (s64)(wan->learn_at - known_until(peer, now)) < 0 &&
		    (heard.state == STATE_TWO || !is_held_back(wan, waited)))
			return heard.wan;
	}
	wan = wan_at(by_route);
	return wan && is_stale(wan, now, STALE_NS) && !is_held_back(wan, waited) ? by_route
										 : NO_WAN;
}

static inline void note_open(u8 index, u64 now)
{
	struct wan *wan = wan_at(index);

	if (wan && (s64)(now - wan->open_at) >= (s64)WAN_STEP_NS)
		wan->open_at = now;
}

/*
 * UCM's RTP passes because learn is stale there. If that goes on, the WAN is blind. A pause of a
 * far end on a quiet WAN, or the time before UCM began to send, is no blindness.
 */
static inline void note_stale(struct counters *count, u8 index, u64 now)
{
	struct wan *wan = wan_at(index);

	if (!wan || wan->blind_since)
		return;
	if ((s64)(now - wan->open_at) >= (s64)OPEN_PAUSE_NS ||
	    (s64)(wan->learn_at - wan->stale_from) > 0)
		wan->stale_from = now;
	if ((s64)(now - wan->stale_from) < (s64)BLIND_NS)
		return;
	/* Learn may never have spoken. */
	wan->blind_since = wan->learn_at ?: wan->stale_from;
	tell_wan(count, EVENT_BLIND, index, now, elapsed(wan->blind_since, now));
}

static inline void tell_unheard(struct packet *packet, struct waiting *waiting, struct peer *peer,
				u8 index)
{
	struct heard heard = { .wan = index };
	struct event event = {
		.time = packet->now,
		.lasted = elapsed(waiting->first, packet->now),
		.dropped = waiting->packets,
		.address = packet->daddr,
		.port = packet->dport,
		.kind = EVENT_UNHEARD,
	};

	if (peer && state_of(peer, packet->now)) {
		heard = latest_of(peer, packet->now);
		event.before = heard.state;
		if (heard.wan == NO_WAN)
			heard.wan = index;
	}
	event.heard = heard_word(heard);
	tell(packet->count, &event);
}

/* Has UCM sent to this endpoint for longer than the engineer's patience? */
static inline bool is_patience_over(struct waiting *waiting, u64 now)
{
#ifdef PATIENCE_NS
	return !PATIENCE_NS || (waiting && elapsed(waiting->first, now) >= PATIENCE_NS);
#else
	return false;
#endif
}

/* With no patience at all nobody waits, and there is nothing to tell of. */
static inline bool is_to_be_told(struct packet *packet, struct waiting *waiting)
{
#if defined(PATIENCE_NS) && PATIENCE_NS
	return waiting && !(waiting->flags & WAITING_TOLD) && !packet->is_rtcp;
#else
	return false;
#endif
}

/*
 * Is it of a flow that only looks like RTP? A fax over UDP (UDPTL) counts its packets in its first
 * two bytes, and looks like RTP for a quarter of them. Its next packet does not go on as RTP does;
 * which the first one cannot show.
 */
static inline bool is_no_rtp(struct waiting *waiting, struct packet *packet)
{
	u16 sequence = bpf_ntohs(packet->rtp.sequence);
	bool is_next = sequence == waiting->next_sequence;
	bool is_same = packet->rtp.ssrc == waiting->ssrc;
	bool is_again = (u16)(sequence + 1) == waiting->next_sequence &&
			payload_type(&packet->rtp) != waiting->payload_type;

	if (waiting->from != sender_of(packet) || (is_same && is_next))
		waiting->flags &= ~(u64)WAITING_NO_RTP;
	else if (is_same ? is_again : !is_next)
		waiting->flags |= WAITING_NO_RTP;
	waiting->from = sender_of(packet);
	waiting->ssrc = packet->rtp.ssrc;
	waiting->next_sequence = sequence + datagrams(packet->skb);
	waiting->payload_type = payload_type(&packet->rtp);
	return waiting->flags & WAITING_NO_RTP;
}

/*
 * UCM's RTP that would leave by the WAN of this index, to an endpoint that is not heard. `counts`:
 * bypass, which judges before enforce, has not counted it.
 */
static inline int judge_unheard(struct packet *packet, u8 index, bool counts)
{
	struct endpoint endpoint = endpoint_below(packet, 0);
	struct endpoint below = endpoint_below(packet, 1);
	struct waiting *waiting = wait_of(packet);
	u64 waited = waiting ? elapsed(waiting->first, packet->now) : 0;
	struct peer *peer = peers.lookup(&endpoint);
	u8 stale;

	/* RTCP whose endpoint says nothing itself is judged as the RTP one port below. */
	if (packet->is_rtcp && (!peer || !state_of(peer, packet->now)))
		peer = peers.lookup(&below);
	stale = stale_wan(peer, index, waited, packet->now);
	if (waiting && packet->has_rtp && is_no_rtp(waiting, packet)) {
		packet->count->passed_no_rtp += counts;
		return TC_ACT_UNSPEC;
	}
	if (stale != NO_WAN) {
		note_stale(packet->count, stale, packet->now);
		note_open(stale, packet->now);
		packet->count->passed_blind += counts;
	} else if (is_patience_over(waiting, packet->now)) {
		if (is_to_be_told(packet, waiting)) {
			waiting->flags |= WAITING_TOLD;
			tell_unheard(packet, waiting, peer, index);
		}
		note_open(index, packet->now);
		packet->count->passed_unheard += counts;
	} else {
		if (waiting && !packet->is_rtcp)
			__sync_fetch_and_add(&waiting->packets, 1);
		packet->count->dropped_unidentified++;
		return TC_ACT_SHOT;
	}
	if (waiting && !waiting->passed)
		waiting->passed = packet->now;
	return TC_ACT_UNSPEC;
}
