/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SIP that passes, with --flip-hold: the sendonly of a hold, which the provider is not to see.
 * sip.h reads it.
 */

#ifdef IS_SIP_PORT
/* To the verifier any value: else it follows all that comes once for each way here. */
#define ANY_WAY(value) asm volatile("" : "+r"(value))

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
	bool cut, changed;

	ANY_WAY(word);
	cut = word && is_cut(skb, sip, word, back);
	ANY_WAY(cut);
	changed = word && !cut && change_text(skb, &sip->place, word - 1 - sip->tail + 2, from, to);
	ANY_WAY(changed);

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
	if ((!is_ucm(ours) && !is_public(ours)) || !may_signal(theirs))
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
