/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The three tc programs and their maps. docs/packet-flow.md follows a packet through them.
 *
 *   learn    WAN ingress   what the provider sends says who is in hold music (MOH) or in a
 *                          two-way call (TWO)
 *   enforce  WAN egress    UCM's RTP: MOH rewritten, TWO passed, neither: dropped while learn
 *                          can hear it, and not for longer than the patience
 *   bypass   LAN ingress   the same verdict before netfilter; hold music goes straight out
 *
 * What is not clearly ours gets TC_ACT_UNSPEC: untouched, and other filters still see it.
 *
 * BCC turns map accesses into helper calls in this file only: the headers hold pure functions.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "config.h"
#include "layout.h"
#include "packet.h"
#include "rewrite.h"
#include "forward.h"
#include "rtp.h"
#ifdef IS_SIP_PORT
#include "sip.h"
#endif

#ifdef COARSE_CLOCK
static u64 (*coarse_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
#endif

BPF_TABLE("lru_hash", struct endpoint, struct peer, peers, MAX_PEERS + LRU_SPARE);
BPF_TABLE("percpu_array", u32, struct counters, counters, 1);
/* A peer to be: too large for the stack. What is not set in it is 0. */
BPF_TABLE("percpu_array", u32, struct peer, unborn, 1);

/* What happened, for any number of readers; see moh_ebpf/events.py. */
BPF_RINGBUF_OUTPUT(events, EVENTS_PAGES);
/* Endpoints that UCM sends to and that are not heard. */
BPF_TABLE("lru_hash", struct endpoint, struct waiting, waiting_for, 16384 + LRU_SPARE);
/* Other hosts' connections that our phantom ports are in the way of: when each was used last. */
BPF_TABLE("lru_hash", struct anothers, u64, others, 4096 + LRU_SPARE);
#ifdef RTCP_TIMEOUT_NS
/* By their source: what RTCP says where RTP says nothing. */
BPF_TABLE("lru_hash", struct endpoint, struct report, reports, MAX_PEERS + LRU_SPARE);
#endif
/* By the WANs' order: does learn see anything there? */
BPF_TABLE("array", u32, struct wan, wans, MAX_WANS);

/* JSON for `status` and `detach`. No program reads it; it lives as long as they do. */
struct settings {
	char json[SETTINGS_SIZE];
};
BPF_TABLE("array", u32, struct settings, settings, 1);

#ifdef MAX_PROVIDERS
BPF_LPM_TRIE(providers, struct prefix, u8, MAX_PROVIDERS);
#endif

#ifdef IS_SIP_PORT
/* Dialogs, by a hash of their Call-ID, in which UCM holds and the provider was told otherwise: when
 * it was told last, in ns. */
BPF_TABLE("lru_hash", u64, u64, dialogs, 16384 + LRU_SPARE);
BPF_TABLE("array", u32, struct sip_holds, holding, 1);
#ifdef MAX_SIP_FROM
BPF_LPM_TRIE(sip_networks, struct prefix, u8, MAX_SIP_FROM);
#endif
/* TCP segments that go on with a message, if the one before them was seen. Each direction has maps
 * of its own: what anybody can send evicts nothing of what UCM has sent. */
BPF_TABLE("lru_hash", struct sip_segment, struct sip_context, segments, 4096 + LRU_SPARE);
BPF_TABLE("lru_hash", struct sip_segment, struct sip_context, segments_back, 4096 + LRU_SPARE);
/* Where in a TCP connection a line began that is in two segments. */
BPF_TABLE("lru_hash", struct sip_segment, u8, cut_lines, 4096 + LRU_SPARE);
BPF_TABLE("lru_hash", struct sip_segment, u8, cut_lines_back, 4096 + LRU_SPARE);
BPF_TABLE("percpu_array", u32, struct sip, sip_text, 1);
#endif

/* ns of CLOCK_MONOTONIC at its last tick, which costs less than the exact time. */
static inline u64 tick_ns(void)
{
#ifdef COARSE_CLOCK
	return coarse_ns();
#else
	return bpf_ktime_get_ns();
#endif
}

/* ns of CLOCK_MONOTONIC, exact where the quality of streams is kept. */
static inline u64 clock_ns(void)
{
#ifdef QUALITY
	return bpf_ktime_get_ns();
#else
	return tick_ns();
#endif
}

static inline struct counters *this_cpu_counters(void)
{
	u32 zero = 0;

	return counters.lookup(&zero);
}

static inline void count_fragment(void)
{
	struct counters *count = this_cpu_counters();

	if (count)
		count->fragments++;
}

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

static inline u64 endpoint_word(__be32 address, __be16 port)
{
	struct endpoint endpoint = { .address = address, .port = port };
	u64 word;

	__builtin_memcpy(&word, &endpoint, sizeof(word));
	return word;
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

#ifdef IS_SIP_PORT
/*
 * The sendonly of a hold, which the provider is not to see (bpf/sip.h reads it)
 */

/* `back`, here and below: from the provider. */
static inline struct sip_context *context_of(struct sip_segment *segment, bool back)
{
	return back ? segments_back.lookup(segment) : segments.lookup(segment);
}

static inline void keep_context(struct sip_segment *segment, struct sip_context *context, bool back)
{
	if (back)
		segments_back.update(segment, context);
	else
		segments.update(segment, context);
}

/* Before a packet's text: nothing is known, or what the segment before has left. */
static inline void begin_reading(struct sip *sip, bool begins, bool back)
{
	struct sip_context *before = NULL;

	sip->context.message = (struct sip_message){};
	sip->context.tail_length = 0;
	sip->context.line_begins = !sip->place.is_tcp || begins;
	if (sip->place.is_tcp && !begins)
		before = context_of(&sip->place.segment, back);
	if (before)
		sip->context = *before;
}

static inline bool is_read_whole(struct sip *sip)
{
	return sip->length - sip->tail == sip->place.length;
}

/*
 * The packet's text is read, and its messages are in what is returned, the last one behind the
 * `count` before it; NULL: it cannot be.
 */
static inline struct sip *read_sip(struct __sk_buff *skb, struct sip_place *place,
				   struct sip_search *search, bool back)
{
	u32 zero = 0;
	struct sip *sip = sip_text.lookup(&zero);

	if (!sip)
		return NULL;
	sip->place = *place;
	LOAD_AGAIN();
	begin_reading(sip, begins_message(skb, &sip->place), back);
	if (!load_text(skb, sip))
		return NULL;
	read_text(sip, search);
	sip->context.message.ends = !sip->place.is_tcp && !sip->place.goes_on && is_read_whole(sip);
	sip->messages[sip->count & (SIP_MESSAGES - 1)] = sip->context.message;
	return sip;
}

/* The segment that begins, or would, at this place of the text. */
static inline struct sip_segment segment_at(struct sip *sip, u32 at)
{
	struct sip_segment segment = sip->place.segment;

	segment.sequence += at - sip->tail;
	return segment;
}

static inline void note_cut(struct sip *sip, u32 at, bool back)
{
	struct sip_segment segment = segment_at(sip, at);
	u8 one = 1;

	if (back)
		cut_lines_back.update(&segment, &one);
	else
		cut_lines.update(&segment, &one);
}

/* The next segment goes on with what is known of the last message by now. */
static inline void remember_segment(struct sip *sip, bool back)
{
	struct sip_message *message = &sip->context.message;
	struct sip_segment next = segment_at(sip, sip->length);

	if (!sip->place.is_tcp || !is_read_whole(sip))
		return;
	keep_tail(sip);
	if (sip->context.tail_length && sip->context.tail_length < SIP_WORD)
		note_cut(sip, sip->line, back);
	*message = sip->messages[sip->count & (SIP_MESSAGES - 1)];
	message->call_id_at = 0;
	message->length_at = 0;
	message->media_at = 0;
	message->word = 0;
	message->session_word = 0;
	message->more_words = 0;
	message->stray_words = 0;
	keep_context(&next, &sip->context, back);
}

/*
 * A packet that will be cut into segments (GSO): where one of them is lost, it is sent again alone.
 * What the one with the word has to know then.
 */
static inline void remember_again(struct __sk_buff *skb, struct sip *sip,
				  struct sip_message *message, u32 word, bool back)
{
	u32 size = segment_size(skb), at = word - 1 - sip->tail, begin;
	struct sip_segment segment;

	if (!size || at < size)
		return;
	begin = word - 1 - at % size;
	segment = segment_at(sip, begin);
	sip->again.line_begins = sip->text[(begin - 1) & (SIP_TEXT - 1)] == '\n';
	sip->again.message = (struct sip_message){
		.call_id = message->call_id,
		.begun = 1,
		.section = message->media_at <= begin ? SECTION_OPEN : SECTION_NONE,
	};
	keep_context(&segment, &sip->again, back);
}

static inline void note_headers(struct sip *sip, struct sip_message *message)
{
	if (message->call_id_at)
		message->call_id = hash_call_id(sip, message->call_id_at - 1);
	if (message->length_at)
		message->no_body = is_no_length(sip, message->length_at - 1);
}

/* A media section, the only one, that has no direction of its own. */
static inline bool is_undirected(struct sip_message *message)
{
	return !message->word && message->section == SECTION_OPEN && message->media == 1;
}

/*
 * The word that is to be changed: of the media section, or of the whole session if there is one
 * media section only. Offset in the text plus 1; 0: none.
 */
static inline u32 word_of(struct sip *sip, struct sip_message *message)
{
	if (is_undirected(message) && (message->ends || sip->place.pushed))
		return message->session_word;
	return message->word;
}

/*
 * A word that is in two segments is left, also when both are sent again as one: a receiver that has
 * the first of them already takes of it the rest alone.
 */
static inline bool is_cut(struct __sk_buff *skb, struct sip *sip, u32 word, bool back)
{
	u32 size = segment_size(skb), at = word - 1 - sip->tail;
	struct sip_segment segment = segment_at(sip, word - 1);

	if (word <= sip->tail)
		return true;
	if (size && at / size != (at + SIP_WORD - 1) / size) {
		note_cut(sip, word - 1, back);
		return true;
	}
	if (!sip->place.is_tcp)
		return false;
	return back ? cut_lines_back.lookup(&segment) : cut_lines.lookup(&segment);
}

/* May the word that is looked for, or an m= line, be where it cannot be read? */
static inline bool is_open(struct sip *sip, struct sip_message *message)
{
	if (message->ends)
		return false;
	if (message->section == SECTION_NONE)
		return message->session_word || (sip->place.goes_on && !message->no_body);
	return message->section == SECTION_OPEN &&
	       (sip->place.goes_on || !is_read_whole(sip) ||
		(is_undirected(message) && message->session_word && !sip->place.pushed));
}

/*
 * Change the word's last eight letters, if it is in this packet. Counted, if it is not or may not
 * be all: a word that is cut, a second one, one that nothing is known of, and one that may follow
 * where it is not read.
 */
static inline bool change_word(struct __sk_buff *skb, struct counters *count, struct sip *sip,
			       struct sip_message *message, u64 from, u64 to, bool back)
{
	u32 word = word_of(sip, message);
	bool cut = word && is_cut(skb, sip, word, back);
	bool changed =
		word && !cut && change_text(skb, &sip->place, word - 1 - sip->tail + 2, from, to);

	if (changed)
		remember_again(skb, sip, message, word, back);
	if (cut || message->more_words || message->stray_words || is_open(sip, message))
		count->sip_split++;
	return changed;
}

static inline struct sip_holds *all_holds(void)
{
	u32 zero = 0;

	return holding.lookup(&zero);
}

/* A hold lasts no longer, unless UCM says again that it holds. */
static inline bool is_hold_over(u64 since, u64 now)
{
	return (s64)(now - since) >= (s64)LONGEST_HOLD_NS;
}

static inline bool is_dialog_held(struct sip_message *message, u64 now)
{
	u64 *since = message->call_id ? dialogs.lookup(&message->call_id) : NULL;

	return since && !is_hold_over(*since, now);
}

static inline void forget_dialog(struct sip_message *message)
{
	bool counts = is_dialog_held(message, tick_ns());
	struct sip_holds *holds = all_holds();

	if (message->call_id && !dialogs.delete(&message->call_id) && counts && holds &&
	    holds->number)
		__sync_fetch_and_add(&holds->number, -1);
}

static inline void remember_dialog(struct sip_message *message)
{
	struct sip_holds *holds = all_holds();
	u64 now = tick_ns();
	bool is_new = !is_dialog_held(message, now);

	if (!message->call_id || !holds)
		return;
	/* Those whose end was not seen, and those that the map has evicted. */
	if (is_hold_over(holds->last, now))
		holds->number = 0;
	holds->last = now;
	dialogs.update(&message->call_id, &now);
	if (is_new)
		__sync_fetch_and_add(&holds->number, 1);
}

/* No SDP was seen, and none will follow. */
static inline bool has_no_sdp(struct sip_message *message)
{
	return message->section == SECTION_NONE && (message->no_body || message->ends);
}

/*
 * Does UCM hold no more, or ask the provider for an offer, which it is to see as it is? An SDP that
 * is not read to its end may say so: an answer that is left as it is does little harm, one that is
 * changed and should not be makes a call one-way.
 */
static inline bool ends_hold(struct sip_message *message)
{
	return message->bye ||
	       (!message->held && (message->invite || message->headless || !has_no_sdp(message)));
}

static inline void flip_message(struct __sk_buff *skb, struct counters *count, struct sip *sip,
				struct sip_message *message)
{
	note_headers(sip, message);
	if (change_word(skb, count, sip, message, SENDONLY, SENDRECV, false)) {
		count->sip_flipped++;
		message->held = 1;
		remember_dialog(message);
	} else if (ends_hold(message)) {
		forget_dialog(message);
	}
}

/* The provider hangs up, or refuses: what UCM has asked for last may have been the hold. */
static inline bool refuses(struct sip_message *message)
{
	return message->bye || message->headless || message->status >= '3';
}

/* An SDP without a direction means sendrecv, and has no word that could be changed. */
static inline bool has_no_direction(struct sip *sip, struct sip_message *message)
{
	return message->section == SECTION_OPEN && !message->word && !message->session_word &&
	       (message->ends || sip->place.pushed);
}

static inline void restore_message(struct __sk_buff *skb, struct counters *count, struct sip *sip,
				   struct sip_message *message)
{
	note_headers(sip, message);
	if (!is_dialog_held(message, tick_ns()))
		return;
	if (refuses(message))
		forget_dialog(message);
	else if (change_word(skb, count, sip, message, SENDRECV, RECVONLY, true))
		count->sip_restored++;
	else if (has_no_direction(sip, message))
		count->sip_undirected++;
}

/* May SIP come from there, and go there? */
static inline bool may_signal(__be32 address)
{
#ifdef MAX_SIP_FROM
	struct prefix host = { .length = 32, .address = address };

	return sip_networks.lookup(&host);
#else
	return true;
#endif
}

/* Each message of a packet of SIP. The firewall's end of it is a UCM's, or public. */
static __always_inline void change_messages(struct __sk_buff *skb, struct sip_search *search,
					    bool is_outbound)
{
	struct sip_place place;
	struct counters *count;
	struct sip *sip;
	__be32 ours, theirs;

	if (!find_text(skb, &place))
		return;
	ours = is_outbound ? place.segment.saddr : place.segment.daddr;
	theirs = is_outbound ? place.segment.daddr : place.segment.saddr;
	if ((!IS_UCM(ours) && !IS_PUBLIC(ours)) || !may_signal(theirs))
		return;
	sip = read_sip(skb, &place, search, !is_outbound);
	count = this_cpu_counters();
	if (!sip || !count)
		return;
	for (u32 i = 0; i < SIP_MESSAGES; i++) {
		if (is_outbound)
			flip_message(skb, count, sip, &sip->messages[i]);
		else
			restore_message(skb, count, sip, &sip->messages[i]);
		if (i >= sip->count)
			break;
	}
	remember_segment(sip, !is_outbound);
}

/*
 * SIP on its way to the provider: after netfilter, so its source is public where the firewall
 * NATs. What UCM's next SDP in the dialog says decides whether the way back is changed.
 */
static inline void flip_hold(struct __sk_buff *skb)
{
	struct sip_search phantom = {
		.port = PHANTOM_TEXT,
		.digits = PHANTOM_DIGITS,
		.word = A_SENDON,
		.rest = TEXT2('l', 'y'),
	};

	change_messages(skb, &phantom, true);
}

/* SIP that comes from the provider: in a dialog whose hold was flipped, sendrecv is recvonly. */
static inline void restore_hold(struct __sk_buff *skb)
{
	struct sip_search audio = { .word = A_SENDRE, .rest = TEXT2('c', 'v') };
	struct sip_holds *holds = all_holds();

	/* Reading costs microseconds, and anybody can send what is read. */
	if (holds && holds->number && !is_hold_over(holds->last, tick_ns()))
		change_messages(skb, &audio, false);
}
#else
static inline void flip_hold(struct __sk_buff *skb)
{
}

static inline void restore_hold(struct __sk_buff *skb)
{
}
#endif

/*
 * Events: changes of state, never packets
 */

/* Not negative, even if the two times are of two CPUs. */
static inline u64 elapsed(u64 since, u64 until)
{
	return (s64)(until - since) > 0 ? until - since : 0;
}

static inline void tell(struct counters *count, struct event *event)
{
	/* Readers keep their own position, so each record wakes them. */
	if (events.ringbuf_output(event, sizeof(*event), BPF_RB_FORCE_WAKEUP))
		count->events_unread++;
}

static inline void tell_heard(struct counters *count, struct endpoint endpoint, u8 kind,
			      struct heard heard, u64 now, u8 before, u64 lasted, u8 evidence)
{
	struct event event = {
		.time = now,
		.heard = heard_word(heard),
		.lasted = lasted,
		.address = endpoint.address,
		.port = endpoint.port,
		.kind = kind,
		.before = before,
		.evidence = evidence,
	};

	tell(count, &event);
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
static inline void end_waiting(struct counters *count, struct peer *peer, struct packet *packet,
			       struct heard heard, u8 evidence, u64 now)
{
	struct endpoint endpoint = { .address = packet->daddr, .port = packet->dport };
	struct waiting *waiting = waiting_for.lookup(&endpoint);
	struct event event = {
		.time = now,
		.heard = heard_word(heard),
		.address = packet->daddr,
		.port = packet->dport,
		.kind = EVENT_MUSIC,
		.before = heard.state,
		.evidence = evidence,
	};

	peer->out_first = now;
	tell_wait(&event, peer, waiting, now);
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
		tell(count, &event);
}

/*
 * Who is told of
 */

static inline void count_learned(struct counters *count, u8 state)
{
	if (state == STATE_MOH)
		count->learned_moh++;
	else
		count->learned_two++;
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

/*
 * Readers are told of an endpoint that UCM sends to, and of one that sends a stream to the phantom
 * port, because a hold without music must be seen; of both only if it is RTP: two packets in
 * sequence, from either side, say so. What else teaches may be noise.
 */
static inline void tell_of(struct counters *count, struct peer *peer, struct endpoint endpoint,
			   struct heard heard, u8 evidence, u64 now)
{
	bool is_hold = heard.state == STATE_MOH && peer->in_rtp.received;
	bool is_call = peer->out_packets && (peer->in_rtp.received || peer->out_rtp.received);

	if (!is_hold && !is_call)
		return;
	peer->told = 1;
	count_so_far(count, peer);
	count_learned(count, heard.state);
	tell_heard(count, endpoint, EVENT_LEARNED, heard, now, 0, elapsed(peer->since, now),
		   evidence);
}

/* Is this RTP of which something is to be known still? */
static inline bool is_of_interest(struct peer *peer, struct packet *packet)
{
	return packet->has_rtp && (KEEPS_QUALITY || !peer->told);
}

/*
 * learn
 */

static inline __be16 next_port(__be16 port, s32 step)
{
	return bpf_htons(bpf_ntohs(port) + step);
}

static inline struct endpoint source_of(struct packet *packet)
{
	return (struct endpoint){ .address = packet->saddr, .port = packet->sport };
}

/* A packet of several datagrams (GSO) has their number. */
static inline u32 datagrams(struct __sk_buff *skb)
{
	return skb->gso_segs ?: 1;
}

static inline void note_inbound(struct __sk_buff *skb, struct counters *count, struct peer *peer,
				struct packet *packet, u64 now)
{
	struct progress progress;

	if (!is_of_interest(peer, packet))
		return;
	progress = note_rtp(&peer->in_rtp, &packet->rtp, datagrams(skb), now);
	if (!KEEPS_QUALITY || !peer->told)
		return;
	count->rtp_in_expected += progress.expected;
	count->rtp_in_lost += progress.lost;
	count->rtp_in_late += progress.late;
}

static inline void note_gap(struct peer *peer, u64 now)
{
	s64 gap = now - peer->last_seen;

	if (gap > (s64)peer->longest_gap && gap < (s64)LONGEST_PAUSE_NS)
		peer->longest_gap = gap;
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

/* When it last said what is known of it. */
static inline u64 last_word(struct peer *peer)
{
#ifdef RTCP_TIMEOUT_NS
	if (peer->by_rtcp)
		return peer->rtcp_at;
#endif
	return peer->last_seen;
}

/* When it was forgotten, or will be. */
static inline u64 known_until(struct peer *peer)
{
#ifdef RTCP_TIMEOUT_NS
	if (peer->by_rtcp)
		return peer->rtcp_at + RTCP_TIMEOUT_NS;
#endif
	return peer->last_seen + TIMEOUT_NS;
}

/* What is known of it, or was; all 0: it was never heard. */
static inline struct heard latest_of(struct peer *peer)
{
#ifdef RTCP_TIMEOUT_NS
	if (peer->by_rtcp)
		return heard_by_word(peer->by_rtcp);
#endif
	return heard_of(peer);
}

static inline u8 state_of(struct peer *peer)
{
	return latest_of(peer).state;
}

/* What is counted in a call, or up to a pause in it. */
static inline void count_anew(struct peer *peer, u64 now)
{
	if ((s64)(now - known_until(peer)) >= (s64)LONGEST_PAUSE_NS)
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
static inline void relearn(struct peer *peer, struct counters *count, struct packet *packet,
			   struct heard heard, u64 now)
{
	u64 lasted = elapsed(peer->since, last_word(peer));
	u8 before = state_of(peer);

	count_anew(peer, now);
	if (peer->told) {
		count_learned(count, heard.state);
		tell_heard(count, source_of(packet), EVENT_LEARNED, heard, now, before, lasted,
			   BY_RTP);
	}
	if (has_turned(peer, heard)) {
		peer->out_from = 0;
		peer->out_before = 0;
	}
	peer->since = now;
	/* In this order: a reader always finds one of the two. */
	*(volatile u64 *)&peer->heard = heard_word(heard);
	*(volatile u64 *)&peer->by_rtcp = 0;
}

static inline void count_change(struct counters *count, u8 state)
{
	if (state == STATE_MOH)
		count->two_to_moh++;
	else
		count->moh_to_two++;
}

static inline void change_state(struct peer *peer, struct counters *count, struct packet *packet,
				struct heard heard, u64 now)
{
	u8 before = state_of(peer);

	if (has_turned(peer, heard)) {
		peer->moved = now;
		peer->moved_ssrc = packet->rtp.ssrc;
		peer->moved_sequence = bpf_ntohs(packet->rtp.sequence);
	}
	*(volatile u64 *)&peer->heard = heard_word(heard);
	*(volatile u64 *)&peer->by_rtcp = 0;
	if (before == heard.state)
		return;
	if (peer->told) {
		count_change(count, heard.state);
		tell_heard(count, source_of(packet), EVENT_CHANGED, heard, now, before,
			   elapsed(peer->since, now), BY_RTP);
	}
	peer->since = now;
	peer->out_first = 0;
}

/*
 * The provider has turned to another port, and a packet comes that it sent before: two flows may
 * take two ways. It says nothing any more.
 */
static inline bool is_overtaken(struct peer *peer, struct packet *packet, u64 now)
{
	u16 behind = peer->moved_sequence - bpf_ntohs(packet->rtp.sequence);

	return (s64)(now - peer->moved) < (s64)NEW_SOURCE_NS &&
	       peer->moved_ssrc == packet->rtp.ssrc && behind && behind < MAX_MISORDER;
}

/*
 * last_seen is written last: until then, another CPU holds a forgotten peer for forgotten, if the
 * machine keeps the order of stores, as x86 does. On arm64 it may for a moment take what the
 * endpoint said before it was forgotten.
 */
static inline void hear_again(struct __sk_buff *skb, struct counters *count, struct peer *peer,
			      struct packet *packet, struct heard heard, u64 now)
{
	note_gap(peer, now);
	if (!is_live(peer, now) && !is_kept_by_rtcp(peer, now))
		relearn(peer, count, packet, heard, now);
	else if ((peer->heard != heard_word(heard) || peer->by_rtcp) &&
		 !is_overtaken(peer, packet, now))
		change_state(peer, count, packet, heard, now);
	__sync_fetch_and_add(&peer->in_packets, 1);
	__sync_fetch_and_add(&peer->in_bytes, packet->bytes);
	note_inbound(skb, count, peer, packet, now);
	if (!peer->told)
		tell_of(count, peer, source_of(packet), heard_of(peer), BY_RTP, now);
	*(volatile u64 *)&peer->last_seen = now;
}

/* NULL: there is no memory. Another CPU may be first, and its peer is as good. */
static inline struct peer *make_peer(struct endpoint endpoint, u64 heard, u64 last_seen, u64 now)
{
	u32 zero = 0;
	struct peer *fresh = unborn.lookup(&zero);

	if (!fresh)
		return NULL;
	fresh->heard = heard;
	fresh->last_seen = last_seen;
	fresh->since = now;
	peers.insert(&endpoint, fresh);
	return peers.lookup(&endpoint);
}

static inline void hear(struct __sk_buff *skb, struct counters *count, struct packet *packet,
			struct heard heard, u64 now)
{
	struct endpoint endpoint = source_of(packet);
	struct peer *peer = peers.lookup(&endpoint);

	if (!peer)
		peer = make_peer(endpoint, heard_word(heard), now, now);
	if (peer)
		hear_again(skb, count, peer, packet, heard, now);
	else
		count->learn_failed++;
}

/* RTCP never contradicts RTP that is heard, so it has a map of its own. */
static inline void hear_report(struct packet *packet, struct heard heard, u64 now)
{
#ifdef RTCP_TIMEOUT_NS
	struct endpoint endpoint = source_of(packet);
	struct report report = { .heard = heard_word(heard), .at = now };

	reports.update(&endpoint, &report);
#endif
}

/*
 * Learn has read a packet to a public address on this WAN, of whatever protocol: so it sees what
 * comes in, and the verdicts may rely on it.
 */
static inline void note_learning(struct __sk_buff *skb, u64 now)
{
	u8 index = WAN_INDEX(skb->ifindex);
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

/* RTP and RTCP of audio, video and data, in this order, as far as --rtp-ports leaves them. */
static inline bool is_phantom(__be16 port)
{
	return bpf_ntohs(port) >= MOH_PORT && bpf_ntohs(port) <= LAST_PHANTOM_PORT;
}

/*
 * Another host's connection: the firewall's NAT may have given it one of the phantom ports
 */

/* Another host sends from a phantom port: the answers come to it. */
static inline void note_anothers(struct packet *packet)
{
	struct anothers way = {
		.address = packet->daddr,
		.port = packet->dport,
		.public_port = packet->sport,
	};
	u64 now, *used;

	if (!is_phantom(packet->sport) || IS_UCM(packet->saddr))
		return;
	now = tick_ns();
	used = others.lookup(&way);
	if (!used)
		others.update(&way, &now);
	else if ((s64)(now - *used) >= (s64)ANOTHERS_STEP_NS)
		*used = now;
}

/* Does UCM send to this endpoint, or has it just now? */
static inline bool is_sent_to(struct endpoint endpoint, u64 now)
{
	struct peer *peer = peers.lookup(&endpoint);
	struct waiting *waiting;

	if (peer && peer->out_last && (s64)(now - peer->out_last) < (s64)LONGEST_PAUSE_NS)
		return true;
	waiting = waiting_for.lookup(&endpoint);
	return waiting && (s64)(now - waiting->last) < (s64)LONGEST_PAUSE_NS;
}

/*
 * Is what comes to a phantom port an answer to another host? As long as conntrack would keep the
 * connection, from its last packet on, either way; but where UCM sends, the port is its hold's.
 */
static inline bool is_anothers(struct packet *packet, u64 now)
{
	struct endpoint endpoint = source_of(packet);
	struct anothers way = {
		.address = packet->saddr,
		.port = packet->sport,
		.public_port = packet->dport,
	};
	u64 *used = others.lookup(&way);

	if (!used || (s64)(now - *used) >= (s64)ANOTHERS_NS || is_sent_to(endpoint, now))
		return false;
	endpoint.port = next_port(endpoint.port, -1);
	if (packet->is_rtcp && is_sent_to(endpoint, now))
		return false;
	if ((s64)(now - *used) >= (s64)ANOTHERS_STEP_NS)
		*used = now;
	return true;
}

/* What is said where this is sent: who is on hold is to send to a phantom port. */
static inline struct heard heard_from(struct __sk_buff *skb, struct packet *packet)
{
	return (struct heard){
		.public_address = packet->daddr,
		.public_port = packet->dport,
		.state = is_phantom(packet->dport) ? STATE_MOH : STATE_TWO,
		.wan = WAN_INDEX(skb->ifindex),
	};
}

/*
 * WAN ingress. RTP to a public address teaches the state of its source. Nobody listens on the
 * phantom ports, and an ICMP port unreachable can make a provider hang up: consumed.
 */
int moh_learn(struct __sk_buff *skb)
{
	struct packet packet;
	enum kind kind = read_packet(skb, &packet);
	struct counters *count;
	struct heard heard;
	__be32 to;
	u64 now;

	if (kind != KIND_RTP) {
		/*
		 * To the compiler an address of its own. Otherwise it makes one way of this and
		 * that of RTP, on which it keeps fields of the packet that only RTP has.
		 */
		to = packet.daddr;
		asm volatile("" : "+r"(to));
		if (IS_PUBLIC(to))
			note_learning(skb, tick_ns());
		if (kind == KIND_FRAGMENT && IS_PUBLIC(packet.daddr) && may_teach(packet.saddr))
			count_fragment();
		restore_hold(skb);
		return TC_ACT_UNSPEC;
	}
	if (!IS_PUBLIC(packet.daddr))
		return TC_ACT_UNSPEC;
	now = clock_ns();
	note_learning(skb, now);
	count = this_cpu_counters();
	if (!count || !may_teach(packet.saddr))
		return TC_ACT_UNSPEC;

	heard = heard_from(skb, &packet);
	if (heard.state == STATE_MOH && is_anothers(&packet, now)) {
		count->passed_anothers++;
		return TC_ACT_UNSPEC;
	}
	if (packet.is_rtcp)
		hear_report(&packet, heard, now);
	else
		hear(skb, count, &packet, heard, now);
	if (heard.state != STATE_MOH)
		return TC_ACT_UNSPEC;
	count->consumed++;
	return TC_ACT_SHOT;
}

/*
 * enforce and bypass
 */

/* Is it of those packets that we decide about? */
static inline bool is_ours(struct packet *packet)
{
	u16 port = bpf_ntohs(packet->sport);

	return IS_UCM(packet->saddr) && port >= RTP_PORT_MIN && port <= RTP_PORT_MAX;
}

/* The packet's destination, or the endpoint so many ports below it. */
static inline struct endpoint endpoint_below(struct packet *packet, s32 step)
{
	return (struct endpoint){ .address = packet->daddr,
				  .port = next_port(packet->dport, -step) };
}

/* UCM's endpoint that sends it, as one word. */
static inline u64 sender_of(struct packet *packet)
{
	return endpoint_word(packet->saddr, packet->sport);
}

/* What is known of a packet's destination. */
struct known {
	struct peer *peer; /* may be NULL where it is known by RTCP */
	struct heard heard;
	u64 at;	     /* by RTCP: when the report came */
	u8 evidence; /* enum evidence; 0: nothing is known, whatever the rest says */
};

/* An endpoint that is known by its RTP and not forgotten, and what it said last. */
static inline bool is_heard(struct known *known, struct endpoint endpoint, u64 now)
{
	known->peer = peers.lookup(&endpoint);
	if (!known->peer || !is_live(known->peer, now))
		return false;
	known->heard = heard_of(known->peer);
	if (is_deaf_hold(known->peer, known->heard, now))
		return false;
	known->evidence = BY_RTP;
	return true;
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

	return peer && peer->told &&
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
static inline void find_report(struct known *known, struct packet *packet, u64 now)
{
	struct endpoint above = endpoint_below(packet, -1);
	struct known own = { .peer = known->peer };
	bool is_muxed = is_reported(&own, endpoint_below(packet, 0), now);

	if (is_reported(known, above, now) && !has_own_rtp(above, now) &&
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
static inline void ask_reports(struct known *known, struct packet *packet, u64 now)
{
	struct peer *peer = known->peer;

	find_report(known, packet, now);
	if (!known->evidence)
		return;
	if (is_of_another_call(known, now))
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

static inline void ask_reports(struct known *known, struct packet *packet, u64 now)
{
}
#endif

/*
 * RTCP goes where its RTP does, to the same port or to the next, from the same port of ours or from
 * the next. Where RTP is not heard, it goes as the endpoint's own RTCP has come, and counts for the
 * peer that has its RTP.
 */
static inline void know_rtcp(struct known *known, struct packet *packet, u64 now)
{
	if (!has_own_rtp(endpoint_below(packet, 0), now) &&
	    is_heard(known, endpoint_below(packet, 1), now))
		known->heard.public_port = next_port(known->heard.public_port, 1);
	else
		is_reported(known, endpoint_below(packet, 0), now);
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

/* A report between two packets of a call is late, and says nothing. */
static inline bool needs_no_report(struct known *known, struct packet *packet, u64 now)
{
	return !is_in_doubt(known, packet) || (s64)(now - known->peer->last_seen) < (s64)GOES_ON_NS;
}

static inline struct known destination(struct packet *packet, u64 now)
{
	struct known known = {}, by_rtcp;
	bool heard = is_heard(&known, endpoint_below(packet, 0), now);

	if (packet->is_rtcp) {
		if (!heard)
			know_rtcp(&known, packet, now);
		return known;
	}
	if (heard && needs_no_report(&known, packet, now))
		return known;
	by_rtcp = (struct known){ .peer = known.peer };
	ask_reports(&by_rtcp, packet, now);
	/* A call that is heard is on hold by now, if anything has changed. */
	return !heard || (by_rtcp.evidence && by_rtcp.heard.state == STATE_MOH) ? by_rtcp : known;
}

static inline void note_outbound(struct __sk_buff *skb, struct counters *count, struct peer *peer,
				 struct packet *packet, u64 now)
{
	struct progress progress;

	if (!is_of_interest(peer, packet))
		return;
	progress = note_rtp(&peer->out_rtp, &packet->rtp, datagrams(skb), now);
	if (!KEEPS_QUALITY || !peer->told)
		return;
	count->rtp_out_expected += progress.expected;
	count->rtp_out_lost += progress.lost;
	count->rtp_out_late += progress.late;
}

static inline void count_outbound(struct __sk_buff *skb, struct counters *count,
				  struct known *known, struct packet *packet, u64 now)
{
	struct peer *peer = known->peer;

	if (!peer)
		return;
	__sync_fetch_and_add(&peer->out_packets, 1);
	__sync_fetch_and_add(&peer->out_bytes, packet->bytes);
	peer->out_last = now;
	note_outbound(skb, count, peer, packet, now);
	if (!peer->told)
		tell_of(count, peer, endpoint_below(packet, 0), known->heard, known->evidence, now);
	if (!peer->out_first && peer->told && !packet->is_rtcp)
		end_waiting(count, peer, packet, known->heard, known->evidence, now);
}

/*
 * UCM's source port: it takes a new one for every hold, and for the call that goes on
 */

/*
 * RTP from a port that is not known as the call's waits, but not for long: all such ports of an
 * endpoint together wait NEW_SOURCE_NS, until none has sent for twice as long. Nor does any wait
 * where learn cannot hear what it waits for.
 */
static inline bool is_to_wait(struct peer *peer, struct packet *packet, struct heard heard, u64 now)
{
	struct wan *wan;

	if (packet->sport == heard.public_port || (s64)(now - peer->moved) < (s64)NEW_SOURCE_NS)
		return false;
	wan = wan_at(heard.wan);
	if (wan && is_stale(wan, now, STALE_NS))
		return false;
	if ((s64)(now - peer->new_last) >= 2 * (s64)NEW_SOURCE_NS) {
		peer->new_since = now;
		peer->new_held = 0;
	}
	peer->new_last = now;
	return (s64)(now - peer->new_since) < (s64)NEW_SOURCE_NS;
}

/* Have packets from this port passed before the endpoint was heard? Then they pass now, too. */
static inline bool has_passed_unheard(struct packet *packet, u64 now)
{
	struct endpoint endpoint = endpoint_below(packet, 0);
	struct waiting *waiting = waiting_for.lookup(&endpoint);

	return waiting && waiting->passed && waiting->from == sender_of(packet) &&
	       (s64)(now - waiting->last) < (s64)LONGEST_PAUSE_NS;
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
static inline bool is_of_the_call(struct peer *peer, struct packet *packet, struct heard heard,
				  u64 now)
{
	u64 from = sender_of(packet);

	if (peer->out_from == from || !packet->has_rtp)
		return true;
	if (peer->out_before != from) {
		if (!has_passed_unheard(packet, now) && is_to_wait(peer, packet, heard, now))
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

/*
 * UCM's RTP to an endpoint that is not heard is dropped until it is: but only while learn can hear
 * it, and not for ever
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
static inline struct waiting *wait_of(struct packet *packet, u64 now)
{
	struct endpoint endpoint = endpoint_below(packet, 0);
	struct endpoint below = endpoint_below(packet, 1);
	struct waiting fresh = { .first = now, .last = now };
	struct waiting *waiting = packet->is_rtcp ? present_wait(&below, now) : NULL;

	if (waiting)
		return waiting;
	waiting = present_wait(&endpoint, now);
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
		waiting->last = now;
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

	if (peer && state_of(peer)) {
		heard = latest_of(peer);
		wan = wan_at(heard.wan);
		if (wan && !is_stale(wan, now, STALE_NS) &&
		    (s64)(now - last_word(peer)) < (s64)LONGEST_DEAF_HOLD_NS)
			return NO_WAN;
		if (wan && is_stale(wan, now, STALE_NS) &&
		    (s64)(wan->learn_at - known_until(peer)) < 0 &&
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

static inline void tell_unheard(struct counters *count, struct packet *packet,
				struct waiting *waiting, struct peer *peer, u8 index, u64 now)
{
	struct heard heard = { .wan = index };
	struct event event = {
		.time = now,
		.lasted = elapsed(waiting->first, now),
		.dropped = waiting->packets,
		.address = packet->daddr,
		.port = packet->dport,
		.kind = EVENT_UNHEARD,
	};

	if (peer && state_of(peer)) {
		heard = latest_of(peer);
		event.before = heard.state;
	}
	event.heard = heard_word(heard);
	tell(count, &event);
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
static inline bool is_no_rtp(struct __sk_buff *skb, struct waiting *waiting, struct packet *packet)
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
	waiting->next_sequence = sequence + datagrams(skb);
	waiting->payload_type = payload_type(&packet->rtp);
	return waiting->flags & WAITING_NO_RTP;
}

/*
 * UCM's RTP that would leave by the WAN of this index, to an endpoint that is not heard. `counts`:
 * bypass, which judges before enforce, has not counted it.
 */
static inline int judge_unheard(struct __sk_buff *skb, struct counters *count,
				struct packet *packet, u8 index, bool counts, u64 now)
{
	struct endpoint endpoint = endpoint_below(packet, 0);
	struct endpoint below = endpoint_below(packet, 1);
	struct waiting *waiting = wait_of(packet, now);
	u64 waited = waiting ? elapsed(waiting->first, now) : 0;
	struct peer *peer = peers.lookup(&endpoint);
	u8 stale;

	/* RTCP whose endpoint says nothing itself is judged as the RTP one port below. */
	if (packet->is_rtcp && (!peer || !state_of(peer)))
		peer = peers.lookup(&below);
	stale = stale_wan(peer, index, waited, now);
	if (waiting && packet->has_rtp && is_no_rtp(skb, waiting, packet)) {
		count->passed_no_rtp += counts;
		return TC_ACT_UNSPEC;
	}
	if (stale != NO_WAN) {
		note_stale(count, stale, now);
		note_open(stale, now);
		count->passed_blind += counts;
	} else if (is_patience_over(waiting, now)) {
		if (is_to_be_told(packet, waiting)) {
			waiting->flags |= WAITING_TOLD;
			tell_unheard(count, packet, waiting, peer, index, now);
		}
		note_open(index, now);
		count->passed_unheard += counts;
	} else {
		if (waiting && !packet->is_rtcp)
			__sync_fetch_and_add(&waiting->packets, 1);
		count->dropped_unidentified++;
		return TC_ACT_SHOT;
	}
	if (waiting && !waiting->passed)
		waiting->passed = now;
	return TC_ACT_UNSPEC;
}

/* What is not RTP, or goes elsewhere, passes where nothing is known of its destination. */
static inline bool may_be_dropped(enum kind kind, struct packet *packet)
{
	return kind == KIND_RTP && may_be_provider(packet->daddr);
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

#ifdef RTCP_TIMEOUT_NS
/* RTCP keeps known, or makes known again, whom RTP had forgotten by now. */
static inline void change_by_rtcp(struct counters *count, struct peer *peer, struct packet *packet,
				  struct known *known, u64 now)
{
	u8 before = state_of(peer), state = known->heard.state;
	bool was_known = (s64)(now - known_until(peer)) < (s64)GOES_ON_NS;
	u64 lasted = elapsed(peer->since, was_known ? now : last_word(peer));

	if (!was_known)
		count_anew(peer, now);
	peer->by_rtcp = heard_word(known->heard);
	if (was_known && before == state)
		return;
	if (peer->told && was_known)
		count_change(count, state);
	else if (peer->told)
		count_learned(count, state);
	if (peer->told)
		tell_heard(count, endpoint_below(packet, 0),
			   was_known ? EVENT_CHANGED : EVENT_LEARNED, known->heard, now, before,
			   lasted, BY_RTCP);
	peer->since = now;
	peer->out_first = 0;
}

/*
 * RTCP decides about UCM's RTP: its peer keeps that in mind, for readers. One that was never heard
 * is made here. Its last_seen is earlier than the report, and never live.
 */
static inline void note_by_rtcp(struct counters *count, struct packet *packet, struct known *known,
				u64 now)
{
	struct peer *peer = known->peer;

	if (!peer)
		peer = make_peer(endpoint_below(packet, 0), 0,
				 known->at - TIMEOUT_NS - LONGEST_PAUSE_NS, now);
	known->peer = peer;
	if (!peer)
		return;
	if (!is_kept_by_rtcp(peer, now) || peer->by_rtcp != heard_word(known->heard))
		change_by_rtcp(count, peer, packet, known, now);
	peer->rtcp_at = known->at;
}

/* A call that is known by RTCP has the port that it had, or that the report is of; not a new one.
 */
static inline bool is_of_the_report(struct known *known, struct packet *packet)
{
	return known->heard.state == STATE_MOH || packet->sport == known->heard.public_port ||
	       (known->peer && is_known_source(known->peer, packet));
}

static inline void decide_by_rtcp(struct counters *count, struct packet *packet,
				  struct known *known, u64 now)
{
	if (is_of_the_report(known, packet))
		note_by_rtcp(count, packet, known, now);
	else
		known->evidence = 0;
}
#else
static inline void decide_by_rtcp(struct counters *count, struct packet *packet,
				  struct known *known, u64 now)
{
}
#endif

/* What decides about a packet of UCM's. */
static inline struct known identify(struct counters *count, struct packet *packet, u64 now)
{
	struct known known = destination(packet, now);

	if (known.evidence == BY_RTCP && !packet->is_rtcp)
		decide_by_rtcp(count, packet, &known, now);
	return known;
}

/*
 * To an endpoint in a call. A packet that bypass has let through is counted there already. If it is
 * still UCM's at the WAN, the firewall does not NAT it: worth knowing, none of our doing.
 */
static inline bool pass_two(struct __sk_buff *skb, struct counters *count)
{
	count->passed_unnatted++;
	if (IS_LAN(skb->ingress_ifindex))
		return false;
	count->passed_two++;
	return true;
}

static inline int judge_known_at_wan(struct __sk_buff *skb, struct counters *count,
				     struct known *known, struct packet *packet, u64 now)
{
	if (known->heard.state == STATE_MOH) {
		if (rewrite_source(skb, packet, &known->heard, 0, NO_LINK))
			return drop_failed(count);
		count->rewritten++;
	} else if (known->peer && !is_of_the_call(known->peer, packet, known->heard, now)) {
		return hold_back(count, known->peer);
	} else if (!pass_two(skb, count)) {
		return TC_ACT_UNSPEC;
	}
	count_outbound(skb, count, known, packet, now);
	return TC_ACT_UNSPEC;
}

/* Not heard, at the WAN. What passes there is UCM's still: the firewall does not NAT it. */
static inline int judge_unheard_at_wan(struct __sk_buff *skb, struct counters *count,
				       struct packet *packet, u64 now)
{
	int verdict = judge_unheard(skb, count, packet, WAN_INDEX(skb->ifindex),
				    !IS_LAN(skb->ingress_ifindex), now);

	if (verdict == TC_ACT_UNSPEC)
		count->passed_unnatted++;
	return verdict;
}

/* What came in by no LAN, where bypass would have seen it: by now it has its public port. */
static inline void note_anothers_at_wan(struct __sk_buff *skb, struct packet *packet)
{
	if (IS_PUBLIC(packet->saddr) && !IS_LAN(skb->ingress_ifindex))
		note_anothers(packet);
}

/* WAN egress. The rule: UCM's RTP leaves as its destination was heard to expect it, or not. */
int moh_enforce(struct __sk_buff *skb)
{
	struct packet packet;
	enum kind kind = read_packet(skb, &packet);
	struct counters *count;
	struct known known;
	u64 now;

	if (kind < KIND_ALIKE) {
		if (kind == KIND_FRAGMENT && IS_UCM(packet.saddr))
			count_fragment();
		if (kind == KIND_UDP)
			note_anothers_at_wan(skb, &packet);
		flip_hold(skb);
		return TC_ACT_UNSPEC;
	}
	if (!is_ours(&packet)) {
		note_anothers_at_wan(skb, &packet);
		return TC_ACT_UNSPEC;
	}
	count = this_cpu_counters();
	if (!count)
		return TC_ACT_UNSPEC;

	now = clock_ns();
	known = identify(count, &packet, now);
	if (!known.evidence && !may_be_dropped(kind, &packet))
		return TC_ACT_UNSPEC;
	if (!known.evidence)
		return judge_unheard_at_wan(skb, count, &packet, now);
	return judge_known_at_wan(skb, count, &known, &packet, now);
}

static inline int leave_to_stack(struct counters *count)
{
	count->left_to_stack++;
	return TC_ACT_UNSPEC;
}

static inline int leave_routed_elsewhere(struct counters *count)
{
	count->routed_elsewhere++;
	return TC_ACT_UNSPEC;
}

/* Too long for the WAN: the stack answers a DF packet with ICMP; we have no fragments to offer. */
static inline int refuse_too_big(struct counters *count, struct packet *packet)
{
	if (packet->frag_off & bpf_htons(IP_DF))
		return leave_to_stack(count);
	count->dropped_too_big++;
	return TC_ACT_SHOT;
}

/* How a packet leaves. */
struct way {
	u32 wan;		 /* ifindex */
	struct link_header link; /* the next hop's, or none: not known, or the WAN has no such */
	struct next_hop hop;	 /* whom the kernel's neighbour code is to ask for */
};

/* Names the hop that two words make together. */
static inline u64 hop_sum(u64 dst, u64 src)
{
	return (dst ^ src * HOP_FACTOR) * HOP_FACTOR >> 48;
}

/* By the next hop that the peer keeps, if it is good for this packet. */
static inline bool keep_hop(struct peer *peer, struct heard heard, u16 len, u64 now,
			    struct way *way)
{
	u64 checked, first, second;
	struct hop_dst dst;
	struct hop_src src;

	if (!peer)
		return false;
	checked = *(volatile u64 *)&peer->hop_checked;
	first = *(volatile u64 *)&peer->hop_dst;
	second = *(volatile u64 *)&peer->hop_src;
	__builtin_memcpy(&dst, &first, sizeof(dst));
	__builtin_memcpy(&src, &second, sizeof(src));
	if ((s64)(now - checked) >= (s64)HOP_LIFETIME_NS || !src.out || src.heard != heard.wan ||
	    len > dst.max_len || (checked & HOP_SUM) != hop_sum(first, second))
		return false;
	way->wan = WAN_IFINDEX((u8)(src.out - 1));
	way->link = link_on(way->wan, dst.mac, src.mac);
	return true;
}

static inline void remember_hop(struct peer *peer, struct bpf_fib_lookup *fib, struct heard heard,
				u8 out, u16 len, u64 now)
{
	struct hop_dst dst = { .max_len = len };
	struct hop_src src = { .heard = heard.wan, .out = out + 1 };
	u64 first, second;

	__builtin_memcpy(dst.mac, fib->dmac, sizeof(dst.mac));
	__builtin_memcpy(src.mac, fib->smac, sizeof(src.mac));
	__builtin_memcpy(&first, &dst, sizeof(first));
	__builtin_memcpy(&second, &src, sizeof(second));
	*(volatile u64 *)&peer->hop_dst = first;
	*(volatile u64 *)&peer->hop_src = second;
	*(volatile u64 *)&peer->hop_checked = (now & ~HOP_SUM) | hop_sum(first, second);
}

/*
 * Once in HOP_LIFETIME_NS: ask anew where the WAN's next hop is. Only while that is plain, and the
 * first time in each ROUTE_PERIOD is left to find_route().
 */
static inline bool renew_hop(struct __sk_buff *skb, struct peer *peer, struct packet *packet,
			     struct heard heard, u64 now, struct way *way)
{
	u32 wan = WAN_IFINDEX(heard.wan);
	struct bpf_fib_lookup fib;

	if (!peer || peer->hop_checked / ROUTE_PERIOD_NS != now / ROUTE_PERIOD_NS ||
	    !LINK_HEADER(wan))
		return false;
	if (!has_neighbour(route_by_wan(skb, packet, &fib, wan, &heard), &fib) ||
	    fib.ifindex != wan)
		return false;
	remember_hop(peer, &fib, heard, heard.wan, wire_length(skb, packet), now);
	way->wan = wan;
	way->link = link_on(wan, fib.dmac, fib.smac);
	return true;
}

/*
 * The WAN to leave by, for a packet that the stack would send out of some WAN: the one that the
 * peer was heard on. Where that has no route to the peer (asymmetric uplinks), the WAN that the
 * stack would choose. NO_WAN: the routes have changed meanwhile.
 */
static inline u8 way_out(struct __sk_buff *skb, struct packet *packet, struct bpf_fib_lookup *fib,
			 struct heard *heard, long *route)
{
	u32 wan = WAN_IFINDEX(heard->wan);

	*route = route_by_wan(skb, packet, fib, wan, heard);
	if (*route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return heard->wan;
	if (is_forwarded(*route) && fib->ifindex == wan)
		return heard->wan;
	*route = route_as_stack(skb, packet, fib);
	return is_forwarded(*route) ? WAN_INDEX(fib->ifindex) : NO_WAN;
}

/*
 * Ask the kernel for everything, remember the next hop, and let the kernel's own neighbour code
 * send this one packet. It resolves a neighbour not known yet, and keeps probing a known one,
 * which nobody would if all packets went past it. TC_ACT_REDIRECT: there is a way.
 */
static inline int find_route(struct __sk_buff *skb, struct counters *count, struct peer *peer,
			     struct packet *packet, struct heard heard, u64 now, struct way *way)
{
	struct bpf_fib_lookup fib;
	long route = route_as_stack(skb, packet, &fib);
	u8 out;

	if (!is_forwarded(route))
		return leave_to_stack(count);
	/* Who was heard on a WAN may be forged: media go where the routes send them. */
	if (WAN_INDEX(fib.ifindex) == NO_WAN)
		return leave_routed_elsewhere(count);
	out = way_out(skb, packet, &fib, &heard, &route);
	if (out == NO_WAN)
		return leave_routed_elsewhere(count);
	if (route == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return refuse_too_big(count, packet);
	way->wan = WAN_IFINDEX(out);
	way->link = NO_LINK;
	/* Rules may lead UCM's address to a WAN, and not the public one. */
	if (LINK_HEADER(way->wan))
		way->hop = next_hop_of(&fib);
	if (peer && (has_neighbour(route, &fib) || !LINK_HEADER(way->wan)))
		remember_hop(peer, &fib, heard, out, wire_length(skb, packet), now);
	return TC_ACT_REDIRECT;
}

/* The rewrite, and what else ip_forward() does to a packet besides routing it. */
static inline long rewrite_for(struct __sk_buff *skb, struct packet *packet, struct heard *heard,
			       struct way *way)
{
	struct link_header link = packet->l3 == ETH_HLEN ? way->link : NO_LINK;
	bool takes_link = LINK_HEADER(way->wan) || FINDS_HEADER(way->wan);

	if (skb->vlan_present && bpf_skb_vlan_pop(skb))
		return -1;
	skb->priority = tos_priority(packet->tos);
	if (rewrite_source(skb, packet, heard, 1, link))
		return -1;
	if (!packet->l3 && takes_link && add_link_header(skb, &way->link))
		return -1;
	if (FINDS_HEADER(skb->ifindex) && packet->l3 > ETH_HLEN)
		return shorten_link_header(skb, packet->l3);
	return 0;
}

/* Hold music is rewritten, and has its way out: TC_ACT_REDIRECT. */
static inline int prepare_moh(struct __sk_buff *skb, struct counters *count, struct known *known,
			      struct packet *packet, u64 now, struct way *way)
{
	struct peer *peer = known->peer;
	struct heard heard = known->heard;
	int verdict;

	if (packet->ttl <= 1)
		return leave_to_stack(count);
	if (!keep_hop(peer, heard, wire_length(skb, packet), now, way) &&
	    !renew_hop(skb, peer, packet, heard, now, way)) {
		verdict = find_route(skb, count, peer, packet, heard, now, way);
		if (verdict != TC_ACT_REDIRECT)
			return verdict;
	}
	if (rewrite_for(skb, packet, &known->heard, way))
		return drop_failed(count);
	count->rewritten++;
	count->bypassed++;
	return TC_ACT_REDIRECT;
}

static inline int send_out(struct way *way, u32 l3)
{
	if (is_redirected(l3, way->wan, &way->link))
		return bpf_redirect(way->wan, 0);
	return way->hop.family ? redirect_neigh(way->wan, &way->hop, sizeof(way->hop), 0)
			       : redirect_neigh(way->wan, NULL, 0, 0);
}

static inline int judge_known_at_lan(struct __sk_buff *skb, struct counters *count,
				     struct known *known, struct packet *packet, u64 now)
{
	bool is_moh = known->heard.state == STATE_MOH;
	struct way way = {};
	int verdict;

	if (is_moh) {
		verdict = prepare_moh(skb, count, known, packet, now, &way);
		if (verdict != TC_ACT_REDIRECT)
			return verdict;
	} else {
		count->passed_two++;
	}
	count_outbound(skb, count, known, packet, now);
	return is_moh ? send_out(&way, packet->l3) : TC_ACT_UNSPEC;
}

/* The WAN that a packet would leave by as the stack forwards it; NO_WAN: by none. */
static inline u8 wan_by_route(struct __sk_buff *skb, struct packet *packet)
{
	struct bpf_fib_lookup fib;

	return is_forwarded(route_as_stack(skb, packet, &fib)) ? WAN_INDEX(fib.ifindex) : NO_WAN;
}

/* May it have to wait: not heard yet, or from a port that may be of a hold? */
static inline bool may_wait(struct known *known, struct packet *packet, u64 now)
{
	if (!known->evidence)
		return true;
	return known->heard.state == STATE_TWO && known->peer &&
	       !is_of_the_call(known->peer, packet, known->heard, now);
}

/*
 * LAN ingress, before netfilter and conntrack. Hold music is rewritten and sent out of the WAN
 * that its peer was heard on; a two-way call goes on to the firewall's ordinary NAT.
 */
int moh_bypass(struct __sk_buff *skb)
{
	struct packet packet;
	enum kind kind = read_packet(skb, &packet);
	struct counters *count;
	struct known known;
	u64 now;
	u8 wan;

	/* As ip_forward(): what a promiscuous interface overhears is not for us to forward. */
	if (kind == KIND_OTHER || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	if (kind == KIND_FRAGMENT) {
		if (IS_UCM(packet.saddr))
			count_fragment();
		return TC_ACT_UNSPEC;
	}
	if (kind == KIND_UDP || !is_ours(&packet)) {
		note_anothers(&packet);
		return TC_ACT_UNSPEC;
	}
	count = this_cpu_counters();
	if (!count)
		return TC_ACT_UNSPEC;

	now = clock_ns();
	known = identify(count, &packet, now);
	if (!known.evidence && !may_be_dropped(kind, &packet))
		return TC_ACT_UNSPEC;
	/* Only what would leave by a WAN waits. The rest is not ours. */
	if (may_wait(&known, &packet, now)) {
		wan = wan_by_route(skb, &packet);
		if (wan != NO_WAN)
			return known.evidence ? hold_back(count, known.peer)
					      : judge_unheard(skb, count, &packet, wan, true, now);
		if (!known.evidence)
			return TC_ACT_UNSPEC;
	}
	return judge_known_at_lan(skb, count, &known, &packet, now);
}
