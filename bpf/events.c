/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What readers are told: changes of state, never packets; and the figures of those that they are
 * told of.
 */

static inline void tell(struct counters *count, struct event *event)
{
	/* Readers keep their own position, so each record wakes them. */
	if (events.ringbuf_output(event, sizeof(*event), BPF_RB_FORCE_WAKEUP))
		count->events_unread++;
}

static inline void tell_heard(struct packet *packet, struct endpoint endpoint, u8 kind,
			      struct heard heard, u8 before, u64 lasted, u8 evidence)
{
	struct event event = {
		.time = packet->now,
		.heard = heard_word(heard),
		.lasted = lasted,
		.address = endpoint.address,
		.port = endpoint.port,
		.kind = kind,
		.before = before,
		.evidence = evidence,
	};

	tell(packet->count, &event);
}

/* Of a WAN: nothing is told of an endpoint. */
static inline void tell_wan(struct counters *count, u8 kind, u8 index, u64 now, u64 lasted)
{
	struct event event = {
		.time = now,
		.heard = heard_word((struct heard){ .wan = index }),
		.lasted = lasted,
		.kind = kind,
	};

	tell(count, &event);
}

/* How long UCM's packets were held back, and how many, before the first one that goes out. */
static inline void tell_wait(struct event *event, struct peer *peer, struct waiting *waiting,
			     u64 now)
{
	if (peer->new_held && (s64)(now - peer->new_last) < (s64)LONGEST_PAUSE_NS) {
		event->lasted = elapsed(peer->new_since, now);
		event->dropped = peer->new_held;
	} else if (waiting && (s64)(now - waiting->last) < (s64)LONGEST_PAUSE_NS &&
		   waiting->packets) {
		event->lasted = elapsed(waiting->first, waiting->passed ?: now);
		event->dropped = waiting->packets;
	}
}

/* The first packet that goes out in the present state ends the wait. */
static inline void end_waiting(struct peer *peer, struct packet *packet, struct heard heard,
			       u8 evidence)
{
	struct endpoint endpoint = { .address = packet->daddr, .port = packet->dport };
	struct waiting *waiting = waiting_for.lookup(&endpoint);
	struct event event = {
		.time = packet->now,
		.heard = heard_word(heard),
		.address = packet->daddr,
		.port = packet->dport,
		.kind = EVENT_MUSIC,
		.before = heard.state,
		.evidence = evidence,
	};

	peer->out_first = packet->now;
	tell_wait(&event, peer, waiting, packet->now);
	peer->new_held = 0;
	/*
	 * A call that has passed before it was heard passes at once in its next pause, too. What it
	 * has lost does not count for the next hold.
	 */
	if (waiting && heard.state == STATE_TWO && waiting->passed)
		waiting->packets = 0;
	else if (waiting)
		waiting_for.delete(&endpoint);
	if (heard.state == STATE_MOH)
		tell(packet->count, &event);
}

static inline void count_learned(struct counters *count, u8 state)
{
	if (state == STATE_MOH)
		count->learned_moh++;
	else
		count->learned_two++;
}

static inline void count_change(struct counters *count, u8 state)
{
	if (state == STATE_MOH)
		count->two_to_moh++;
	else
		count->moh_to_two++;
}

static inline u32 lost_of(struct rtp *rtp)
{
	return rtp->expected > rtp->received ? rtp->expected - rtp->received : 0;
}

/* The sums over all streams are of those that readers are told of: anybody can send numbers. */
static inline void count_so_far(struct counters *count, struct peer *peer)
{
	if (!KEEPS_QUALITY)
		return;
	count->rtp_in_expected += peer->in_rtp.expected;
	count->rtp_in_lost += lost_of(&peer->in_rtp);
	count->rtp_out_expected += peer->out_rtp.expected;
	count->rtp_out_lost += lost_of(&peer->out_rtp);
}

/* Readers are told of it from now on. */
static inline void introduce(struct packet *packet, struct peer *peer, struct endpoint endpoint,
			     struct heard heard, u8 evidence)
{
	peer->told = 1;
	count_so_far(packet->count, peer);
	count_learned(packet->count, heard.state);
	tell_heard(packet, endpoint, EVENT_LEARNED, heard, 0, elapsed(peer->since, packet->now),
		   evidence);
}

/*
 * Readers are told of an endpoint that UCM sends to, and of one that sends a stream to the phantom
 * port, because a hold without music must be seen; of both only if it is RTP: two packets in
 * sequence, from either side, say so. What else teaches may be noise. Whom signalling names, they
 * are told of at once.
 */
static inline void tell_of(struct packet *packet, struct peer *peer, struct endpoint endpoint,
			   struct heard heard, u8 evidence)
{
	bool is_hold = heard.state == STATE_MOH && peer->in_rtp.received;
	bool is_call = peer->out_packets && (peer->in_rtp.received || peer->out_rtp.received);

	if (is_hold || is_call)
		introduce(packet, peer, endpoint, heard, evidence);
}

/* Is this RTP of which something is to be known still? */
static inline bool is_of_interest(struct peer *peer, struct packet *packet)
{
	return packet->has_rtp && (KEEPS_QUALITY || !peer->told);
}

/* A packet of several datagrams (GSO) has their number. */
static inline u32 datagrams(struct __sk_buff *skb)
{
	return skb->gso_segs ?: 1;
}

/* It is known as this from now on: readers are told, if they were told of it before. */
static inline void end_turn(struct packet *packet, struct peer *peer, struct endpoint endpoint,
			    struct turn *turn, struct heard heard, u8 evidence)
{
	if (turn->was_known && turn->before == heard.state)
		return;
	if (peer->told && turn->was_known)
		count_change(packet->count, heard.state);
	else if (peer->told)
		count_learned(packet->count, heard.state);
	if (peer->told)
		tell_heard(packet, endpoint, turn->was_known ? EVENT_CHANGED : EVENT_LEARNED, heard,
			   turn->before, turn->lasted, evidence);
	peer->since = packet->now;
	peer->out_first = 0;
}
