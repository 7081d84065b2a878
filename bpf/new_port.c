/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * UCM's source port: it takes a new one for every hold, and for the call that goes on.
 */

/*
 * RTP from a port that is not known as the call's waits, but not for long: all such ports of an
 * endpoint together wait NEW_SOURCE_NS, until none has sent for twice as long. Nor does any wait
 * where learn cannot hear what it waits for.
 */
static inline bool is_to_wait(struct peer *peer, struct packet *packet, struct heard heard)
{
	struct wan *wan;

	if (packet->sport == heard.public_port ||
	    (s64)(packet->now - peer->moved) < (s64)NEW_SOURCE_NS)
		return false;
	wan = wan_at(heard.wan);
	if (wan && is_stale(wan, packet->now, STALE_NS))
		return false;
	if ((s64)(packet->now - peer->new_last) >= 2 * (s64)NEW_SOURCE_NS) {
		peer->new_since = packet->now;
		peer->new_held = 0;
	}
	peer->new_last = packet->now;
	return (s64)(packet->now - peer->new_since) < (s64)NEW_SOURCE_NS;
}

/* Have packets from this port passed before the endpoint was heard? Then they pass now, too. */
static inline bool has_passed_unheard(struct packet *packet)
{
	struct endpoint endpoint = endpoint_below(packet, 0);
	struct waiting *waiting = waiting_for.lookup(&endpoint);

	return waiting && waiting->passed && waiting->from == sender_of(packet) &&
	       (s64)(packet->now - waiting->last) < (s64)LONGEST_PAUSE_NS;
}

/* UCM sends from there now. The port before stays known: two streams to one endpoint take turns. */
static inline void note_sender(struct peer *peer, struct packet *packet)
{
	peer->out_before = peer->out_from;
	peer->out_from = sender_of(packet);
}

/*
 * RTP to an endpoint in a call, from another port of UCM's than before: is it the call's? It may be
 * the music of a hold that the provider does not know of yet. It is the call's if the provider
 * sends to this very port, or has turned to another one than before; or if it goes on for a while.
 */
static inline bool is_of_the_call(struct peer *peer, struct packet *packet, struct heard heard)
{
	u64 from = sender_of(packet);

	if (peer->out_from == from || !packet->has_rtp)
		return true;
	if (peer->out_before != from) {
		if (!has_passed_unheard(packet) && is_to_wait(peer, packet, heard))
			return false;
		/* What a port of the call has waited does not count for the next hold. */
		peer->new_held = 0;
	}
	note_sender(peer, packet);
	return true;
}

/*
 * Has UCM sent from there in this call? A port that had to wait is the call's only if the endpoint
 * has been heard since: otherwise the call may have been put on hold.
 */
static inline bool is_known_source(struct peer *peer, struct packet *packet)
{
	u64 from = sender_of(packet);

	return (peer->out_from == from || peer->out_before == from) &&
	       (s64)(peer->last_seen - peer->new_since) >= (s64)NEW_SOURCE_NS;
}
