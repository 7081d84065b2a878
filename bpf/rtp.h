/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a stream of RTP comes along: RFC 3550, appendix A.1 (sequence), A.3 (loss), A.8 (jitter).
 *
 * One CPU handles the packets of one stream in general; where two do at once, a count may miss
 * one, which no verdict depends on.
 */
#ifndef MOH_RTP_H
#define MOH_RTP_H

#include "config.h"
#include "layout.h"
#include "packet.h"

/* A.1: a step so far ahead is loss, one so little behind is a late packet. All else is odd, and a
 * new beginning if the next packet follows it. */
#define MAX_DROPOUT 3000
#define MAX_MISORDER 100
/* So many packets of other streams may come between the first two of a new one: two streams to one
 * endpoint take turns. */
#define MAX_OTHERS 1

/* A media clock that the payload type does not tell is measured so long. */
#define CLOCK_MEASURED_NS 500000000ULL

/* What one packet adds to the sums over all streams. */
struct progress {
	u32 expected;
	u32 lost;
	u32 late;
};

static __always_inline u8 payload_type(struct rtp_header *header)
{
	return header->marker_type & 0x7f;
}

/* ns of one tick of the media clock, by RFC 3551's table 4 and 5; 0: a dynamic payload type. */
static __always_inline u32 tick_of(u8 payload_type)
{
	switch (payload_type) {
	case 6: /* DVI4 */
		return 62500;
	case 10: /* L16 */
	case 11:
		return 22675;
	case 14: /* MPA */
		return 11111;
	case 16: /* DVI4 */
		return 90702;
	case 17:
		return 45351;
	}
	return payload_type < 24 ? 125000 : payload_type < 96 ? 11111 : 0;
}

/* The tick of 8, 16, 32 or 48 kHz that is nearest to what this stream shows; 0: too early to say.
 */
static __always_inline u32 measured_tick(struct rtp *rtp, u32 timestamp, u64 now)
{
	u64 elapsed = now - rtp->began;
	s32 ticks = timestamp - rtp->first_timestamp;

	if (elapsed < CLOCK_MEASURED_NS || ticks <= 0)
		return 0;
	elapsed /= (u32)ticks;
	return elapsed > 88000 ? 125000 : elapsed > 44000 ? 62500 : elapsed > 25500 ? 31250 : 20833;
}

/* Another source, or the same one anew. */
static __always_inline void begin_stream(struct rtp *rtp, struct rtp_header *header, u64 now)
{
	rtp->ssrc = header->ssrc;
	rtp->last_sequence = bpf_ntohs(header->sequence);
	rtp->odd_datagrams = 0;
	rtp->timestamp = bpf_ntohl(header->timestamp);
	rtp->first_timestamp = rtp->timestamp;
	rtp->payload_type = payload_type(header);
	rtp->tick = tick_of(rtp->payload_type);
	rtp->jitter = 0;
	rtp->began = now;
	rtp->timed = now;
	rtp->arrival = now;
}

/*
 * The payload type says what the clock is, or it is measured; until then a dynamic type amid
 * others, as DTMF's is, has theirs. True if this packet has another than the one before.
 */
static __always_inline bool note_clock(struct rtp *rtp, struct rtp_header *header, u64 now)
{
	u32 timestamp = bpf_ntohl(header->timestamp);
	u32 tick = tick_of(payload_type(header));

	if (rtp->payload_type != payload_type(header)) {
		rtp->payload_type = payload_type(header);
		rtp->first_timestamp = timestamp;
		rtp->began = now;
	}
	if (!tick)
		tick = measured_tick(rtp, timestamp, now);
	if (!tick || tick == rtp->tick)
		return false;
	rtp->tick = tick;
	rtp->jitter = 0;
	return true;
}

/*
 * A.8, in ns, of each packet as it comes, a late one, too. Packets with the same timestamp are of
 * one frame or one DTMF digit (RFC 4733): only the first of them came when its timestamp says.
 */
static __always_inline void note_timestamp(struct rtp *rtp, struct rtp_header *header, u64 now)
{
	u32 timestamp = bpf_ntohl(header->timestamp);
	s64 late = now - rtp->timed - (s64)(s32)(timestamp - rtp->timestamp) * rtp->tick;

	if (timestamp == rtp->timestamp)
		return;
	if (!note_clock(rtp, header, now) && rtp->tick)
		rtp->jitter += (late < 0 ? -late : late) - ((rtp->jitter + 8) >> 4);
	rtp->timestamp = timestamp;
	rtp->timed = now;
}

static __always_inline void note_arrival(struct rtp *rtp, u64 now)
{
	s64 gap = now - rtp->arrival;

	if (gap > (s64)rtp->longest_gap && gap < (s64)LONGEST_PAUSE_NS)
		rtp->longest_gap = gap;
	rtp->arrival = now;
}

/* A packet that does not fit is kept in mind: a stream begins with the one that follows it. */
static __always_inline void note_odd(struct rtp *rtp, struct rtp_header *header, u32 datagrams)
{
	bool is_other = rtp->odd_datagrams && rtp->odd_ssrc != header->ssrc;

	if (is_other && rtp->odd_others < MAX_OTHERS) {
		rtp->odd_others++;
		return;
	}
	rtp->odd_ssrc = header->ssrc;
	rtp->odd_sequence = bpf_ntohs(header->sequence) + datagrams;
	rtp->odd_datagrams = datagrams;
	rtp->odd_others = 0;
}

static __always_inline bool follows_odd(struct rtp *rtp, struct rtp_header *header)
{
	return rtp->odd_datagrams && rtp->odd_ssrc == header->ssrc &&
	       rtp->odd_sequence == bpf_ntohs(header->sequence);
}

/*
 * A.1, for a receiver that wants two packets in sequence, as random bytes never are. A packet may
 * be several `datagrams` in a row that the kernel has put into one.
 */
static __always_inline struct progress note_rtp(struct rtp *rtp, struct rtp_header *header,
						u32 datagrams, u64 now)
{
	u16 sequence = bpf_ntohs(header->sequence);
	u16 step = sequence - rtp->last_sequence;
	bool is_known = rtp->received && rtp->ssrc == header->ssrc;
	struct progress progress = { .expected = datagrams };

	if (is_known && step && step < MAX_DROPOUT) {
		rtp->last_sequence = sequence;
		progress.expected += step - 1;
		progress.lost = step - 1;
		note_timestamp(rtp, header, now);
		note_arrival(rtp, now);
	} else if (is_known && (!step || step > 0x10000 - MAX_MISORDER)) {
		note_timestamp(rtp, header, now);
		note_arrival(rtp, now);
		rtp->received += datagrams;
		return (struct progress){ .late = datagrams };
	} else if (follows_odd(rtp, header)) {
		progress.expected += rtp->odd_datagrams;
		rtp->received += rtp->odd_datagrams;
		begin_stream(rtp, header, now);
	} else {
		note_odd(rtp, header, datagrams);
		return (struct progress){};
	}
	rtp->last_sequence += datagrams - 1;
	rtp->received += datagrams;
	rtp->expected += progress.expected;
	return progress;
}

#endif
