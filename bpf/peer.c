/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Endpoints: who may be one of the provider's, what is known of it, and for how long.
 */

/* Neither private (RFC 1918), loopback, link-local, multicast, reserved nor "this network". */
static inline bool is_global(__be32 address)
{
	u32 a = bpf_ntohl(address);

	return a >> 24 != 0 && a >> 24 != 10 && a >> 24 != 127 && a >> 20 != 0xac1 &&
	       a >> 16 != 0xc0a8 && a >> 16 != 0xa9fe && a < 0xe0000000;
}

/* May this address be a provider's? */
static inline bool may_teach(__be32 address)
{
#ifdef MAX_PROVIDERS
	struct prefix host = { .length = 32, .address = address };

	return providers.lookup(&host);
#else
	return is_global(address);
#endif
}

/*
 * UCM's RTP to a private address that is no provider's will never be identified, nor does it
 * need to be: that is a phone in another branch, behind an IPsec policy for instance.
 */
static inline bool may_be_provider(__be32 address)
{
	return is_global(address) || may_teach(address);
}

/* Is it of those packets that we decide about? */
static inline bool is_ours(struct packet *packet)
{
	u16 port = bpf_ntohs(packet->sport);

	return is_ucm(packet->saddr) && port >= RTP_PORT_MIN && port <= RTP_PORT_MAX;
}

static inline __be16 next_port(__be16 port, s32 step)
{
	return bpf_htons(bpf_ntohs(port) + step);
}

static inline struct endpoint source_of(struct packet *packet)
{
	return (struct endpoint){ .address = packet->saddr, .port = packet->sport };
}

/* The packet's destination, or the endpoint so many ports below it. */
static inline struct endpoint endpoint_below(struct packet *packet, s32 step)
{
	return (struct endpoint){ .address = packet->daddr,
				  .port = next_port(packet->dport, -step) };
}

static inline u64 endpoint_word(__be32 address, __be16 port)
{
	struct endpoint endpoint = { .address = address, .port = port };
	u64 word;

	__builtin_memcpy(&word, &endpoint, sizeof(word));
	return word;
}

/* UCM's endpoint that sends it, as one word. */
static inline u64 sender_of(struct packet *packet)
{
	return endpoint_word(packet->saddr, packet->sport);
}

static inline u64 heard_word(struct heard heard)
{
	u64 word;

	__builtin_memcpy(&word, &heard, sizeof(word));
	return word;
}

static inline struct heard heard_by_word(u64 word)
{
	struct heard heard;

	__builtin_memcpy(&heard, &word, sizeof(heard));
	return heard;
}

static inline struct heard heard_of(struct peer *peer)
{
	return heard_by_word(*(volatile u64 *)&peer->heard);
}

/* Signed: another CPU may have written last_seen after we read the clock. */
static inline bool is_live(struct peer *peer, u64 now)
{
	return (s64)(now - peer->last_seen) < (s64)TIMEOUT_NS;
}

static inline struct wan *wan_at(u32 index)
{
	return wans.lookup(&index);
}

static inline bool is_stale(struct wan *wan, u64 now, u64 limit)
{
	return (s64)(now - wan->learn_at) >= (s64)limit;
}

/* Was it heard too long ago to say where it would be heard now? */
static inline bool is_stale_peer(struct peer *peer, u64 now)
{
	return (s64)(now - peer->last_seen) >= (s64)LONGEST_DEAF_HOLD_NS;
}

/*
 * Is this the state of a hold that ended after learn did? A longer timeout than learn's silence
 * would keep such a state although nothing can end it.
 */
static inline bool is_deaf_hold(struct peer *peer, struct heard heard, u64 now)
{
#if TIMEOUT_NS > LONGEST_DEAF_HOLD_NS
	struct wan *wan = heard.state == STATE_MOH ? wan_at(heard.wan) : NULL;

	return wan && is_stale(wan, now, LONGEST_DEAF_HOLD_NS) && is_stale_peer(peer, now);
#else
	return false;
#endif
}

/* Does RTCP keep it known, as far as UCM's last packet to it has found? */
static inline bool is_kept_by_rtcp(struct peer *peer, u64 now)
{
#ifdef RTCP_TIMEOUT_NS
	return peer->by_rtcp && (s64)(now - peer->rtcp_at) < (s64)RTCP_TIMEOUT_NS;
#else
	return false;
#endif
}

/* Does signalling say what it is? */
static inline bool is_signalled(struct peer *peer, u64 now)
{
#ifdef MAX_SIGNALLED
	return peer->signalled && (s64)(peer->signalled_until - now) > 0;
#else
	return false;
#endif
}

/* What its own packets have said last; all 0: it was never heard. */
static inline struct heard own_word(struct peer *peer)
{
#ifdef RTCP_TIMEOUT_NS
	if (peer->by_rtcp)
		return heard_by_word(peer->by_rtcp);
#endif
	return heard_of(peer);
}

/* When it last said what is known of it; signalling says it until it ends. */
static inline u64 last_word(struct peer *peer)
{
#ifdef MAX_SIGNALLED
	if (!own_word(peer).state)
		return peer->signalled_until;
#endif
#ifdef RTCP_TIMEOUT_NS
	if (peer->by_rtcp)
		return peer->rtcp_at;
#endif
	return peer->last_seen;
}

/* When its own packets are forgotten, or were. */
static inline u64 own_until(struct peer *peer)
{
#ifdef RTCP_TIMEOUT_NS
	if (peer->by_rtcp)
		return peer->rtcp_at + RTCP_TIMEOUT_NS;
#endif
	return peer->last_seen + TIMEOUT_NS;
}

/* Does signalling have the last word of it, or had? */
static inline bool is_last_signalled(struct peer *peer, u64 now)
{
#ifdef MAX_SIGNALLED
	return is_signalled(peer, now) || !own_word(peer).state ||
	       (peer->signalled && (s64)(peer->signalled_until - own_until(peer)) > 0);
#else
	return false;
#endif
}

/* When it was forgotten, or will be. */
static inline u64 known_until(struct peer *peer, u64 now)
{
	return is_last_signalled(peer, now) ? peer->signalled_until : own_until(peer);
}

/* What is known of it, or was. Where signalling and its own packets agree, those say where it sends
 * to. */
static inline struct heard latest_of(struct peer *peer, u64 now)
{
	struct heard said = heard_by_word(peer->signalled), own = own_word(peer);
	bool is_place = own.state == said.state && is_public(own.public_address);

	return is_last_signalled(peer, now) && !is_place ? said : own;
}

static inline u8 state_of(struct peer *peer, u64 now)
{
	return latest_of(peer, now).state;
}

/* What is counted in a call, or up to a pause in it. */
static inline void count_anew(struct peer *peer, u64 now)
{
	if ((s64)(now - known_until(peer, now)) >= (s64)LONGEST_PAUSE_NS)
		peer->told = 0;
	peer->in_packets = 0;
	peer->in_bytes = 0;
	peer->out_packets = 0;
	peer->out_bytes = 0;
	peer->out_last = 0;
	peer->out_first = 0;
	peer->in_rtp = (struct rtp){};
	peer->out_rtp = (struct rtp){};
}

/* NULL: there is no memory. Another CPU may be first, and its peer is as good. */
static inline struct peer *make_peer(struct endpoint endpoint, u64 heard, u64 last_seen, u64 now,
				     u32 index)
{
	struct peer *fresh = unborn.lookup(&index);

	if (!fresh)
		return NULL;
	fresh->heard = heard;
	fresh->last_seen = last_seen;
	fresh->since = now;
	peers.insert(&endpoint, fresh);
	return peers.lookup(&endpoint);
}

/* What was known of a peer that is about to be known otherwise. */
struct turn {
	u8 before; /* enum state; 0: it was never known */
	bool was_known;
	u64 lasted;
};

/* Whoever was forgotten is counted anew. */
static inline struct turn begin_turn(struct peer *peer, u64 now)
{
	struct turn turn = {
		.before = state_of(peer, now),
		.was_known = (s64)(now - known_until(peer, now)) < (s64)GOES_ON_NS,
	};

	turn.lasted = elapsed(peer->since, turn.was_known ? now : last_word(peer));
	if (!turn.was_known)
		count_anew(peer, now);
	return turn;
}
