/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Finding the direction of a hold in SDP (RFC 8866, RFC 3264), and changing it in place.
 *
 * A packet's text is copied into a map and read there, eight bytes at a time. All that is known of
 * it on the way is kept in that map, too, and not in registers: what the verifier knows of a
 * register, it follows through every turn of the loop; of a map's value it knows nothing, and one
 * turn is like the other. Each turn may branch some dozen times, 8,192 branches are the most
 * that it keeps in mind (BPF_COMPLEXITY_LIMIT_JMP_SEQ).
 */
#ifndef MOH_SIP_H
#define MOH_SIP_H

#include <linux/tcp.h>

#include "config.h"
#include "packet.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words of text are compared as little-endian numbers"
#endif

#define SIP_TEXT 4096	   /* bytes that are read; a power of two */
#define SIP_TAIL 128	   /* of them, a line's that the segment before has begun */
#define SIP_SHORT_LINE 16  /* a longer one has told what it is */
#define SIP_WORD 10	   /* bytes of "a=sendonly" */
#define SIP_TURNS 448	   /* one for each sixteen bytes, and one for each line */
#define SIP_MESSAGES 8	   /* that are told apart in one packet; a power of two */
#define CALL_ID_LENGTH 112 /* characters that tell one Call-ID from another: all in a tail */
#define HEADER_BLANKS 8	   /* at most, between a header's name and its value, the colon is one */

/* Eight characters or fewer as the number that they are when loaded from the text. */
#define TEXT8(a, b, c, d, e, f, g, h)                                                  \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 | \
	 (u64)(f) << 40 | (u64)(g) << 48 | (u64)(h) << 56)
#define TEXT4(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)
#define TEXT2(a, b) ((u16)((a) | (b) << 8))
#define FIRST(bytes) ((bytes) < 8 ? (1ULL << 8 * (bytes)) - 1 : ~0ULL)
/* To the compiler: what was stored must be loaded again, and none of it is known. */
#define LOAD_AGAIN() asm volatile("" ::: "memory")

/* Of eight bytes each: what is found is a mark, the highest bit of a byte. */
#define ALL(byte) (0x0101010101010101ULL * (byte))
#define MARKS ALL(0x80)

#define LOWER ALL(' ')

#define M_AUDIO TEXT8('m', '=', 'a', 'u', 'd', 'i', 'o', ' ')
#define A_SENDON TEXT8('a', '=', 's', 'e', 'n', 'd', 'o', 'n')
#define A_SENDRE TEXT8('a', '=', 's', 'e', 'n', 'd', 'r', 'e')
#define A_RECVON TEXT8('a', '=', 'r', 'e', 'c', 'v', 'o', 'n')
#define A_INACTI TEXT8('a', '=', 'i', 'n', 'a', 'c', 't', 'i')
#define SENDONLY TEXT8('s', 'e', 'n', 'd', 'o', 'n', 'l', 'y')
#define SENDRECV TEXT8('s', 'e', 'n', 'd', 'r', 'e', 'c', 'v')
#define RECVONLY TEXT8('r', 'e', 'c', 'v', 'o', 'n', 'l', 'y')

#define CALL_ID TEXT8('c', 'a', 'l', 'l', '-', 'i', 'd', 0)
#define CONTENT_ TEXT8('c', 'o', 'n', 't', 'e', 'n', 't', '-')
#define LENGTH TEXT8('l', 'e', 'n', 'g', 't', 'h', 0, 0)
#define SIP_2_0 TEXT8('S', 'I', 'P', '/', '2', '.', '0', ' ')
#define INVITE TEXT8('I', 'N', 'V', 'I', 'T', 'E', ' ', 0)

/* Where the reader is: before any m= line, in the media section that matters, or in another. */
enum section {
	SECTION_NONE,
	SECTION_OPEN,	/* its direction is not seen yet */
	SECTION_CLOSED, /* its direction was seen, or it is one that does not matter */
};

/*
 * What is known of a message. Offsets are into the packet's text, plus 1; 0: not in this packet.
 * All else goes on in the next TCP segment.
 */
struct sip_message {
	u64 call_id;	  /* a hash; 0: not known */
	u32 call_id_at;	  /* behind the header's name */
	u32 length_at;	  /* the same of Content-Length */
	u32 media_at;	  /* the m= line of the section that matters */
	u32 word;	  /* the direction to be changed, in its media section */
	u32 session_word; /* the same before any m= line */
	u8 section;	  /* enum section */
	u8 media;	  /* one bit for each m= line, eight at most */
	u8 begun;	  /* its first line was seen, so that all before the m= lines is known */
	u8 invite;
	u8 no_body;
	u8 held;	/* its direction was changed */
	u8 more_words;	/* in another section that matters */
	u8 stray_words; /* directions in a section whose m= line is in no packet that we know */
	u8 ends;	/* nothing of it follows */
	u8 status;	/* a response's first digit; 0: a request, or not known */
	u8 bye;
	u8 headless; /* its first line is not known: the body before it has no line's end */
};

/* The holds of all dialogs. Those whose end is not seen count for LONGEST_HOLD_NS. */
struct sip_holds {
	u64 number;
	u64 last; /* when the last one began, in ns */
};

/* What is known where a TCP segment ends. */
struct sip_context {
	u8 tail[SIP_TAIL]; /* the unfinished line, if it may yet matter */
	struct sip_message message;
	u8 tail_length; /* bytes */
	u8 line_begins; /* the tail, or the next byte, is a line's first */
	u8 zero[6];
};

/* A TCP segment: the one that begins there goes on with the context. */
struct sip_segment {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	u32 sequence; /* host byte order */
};

/* Where in the packet the text is. */
struct sip_place {
	u32 l4;
	u32 check;   /* offset of the checksum */
	u32 payload; /* offset of the text */
	u32 length;
	bool is_tcp;
	bool has_check;
	bool goes_on; /* the rest is in other fragments */
	bool pushed;  /* what the sender wrote at once ends here (PSH: RFC 9293, 3.9.1.2) */
	struct sip_segment segment;
};

/* A packet's text, and what was found in it. */
struct sip {
	u8 text[SIP_TEXT + SIP_TAIL]; /* the tail, the packet's text, zeros */
	u32 length;
	u32 at;
	u32 line;  /* where the present line begins; `length`: in an earlier segment */
	u32 tail;  /* bytes of the text that were the segment's before */
	u32 whole; /* the last line that must be read whole, plus 1 */
	u32 count; /* of messages */
	struct sip_message messages[SIP_MESSAGES];
	struct sip_context context; /* its message is the present one */
	struct sip_context again;   /* for a segment that is sent again */
	struct sip_place place;
};

/* The word that is looked for, in which media section. */
struct sip_search {
	u64 port;   /* of the section's m= line, as text; 0: any */
	u32 digits; /* of the port */
	u64 word;   /* the first eight characters of the line */
	u16 rest;   /* and the last two */
};

/* Loaded in one instruction, wherever it lies. */
typedef u64 __attribute__((may_alias)) text8;

/* Eight bytes of the text, `further` than at: up to 24. */
static __always_inline u64 load8(struct sip *sip, u32 at, u32 further)
{
	return *(text8 *)(sip->text + (at & (SIP_TEXT - 1)) + further);
}

/* Is the first of text's m= lines one for this port? The number is followed by a blank or "/". */
static __always_inline bool is_section(struct sip_search *search, u64 second)
{
	u8 next = second >> 8 * search->digits;

	if (!search->port)
		return true;
	return (second & FIRST(search->digits)) == search->port && (next == ' ' || next == '/');
}

/* Does the text end within the first so many bytes of this word? It is followed by zeros. */
static __always_inline bool ends_in(u64 word, u32 bytes)
{
	word |= ~FIRST(bytes);
	return (word - ALL(1)) & ~word & MARKS;
}

/* A line that the packet's end cuts off before it has told is read in the next one. */
static __always_inline void note_media(struct sip *sip, struct sip_search *search, u32 at,
				       u64 first, u64 second)
{
	bool is_audio = first == M_AUDIO;

	if (ends_in(first, 8) || (is_audio && ends_in(second, search->digits + 1)))
		return;
	sip->context.message.media = sip->context.message.media << 1 | 1;
	if (is_audio && is_section(search, second)) {
		sip->context.message.section = SECTION_OPEN;
		sip->context.message.media_at = at + 1;
	} else {
		sip->context.message.section = SECTION_CLOSED;
	}
}

/* Behind the line is a CR, a LF, the packet's end, whose bytes are followed by 0; or a blank that
 * somebody has left there. */
static __always_inline bool is_line_of(u64 first, u64 second, u64 word, u16 rest)
{
	u8 next = second >> 16;

	return first == word && (u16)second == rest && next <= ' ';
}

static __always_inline void note_word(struct sip *sip, u32 at)
{
	struct sip_message *message = &sip->context.message;

	if (message->section == SECTION_OPEN) {
		if (message->word)
			message->more_words = 1;
		else
			message->word = at + 1;
		message->section = SECTION_CLOSED;
	} else if (message->section == SECTION_NONE) {
		if (message->begun)
			message->session_word = at + 1;
		else
			message->stray_words = 1;
	}
}

static __always_inline void note_attribute(struct sip *sip, struct sip_search *search, u32 at,
					   u64 first, u64 second)
{
	if (is_line_of(first, second, search->word, search->rest))
		note_word(sip, at);
	else if ((first == A_SENDON || first == A_SENDRE || first == A_RECVON ||
		  first == A_INACTI) &&
		 !ends_in(second, 2) && sip->context.message.section == SECTION_OPEN)
		sip->context.message.section = SECTION_CLOSED;
}

static __always_inline u64 is_zero(u64 value)
{
	return ~(value | -value) >> 63;
}

/* " sip" or " tel" (RFC 3261, 7.1: the method is followed by a URI; its scheme has no case). */
static __always_inline u64 begins_uri(u64 text)
{
	text = (text | LOWER) & FIRST(4);
	return is_zero(text ^ TEXT4(' ', 's', 'i', 'p')) |
	       is_zero(text ^ TEXT4(' ', 't', 'e', 'l'));
}

/* Of eight bytes, a mark in each that is a capital. */
static __always_inline u64 capitals_in(u64 word)
{
	u64 seven = word & ALL(0x7f);

	return (seven + ALL(0x80 - 'A')) & ~(seven + ALL(0x80 - 'Z' - 1)) & ~word & MARKS;
}

/*
 * Is it the first line of a message? "SIP/2.0 ", or a method, which is three to nine capitals, and
 * a URI: a header's name, a CSeq's method or a segment's "AVP 0" is neither. Without branches, for
 * it is asked of each line.
 */
static __always_inline u64 is_first_line(u64 first, u64 second)
{
	u64 others = ~capitals_in(first) & MARKS, end = others & -others;
	u32 bits = (end >> 7) * 0x0001020304050607ULL >> 56 << 3;
	u64 behind = first >> bits | second << 1 << (63 - bits);
	u64 is_short = begins_uri(behind) & ~is_zero(end & ~FIRST(3));
	u64 is_nine = capitals_in(second) >> 7 & begins_uri(second >> 8);
	u64 is_long = is_zero(others) & (begins_uri(second) | is_nine);

	return is_short | is_long | is_zero(first ^ SIP_2_0);
}

/* All that follows is of another message, unless there is no more room: then it is not read. */
static __always_inline void next_message(struct sip *sip, u32 at, u64 first, u64 second)
{
	u32 count = sip->count, is_behind_another = (at + 0x7fffffff) >> 31;

	if (count >= SIP_MESSAGES - 1) {
		sip->length = at;
		return;
	}
	sip->context.message.ends = 1;
	sip->messages[count & (SIP_MESSAGES - 1)] = sip->context.message;
	sip->count = count + is_behind_another;
	sip->context.message = (struct sip_message){
		.begun = 1,
		.status = (u8)second & -(u8)is_zero(first ^ SIP_2_0),
		.bye = is_zero((first & FIRST(4)) ^ TEXT4('B', 'Y', 'E', ' ')),
		.headless = is_zero(first),
	};
}

/* A second one after a body: where that has no line's end, the next message's first line is none.
 */
static __always_inline void note_call_id(struct sip *sip, u32 at, u32 name)
{
	if (sip->context.message.media)
		next_message(sip, at, 0, 0);
	sip->context.message.call_id_at = at + name + 1;
	sip->whole = at + 1;
}

static __always_inline void note_length(struct sip *sip, u32 at, u32 name)
{
	sip->context.message.length_at = at + name + 1;
	sip->whole = at + 1;
}

/* Header names are read without regard to case, those of SDP are lower case (RFC 8866, 5). */
static __always_inline void note_line(struct sip *sip, struct sip_search *search, u32 at)
{
	u64 first = load8(sip, at, 0), second = load8(sip, at, 8);
	u32 call_id = 0;

	if (is_first_line(first, second))
		next_message(sip, at, first, second);
	switch ((u16)(first | LOWER)) {
	case TEXT2('m', '='):
		if ((u16)first == TEXT2('m', '='))
			note_media(sip, search, at, first, second);
		break;
	case TEXT2('a', '='):
		note_attribute(sip, search, at, first, second);
		break;
	case TEXT2('i', ':'):
		call_id = 1;
		break;
	case TEXT2('l', ':'):
		note_length(sip, at, 1);
		break;
	case TEXT2('c', 'a'):
		if (((first | LOWER) & FIRST(7)) == CALL_ID)
			call_id = 7;
		break;
	case TEXT2('c', 'o'):
		if ((first | LOWER) == CONTENT_ && ((second | LOWER) & FIRST(6)) == LENGTH)
			note_length(sip, at, 14);
		break;
	case TEXT2('i', 'n'):
		if ((first & FIRST(7)) == INVITE)
			sip->context.message.invite = 1;
		break;
	}
	if (call_id)
		note_call_id(sip, at, call_id);
}

static __always_inline u64 newlines_in(u64 word)
{
	word ^= ALL('\n');
	return (word - ALL(1)) & ~word & MARKS;
}

/* Sixteen bytes further, or to the line's end: the lowest mark is the first newline's. */
static __always_inline void go_on(struct sip *sip, u32 at)
{
	u64 newlines = newlines_in(load8(sip, at, 0)), first;

	if (!newlines) {
		newlines = newlines_in(load8(sip, at, 8));
		at += 8;
	}
	first = (newlines & -newlines) >> 7;
	if (newlines) {
		sip->at = at + (first * 0x0001020304050607ULL >> 56) + 1;
		sip->line = sip->at;
		sip->context.line_begins = 1;
	} else {
		sip->at = at + 8;
		sip->context.line_begins = 0;
	}
}

/* `length` is that of what was read, afterwards. */
static __always_inline void read_text(struct sip *sip, struct sip_search *search)
{
	for (u32 turn = 0; turn < SIP_TURNS; turn++) {
		bool line_begins;
		u32 at;

		LOAD_AGAIN();
		at = sip->at;
		if (at >= sip->length)
			break;
		line_begins = sip->context.line_begins;
		go_on(sip, at);
		LOAD_AGAIN();
		if (line_begins)
			note_line(sip, search, at);
	}
	LOAD_AGAIN();
	if (sip->at < sip->length)
		sip->length = sip->at;
}

/* From behind a header's name to its value. */
static __always_inline u32 skip_blanks(struct sip *sip, u32 at)
{
	for (u32 i = 0; i < HEADER_BLANKS; i++, at++) {
		u8 c = sip->text[at & (SIP_TEXT - 1)];

		if (c != ':' && c != ' ' && c != '\t')
			break;
	}
	return at;
}

/* "Content-Length: 0": its first digit tells. */
static __always_inline bool is_no_length(struct sip *sip, u32 at)
{
	return sip->text[skip_blanks(sip, at) & (SIP_TEXT - 1)] == '0';
}

/* A hash of the Call-ID, from the first visible character to the last, in FNV's manner; 0 is none.
 */
static __always_inline u64 hash_call_id(struct sip *sip, u32 at)
{
	u64 hash = 0xcbf29ce484222325ULL;

	at = skip_blanks(sip, at);
	for (u32 i = 0; i < CALL_ID_LENGTH / 8; i++) {
		u64 word = load8(sip, at + 8 * i, 0);
		u64 blanks = ~(((word & ALL(0x7f)) + ALL(0x7f - ' ')) | word) & MARKS;
		u64 end = (blanks & -blanks) >> 7;

		if (!i && end == 1)
			return 0;
		hash = (hash ^ (word & (end - 1))) * 0x100000001b3ULL;
		hash ^= hash >> 32;
		if (end)
			break;
	}
	return hash;
}

/*
 * Where the text of TCP or UDP begins; false if the packet is neither, or no first fragment, or has
 * no text. Only IPv4.
 */
static __always_inline bool find_text(struct __sk_buff *skb, struct sip_place *place)
{
	u32 l3, total, headers;
	struct iphdr *ip;
	struct udphdr *udp;
	struct tcphdr *tcp;

	if (!is_ipv4(skb) || !find_ip(skb, &l3))
		return false;
	ip = header_at(skb, l3, sizeof(*ip));
	if (!ip || ip->version != 4 || ip->ihl < 5 || ip->frag_off & bpf_htons(IP_OFFSET))
		return false;
	place->is_tcp = ip->protocol == IPPROTO_TCP;
	if (!place->is_tcp && ip->protocol != IPPROTO_UDP)
		return false;
	place->goes_on = ip->frag_off & bpf_htons(IP_MF);
	place->l4 = l3 + ip->ihl * 4;
	place->segment.saddr = ip->saddr;
	place->segment.daddr = ip->daddr;
	total = bpf_ntohs(ip->tot_len);
	/* A packet of over 64 KiB, to be cut into segments, has no length of its own. */
	total = total ? l3 + total : skb->len;
	if (total > skb->len)
		return false;

	udp = header_at(skb, place->l4, sizeof(*udp));
	if (!udp)
		return false;
	place->segment.sport = udp->source;
	place->segment.dport = udp->dest;
	if (!IS_SIP_PORT(udp->source) && !IS_SIP_PORT(udp->dest))
		return false;
	headers = sizeof(*udp);
	/* What is behind the datagram is not in its checksum. */
	if (!place->is_tcp && !place->goes_on && place->l4 + bpf_ntohs(udp->len) < total)
		total = place->l4 + bpf_ntohs(udp->len);
	place->check = place->l4 + offsetof(struct udphdr, check);
	place->has_check = place->is_tcp || udp->check;
	place->segment.sequence = 0;
	place->pushed = false;
	if (place->is_tcp) {
		tcp = header_at(skb, place->l4, sizeof(*tcp));
		if (!tcp)
			return false;
		headers = tcp->doff * 4;
		if (headers < sizeof(*tcp))
			return false;
		place->check = place->l4 + offsetof(struct tcphdr, check);
		place->segment.sequence = bpf_ntohl(tcp->seq);
		place->pushed = tcp->psh;
	}
	place->payload = place->l4 + headers;
	place->length = total - place->payload;
	return place->payload < total;
}

/* Copy the text, as much of it as there is room for, behind the tail. False: it cannot be read. */
static __always_inline bool load_text(struct __sk_buff *skb, struct sip *sip)
{
	u32 length = sip->place.length, tail;

	if (length > SIP_TEXT - SIP_TAIL)
		length = SIP_TEXT - SIP_TAIL;
	/* 1 to SIP_TEXT, which the verifier cannot see, nor the compiler say in its words. */
	length--;
	asm volatile("" : "+r"(length));
	length = (length & (SIP_TEXT - 1)) + 1;
	tail = sip->context.tail_length & (SIP_TAIL - 1);
	__builtin_memcpy(sip->text, sip->context.tail, SIP_TAIL);
	if (bpf_skb_load_bytes(skb, sip->place.payload, sip->text + tail, length))
		return false;
	__builtin_memset(sip->text + tail + length, 0, 32);
	sip->length = tail + length;
	sip->tail = tail;
	sip->at = 0;
	sip->line = sip->context.line_begins ? 0 : sip->length;
	sip->whole = 0;
	sip->count = 0;
	return true;
}

/* Is the packet's first line that of a message? A segment may begin within a line. */
static __always_inline bool begins_message(struct __sk_buff *skb, struct sip_place *place)
{
	struct {
		u64 first;
		u64 second;
	} line = {};

	if (bpf_skb_load_bytes(skb, place->payload, &line, sizeof("SIP/2.0 200 OK") - 1))
		return false;
	return is_first_line(line.first, line.second);
}

/* For the next segment: a line that is long has told what it is by now, but for some headers. */
static __always_inline void keep_tail(struct sip *sip)
{
	u32 length = sip->length - sip->line;

	sip->context.tail_length = 0;
	if (sip->context.line_begins)
		return;
	if (length >= SIP_TAIL || (length >= SIP_SHORT_LINE && sip->whole != sip->line + 1))
		return;
	__builtin_memcpy(sip->context.tail, sip->text + (sip->line & (SIP_TEXT - 1)), SIP_TAIL);
	sip->context.tail_length = length;
	sip->context.line_begins = length > 0;
}

/* Words of 16 bits that begin at an odd byte count with their bytes swapped (RFC 1071). */
static __always_inline u32 at_odd(u32 bytes)
{
	return (bytes & 0x00ff00ff) << 8 | (bytes >> 8 & 0x00ff00ff);
}

/*
 * Eight characters of the text become others. The first call makes the packet writable so far, or
 * fails with nothing changed; then the checksum, which lies before it, can be written.
 */
static __always_inline bool change_text(struct __sk_buff *skb, struct sip_place *place, u32 at,
					u64 from, u64 to)
{
	u32 offset = place->payload + at;
	u64 flags = sizeof(u32) | (place->is_tcp ? 0 : BPF_F_MARK_MANGLED_0);
	bool odd = (offset - place->l4) & 1;

	if (bpf_skb_store_bytes(skb, offset, &to, sizeof(to),
				place->has_check ? 0 : BPF_F_RECOMPUTE_CSUM))
		return false;
	if (!place->has_check)
		return true;
	bpf_l4_csum_replace(skb, place->check, odd ? at_odd(from) : (u32)from,
			    odd ? at_odd(to) : (u32)to, flags);
	bpf_l4_csum_replace(skb, place->check, odd ? at_odd(from >> 32) : (u32)(from >> 32),
			    odd ? at_odd(to >> 32) : (u32)(to >> 32), flags);
	return true;
}

#endif
