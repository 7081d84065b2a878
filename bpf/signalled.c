/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What signalling says of an endpoint, and whose word counts where its RTP says otherwise.
 * docs/evidence.md has the order of evidence as a table.
 */

/* What is known of a packet's destination. */
struct known {
	struct peer *peer; /* may be NULL where it is known by RTCP */
	struct heard heard;
	u64 at;			/* by RTCP: when the report came */
	u8 evidence;		/* enum evidence; 0: nothing is known, whatever the rest says */
	struct signalled *said; /* what decides, if its peer does not know that yet */
};

/* Does UCM send it from there? Its RTCP comes from there, or from the next port. */
static inline bool is_from(struct packet *packet, u64 from)
{
	u64 below = endpoint_word(packet->saddr, next_port(packet->sport, -1));

	return sender_of(packet) == from || (packet->is_rtcp && below == from);
}

static inline bool is_from_the_call(struct peer *peer, struct packet *packet)
{
	return is_from(packet, peer->out_from) || is_from(packet, peer->out_before);
}

/*
 * Signalling and RTP say two things of an endpoint: a provider has not turned yet, or never will.
 * UCM's port decides. What comes from a port of the call's goes as in a call, anything else as the
 * music of a hold, whichever of the two says so.
 */
static inline void weigh_signalling(struct known *known, struct packet *packet)
{
	struct heard said = heard_by_word(*(volatile u64 *)&known->peer->signalled);

	if (!said.state || said.state == known->heard.state ||
	    !is_signalled(known->peer, packet->now) ||
	    is_from_the_call(known->peer, packet) != (said.state == STATE_TWO))
		return;
	known->heard = said;
	known->evidence = BY_SIGNALLING;
}

/*
 * Where it is sent to, as far as its own packets have told: an address, the WAN and, if they were
 * of this call, a port that was moved; or as it was told before.
 */
static inline struct heard place_of(struct peer *peer, struct heard said, bool was_known)
{
	struct heard own = own_word(peer), before = heard_by_word(peer->signalled);

	if (!own.state || !is_public(own.public_address))
		own = before;
	else if (was_known && own.state == said.state)
		return own;
	if (own.state && is_public(own.public_address)) {
		said.public_address = own.public_address;
		said.wan = own.wan;
	}
	return said;
}

/* UCM's port is the call's, and no other one, if a message has told something new. */
static inline void note_port_of_the_call(struct peer *peer, struct signalled *said, bool is_change)
{
	if (!said->from || said->at == peer->signalled_at)
		return;
	if (!is_change && (peer->out_from == said->from || peer->out_before == said->from))
		return;
	peer->out_from = said->from;
	peer->out_before = 0;
}

/*
 * Signalling names the endpoint: its peer, who is made if need be, keeps that in mind. RTCP of
 * before says nothing any more.
 */
static inline struct peer *note_signalled(struct packet *packet, struct endpoint endpoint,
					  struct peer *peer, struct signalled *said, u32 unborn)
{
	struct heard heard = heard_by_word(said->heard);
	struct turn turn;

	if (!peer)
		peer = make_peer(endpoint, 0, packet->now - TIMEOUT_NS - LONGEST_PAUSE_NS,
				 packet->now, unborn);
	if (!peer)
		return NULL;
	turn = begin_turn(peer, packet->now);
	heard = place_of(peer, heard, turn.was_known);
	note_port_of_the_call(peer, said, turn.before != heard.state || !turn.was_known);
	peer->signalled_at = said->at;
	peer->signalled_until = said->until;
	*(volatile u64 *)&peer->signalled = heard_word(heard);
	peer->by_rtcp = 0;
	if (!turn.was_known && !peer->told)
		peer->since = packet->now;
	if (peer->told) {
		end_turn(packet, peer, endpoint, &turn, heard, BY_SIGNALLING);
		return peer;
	}
	introduce(packet, peer, endpoint, heard, BY_SIGNALLING);
	peer->since = packet->now;
	peer->out_first = 0;
	return peer;
}

/* What signalling says of an endpoint, whose peer may be NULL; NULL: nothing that counts. */
static inline struct signalled *signalled_now(struct endpoint *endpoint, struct peer *peer, u64 now)
{
#ifdef MAX_SIGNALLED
	struct signalled *said = signalled.lookup(endpoint);

	if (!said || (s64)(said->until - now) <= 0 || (peer && peer->gainsaid == said->at))
		return NULL;
	return said;
#else
	return NULL;
#endif
}

/*
 * An endpoint that signalling names, and that is not heard. Its peer may not know that yet: it was
 * evicted, or the programs were replaced.
 */
static inline bool is_signalled_to(struct known *known, struct endpoint endpoint,
				   struct packet *packet)
{
	struct peer *peer = known->peer;
	bool is_of_the_call;

	if (peer && is_signalled(peer, packet->now)) {
		known->heard = latest_of(peer, packet->now);
		is_of_the_call = is_from_the_call(peer, packet);
	} else {
		known->said = signalled_now(&endpoint, peer, packet->now);
		if (!known->said)
			return false;
		known->heard = heard_by_word(known->said->heard);
		is_of_the_call = is_from(packet, known->said->from);
	}
	/* A late packet of the call is no music. */
	if (is_of_the_call)
		known->heard.state = STATE_TWO;
	known->evidence = BY_SIGNALLING;
	return true;
}

/* Signalling decides about UCM's RTP, and its peer does not know that yet. */
static inline void decide_by_signalling(struct packet *packet, struct known *known)
{
	struct peer *peer =
		note_signalled(packet, endpoint_below(packet, 0), known->peer, known->said, UNBORN);

	known->peer = peer;
	if (peer && state_of(peer, packet->now) == known->heard.state)
		known->heard = latest_of(peer, packet->now);
}

/* Signalling says nothing any more: what its own packets say counts again, if they do. */
static inline void end_signalled(struct packet *packet, struct endpoint endpoint, struct peer *peer)
{
	struct heard before = latest_of(peer, packet->now);
	u64 lasted = elapsed(peer->since, packet->now);
	u8 state;

	peer->signalled_until = packet->now;
	state = state_of(peer, packet->now);
	if (is_live(peer, packet->now) && state != before.state) {
		count_change(packet->count, state);
		tell_heard(packet, endpoint, EVENT_CHANGED, heard_of(peer), before.state, lasted,
			   BY_RTP);
		peer->since = packet->now;
		peer->out_first = 0;
	}
	tell_heard(packet, endpoint, EVENT_UNSIGNALLED, before, before.state, lasted,
		   BY_SIGNALLING);
}

/*
 * User space has changed what signalling says of an endpoint, which it names by a test run of
 * learn's with a frame of its own: a peer is changed by the kernel alone, which counts in it.
 */
static inline int take_command(struct __sk_buff *skb)
{
	struct packet packet = { .skb = skb, .count = this_cpu_counters(), .now = clock_ns() };
	struct endpoint endpoint;
	struct signalled *said;
	struct peer *peer;

	if (!packet.count || bpf_skb_load_bytes(skb, ETH_HLEN, &endpoint, sizeof(endpoint)))
		return TC_ACT_UNSPEC;
	peer = peers.lookup(&endpoint);
	said = signalled_now(&endpoint, peer, packet.now);
	if (said)
		note_signalled(&packet, endpoint, peer, said, UNBORN_BY_COMMAND);
	else if (peer && is_signalled(peer, packet.now))
		end_signalled(&packet, endpoint, peer);
	return TC_ACT_SHOT;
}
