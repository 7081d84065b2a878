/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is known of the destination of a packet of UCM's, by its RTP, signalling or its RTCP.
 */

/* An endpoint that is known by its RTP and not forgotten, and what it said last. */
static inline bool is_heard(struct known *known, struct endpoint endpoint, struct packet *packet)
{
	known->peer = peers.lookup(&endpoint);
	if (!known->peer || !is_live(known->peer, packet->now))
		return false;
	known->heard = heard_of(known->peer);
	if (is_deaf_hold(known->peer, known->heard, packet->now))
		return false;
	known->evidence = BY_RTP;
	weigh_signalling(known, packet);
	return true;
}

/* One that is known by its RTP or by signalling, which its RTCP cannot gainsay. */
static inline bool is_known(struct known *known, struct endpoint endpoint, struct packet *packet)
{
	return is_heard(known, endpoint, packet) || is_signalled_to(known, endpoint, packet);
}

#ifdef RTCP_TIMEOUT_NS
static inline bool is_reported(struct known *known, struct endpoint endpoint, u64 now)
{
	struct report *report = reports.lookup(&endpoint);

	if (!report || (s64)(now - report->at) >= (s64)RTCP_TIMEOUT_NS)
		return false;
	known->heard = heard_by_word(*(volatile u64 *)&report->heard);
	known->at = report->at;
	known->evidence = BY_RTCP;
	return true;
}

/* The port of RTP beside that of RTCP, which a phantom port's own number tells, or the report's. */
static inline __be16 rtp_port(struct heard heard, bool is_muxed)
{
	u16 port = bpf_ntohs(heard.public_port);

	if (heard.state == STATE_MOH)
		return bpf_htons(port - ((port - MOH_PORT) & 1));
	return bpf_htons(is_muxed ? port : port - 1);
}

/* An endpoint with RTP of its own, or with reports of its own that count, has rtcp-mux: its reports
 * are not those of the port below. */
static inline bool has_own_rtp(struct endpoint endpoint, u64 now)
{
	struct peer *peer = peers.lookup(&endpoint);

	return peer && peer->told && own_word(peer).state &&
	       (is_kept_by_rtcp(peer, now) || (s64)(now - peer->last_seen) < (s64)RTCP_TIMEOUT_NS);
}

/*
 * May a report be the last one of a call that is over? UCM has sent nothing to this endpoint since,
 * and the provider may have the same port for the next call.
 */
static inline bool is_of_another_call(struct known *known, u64 now)
{
	struct peer *peer = known->peer;

	return peer && peer->out_last && (s64)(now - peer->out_last) >= (s64)CALL_OVER_NS &&
	       (s64)(known->at - peer->out_last) <= (s64)LAST_REPORT_NS;
}

/* The later one of the endpoint's own report and that of the port above. */
static inline void find_report(struct known *known, struct packet *packet)
{
	struct endpoint above = endpoint_below(packet, -1);
	struct known own = { .peer = known->peer };
	bool is_muxed = is_reported(&own, endpoint_below(packet, 0), packet->now);

	if (is_reported(known, above, packet->now) && !has_own_rtp(above, packet->now) &&
	    (!is_muxed || (s64)(known->at - own.at) >= 0)) {
		known->heard.public_port = rtp_port(known->heard, false);
	} else {
		*known = own;
		known->heard.public_port = rtp_port(known->heard, true);
	}
}

/*
 * What RTCP says of an endpoint whose RTP is not heard. RTP that came later and says otherwise has
 * the last word. If it says the same, the report keeps it.
 */
static inline void ask_reports(struct known *known, struct packet *packet)
{
	struct peer *peer = known->peer;

	find_report(known, packet);
	if (!known->evidence)
		return;
	/* A report of before the end of what signalling has said is of that call. */
	if (is_of_another_call(known, packet->now) ||
	    (peer && peer->signalled && (s64)(known->at - peer->signalled_until) <= 0))
		known->evidence = 0;
	if (!peer || (s64)(known->at - peer->last_seen) > 0)
		return;
	if (heard_of(peer).state != known->heard.state)
		known->evidence = 0;
	known->heard = heard_of(peer);
}
#else
static inline bool is_reported(struct known *known, struct endpoint endpoint, u64 now)
{
	return false;
}

static inline bool has_own_rtp(struct endpoint endpoint, u64 now)
{
	return false;
}

static inline void ask_reports(struct known *known, struct packet *packet)
{
}
#endif

/*
 * RTCP goes where its RTP does, to the same port or to the next, from the same port of ours or from
 * the next. Where RTP is not heard, it goes as the endpoint's own RTCP has come, and counts for the
 * peer that has its RTP.
 */
static inline void know_rtcp(struct known *known, struct packet *packet)
{
	if (!has_own_rtp(endpoint_below(packet, 0), packet->now) &&
	    is_known(known, endpoint_below(packet, 1), packet))
		known->heard.public_port = next_port(known->heard.public_port, 1);
	else
		is_reported(known, endpoint_below(packet, 0), packet->now);
}

/*
 * May an endpoint that RTP says to be in a call have been put on hold since its last RTP? UCM sends
 * from another port than the endpoint sends to, or RTCP has said so.
 */
static inline bool is_in_doubt(struct known *known, struct packet *packet)
{
	if (known->peer->by_rtcp)
		return true;
	return known->heard.state == STATE_TWO && packet->has_rtp &&
	       packet->sport != known->heard.public_port;
}

/* A report between two packets of a call is late, and says nothing; nor against signalling. */
static inline bool needs_no_report(struct known *known, struct packet *packet)
{
	return !is_in_doubt(known, packet) || is_signalled(known->peer, packet->now) ||
	       (s64)(packet->now - known->peer->last_seen) < (s64)GOES_ON_NS;
}

static inline struct known destination(struct packet *packet)
{
	struct known known = {}, by_rtcp;
	bool heard = is_known(&known, endpoint_below(packet, 0), packet);

	if (packet->is_rtcp) {
		if (!heard)
			know_rtcp(&known, packet);
		return known;
	}
	if (heard && (known.evidence == BY_SIGNALLING || needs_no_report(&known, packet)))
		return known;
	by_rtcp = (struct known){ .peer = known.peer };
	ask_reports(&by_rtcp, packet);
	/* A call that is heard is on hold by now, if anything has changed. */
	return !heard || (by_rtcp.evidence && by_rtcp.heard.state == STATE_MOH) ? by_rtcp : known;
}

#ifdef RTCP_TIMEOUT_NS
/* RTCP keeps known, or makes known again, whom RTP had forgotten by now. */
static inline void change_by_rtcp(struct peer *peer, struct packet *packet, struct known *known)
{
	struct turn turn = begin_turn(peer, packet->now);

	peer->by_rtcp = heard_word(known->heard);
	end_turn(packet, peer, endpoint_below(packet, 0), &turn, known->heard, BY_RTCP);
}

/*
 * RTCP decides about UCM's RTP: its peer keeps that in mind, for readers. One that was never heard
 * is made here. Its last_seen is earlier than the report, and never live.
 */
static inline void note_by_rtcp(struct packet *packet, struct known *known)
{
	struct peer *peer = known->peer;

	if (!peer)
		peer = make_peer(endpoint_below(packet, 0), 0,
				 known->at - TIMEOUT_NS - LONGEST_PAUSE_NS, packet->now, UNBORN);
	known->peer = peer;
	if (!peer)
		return;
	if (!is_kept_by_rtcp(peer, packet->now) || peer->by_rtcp != heard_word(known->heard))
		change_by_rtcp(peer, packet, known);
	peer->rtcp_at = known->at;
}

/* A call that is known by RTCP has the port that it had, or that the report is of; not a new one.
 */
static inline bool is_of_the_report(struct known *known, struct packet *packet)
{
	return known->heard.state == STATE_MOH || packet->sport == known->heard.public_port ||
	       (known->peer && is_known_source(known->peer, packet));
}

static inline void decide_by_rtcp(struct packet *packet, struct known *known)
{
	if (is_of_the_report(known, packet))
		note_by_rtcp(packet, known);
	else
		known->evidence = 0;
}
#else
static inline void decide_by_rtcp(struct packet *packet, struct known *known)
{
}
#endif

/* What decides about a packet of UCM's. */
static inline struct known identify(struct packet *packet)
{
	struct known known = destination(packet);

	if (packet->is_rtcp)
		return known;
	if (known.evidence == BY_RTCP)
		decide_by_rtcp(packet, &known);
	else if (known.said)
		decide_by_signalling(packet, &known);
	return known;
}
