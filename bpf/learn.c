/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * learn, at the WAN's ingress: what the provider sends says what it expects.
 */

static inline void note_inbound(struct peer *peer, struct packet *packet)
{
	struct progress progress;

	if (!is_of_interest(peer, packet))
		return;
	progress = note_rtp(&peer->in_rtp, &packet->rtp, datagrams(packet->skb), packet->now);
	if (!KEEPS_QUALITY || !peer->told)
		return;
	packet->count->rtp_in_expected += progress.expected;
	packet->count->rtp_in_lost += progress.lost;
	packet->count->rtp_in_late += progress.late;
}

static inline void note_gap(struct peer *peer, u64 now)
{
	s64 gap = now - peer->last_seen;

	if (gap > (s64)peer->longest_gap && gap < (s64)LONGEST_PAUSE_NS)
		peer->longest_gap = gap;
}

/* Does it send to another public address or port than before? By which WAN is no matter. */
static inline bool has_turned(struct peer *peer, struct heard heard)
{
	struct heard before = heard_of(peer);

	return before.public_address != heard.public_address ||
	       before.public_port != heard.public_port;
}

/*
 * An endpoint that was forgotten and speaks again is new. Its longest gap is kept, and, if it
 * speaks as before, UCM's ports: then it may be the same call. After a short pause, readers are
 * told at once.
 */
static inline void relearn(struct peer *peer, struct packet *packet, struct heard heard)
{
	u64 lasted = elapsed(peer->since, last_word(peer));
	u8 before = state_of(peer, packet->now);

	count_anew(peer, packet->now);
	if (peer->told) {
		count_learned(packet->count, heard.state);
		tell_heard(packet, source_of(packet), EVENT_LEARNED, heard, before, lasted, BY_RTP);
	}
	if (has_turned(peer, heard)) {
		peer->out_from = 0;
		peer->out_before = 0;
	}
	peer->since = packet->now;
	/* In this order: a reader always finds one of the two. */
	*(volatile u64 *)&peer->heard = heard_word(heard);
	*(volatile u64 *)&peer->by_rtcp = 0;
}

static inline void change_state(struct peer *peer, struct packet *packet, struct heard heard)
{
	u8 after, before = state_of(peer, packet->now);

	if (has_turned(peer, heard)) {
		peer->moved = packet->now;
		peer->turned = peer->in_packets ? packet->now : 0;
		peer->moved_ssrc = packet->rtp.ssrc;
		peer->moved_sequence = bpf_ntohs(packet->rtp.sequence);
	}
	*(volatile u64 *)&peer->heard = heard_word(heard);
	*(volatile u64 *)&peer->by_rtcp = 0;
	after = state_of(peer, packet->now);
	if (before == after)
		return;
	if (peer->told) {
		count_change(packet->count, after);
		tell_heard(packet, source_of(packet), EVENT_CHANGED, heard, before,
			   elapsed(peer->since, packet->now), BY_RTP);
	}
	peer->since = packet->now;
	peer->out_first = 0;
}

/*
 * The provider has turned to another port, and a packet comes that it sent before: two flows may
 * take two ways. It says nothing any more.
 */
static inline bool is_overtaken(struct peer *peer, struct packet *packet)
{
	u16 behind = peer->moved_sequence - bpf_ntohs(packet->rtp.sequence);

	return (s64)(packet->now - peer->moved) < (s64)NEW_SOURCE_NS &&
	       peer->moved_ssrc == packet->rtp.ssrc && behind && behind < MAX_MISORDER;
}

/*
 * Is a message missed? The endpoint was heard in this call, has turned since what signalling says,
 * though not at once, and has gone on there: two packets of one stream. One that goes on as before
 * says nothing new, and neither does a first word, which may be older than the message.
 */
static inline bool gainsays_signalling(struct peer *peer, struct packet *packet)
{
	u16 ahead = bpf_ntohs(packet->rtp.sequence) - peer->moved_sequence;

	return is_signalled(peer, packet->now) &&
	       (s64)(peer->turned - peer->signalled_at) >= (s64)TURNS_WITHIN_NS &&
	       peer->moved_ssrc == packet->rtp.ssrc && ahead && ahead < MAX_MISORDER;
}

/* Signalling says otherwise than the endpoint sends. If it is out of date, RTP counts. */
static inline void doubt_signalling(struct peer *peer, struct packet *packet, struct heard heard)
{
	u64 lasted = elapsed(peer->since, packet->now);
	u8 before = heard_by_word(peer->signalled).state;

	if (!gainsays_signalling(peer, packet))
		return;
	peer->gainsaid = peer->signalled_at;
	peer->signalled_until = packet->now;
	if (peer->told) {
		count_change(packet->count, heard.state);
		tell_heard(packet, source_of(packet), EVENT_CHANGED, heard, before, lasted, BY_RTP);
	}
	peer->since = packet->now;
	peer->out_first = 0;
}

/*
 * last_seen is written last: until then, another CPU holds a forgotten peer for forgotten, if the
 * machine keeps the order of stores, as x86 does. On arm64 it may for a moment take what the
 * endpoint said before it was forgotten.
 */
static inline void hear_again(struct peer *peer, struct packet *packet, struct heard heard)
{
	note_gap(peer, packet->now);
	if (!is_live(peer, packet->now) && !is_kept_by_rtcp(peer, packet->now) &&
	    !is_signalled(peer, packet->now))
		relearn(peer, packet, heard);
	else if ((peer->heard != heard_word(heard) || peer->by_rtcp) && !is_overtaken(peer, packet))
		change_state(peer, packet, heard);
	else if (peer->signalled && heard_by_word(peer->signalled).state != heard.state)
		doubt_signalling(peer, packet, heard);
	__sync_fetch_and_add(&peer->in_packets, 1);
	__sync_fetch_and_add(&peer->in_bytes, packet->bytes);
	note_inbound(peer, packet);
	if (!peer->told)
		tell_of(packet, peer, source_of(packet), heard_of(peer), BY_RTP);
	*(volatile u64 *)&peer->last_seen = packet->now;
}

static inline void hear(struct packet *packet, struct heard heard)
{
	struct endpoint endpoint = source_of(packet);
	struct peer *peer = peers.lookup(&endpoint);
	struct signalled *said;

	if (!peer) {
		/* Whom signalling names may have been evicted. */
		said = signalled_now(&endpoint, NULL, packet->now);
		if (said)
			peer = note_signalled(packet, endpoint, NULL, said, UNBORN);
	}
	if (!peer)
		peer = make_peer(endpoint, heard_word(heard), packet->now, packet->now, UNBORN);
	if (peer)
		hear_again(peer, packet, heard);
	else
		packet->count->learn_failed++;
}

/* RTCP never contradicts RTP that is heard, so it has a map of its own. */
static inline void hear_report(struct packet *packet, struct heard heard)
{
#ifdef RTCP_TIMEOUT_NS
	struct endpoint endpoint = source_of(packet);
	struct report report = { .heard = heard_word(heard), .at = packet->now };

	reports.update(&endpoint, &report);
#endif
}

/*
 * Learn has read a packet to a public address on this WAN, of whatever protocol: so it sees what
 * comes in, and the verdicts may rely on it.
 */
static inline void note_learning(struct __sk_buff *skb, u64 now)
{
	u8 index = wan_index(skb, skb->ifindex);
	struct wan *wan = wan_at(index);
	struct counters *count;

	if (!wan || !is_stale(wan, now, WAN_STEP_NS))
		return;
	wan->learn_at = now;
	if (!wan->blind_since)
		return;
	count = this_cpu_counters();
	if (count)
		tell_wan(count, EVENT_SEEING, index, now, elapsed(wan->blind_since, now));
	wan->blind_since = 0;
}

/* What is said where this is sent: who is on hold is to send to a phantom port. */
static inline struct heard heard_from(struct packet *packet)
{
	return (struct heard){
		.public_address = packet->daddr,
		.public_port = packet->dport,
		.state = is_phantom(packet->dport) ? STATE_MOH : STATE_TWO,
		.wan = wan_index(packet->skb, packet->skb->ifindex),
	};
}

/*
 * WAN ingress. RTP to a public address teaches the state of its source. Nobody listens on the
 * phantom ports, and an ICMP port unreachable can make a provider hang up: consumed.
 */
int moh_learn(struct __sk_buff *skb)
{
	struct packet packet;
	enum kind kind;
	struct heard heard;

#ifdef MAX_SIGNALLED
	if (skb->ifindex == LOOPBACK)
		return take_command(skb);
#endif
	kind = read_packet(skb, &packet);
	if (kind != KIND_RTP) {
		if (is_public(packet.daddr))
			note_learning(skb, tick_ns());
		if (kind == KIND_FRAGMENT && is_public(packet.daddr) && may_teach(packet.saddr))
			count_fragment();
		restore_hold(skb);
		return TC_ACT_UNSPEC;
	}
	if (!is_public(packet.daddr))
		return TC_ACT_UNSPEC;
	packet.now = clock_ns();
	note_learning(skb, packet.now);
	packet.count = this_cpu_counters();
	if (!packet.count || !may_teach(packet.saddr))
		return TC_ACT_UNSPEC;

	heard = heard_from(&packet);
	if (heard.state == STATE_MOH && is_anothers(&packet)) {
		packet.count->passed_anothers++;
		return TC_ACT_UNSPEC;
	}
	if (packet.is_rtcp)
		hear_report(&packet, heard);
	else
		hear(&packet, heard);
	if (heard.state != STATE_MOH)
		return TC_ACT_UNSPEC;
	packet.count->consumed++;
	return TC_ACT_SHOT;
}
