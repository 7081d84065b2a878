/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What RTP and RTCP are, as far as a header tells (RFC 3550, RFC 5761, RFC 7983).
 */
#ifndef MOH_MEDIA_H
#define MOH_MEDIA_H

/* RFC 7983: the first byte of a version 2 RTP or RTCP packet is 128 to 191. */
#define RTP_VERSION_MASK 0xc0
#define RTP_VERSION_2 0x80

/*
 * RFC 5761, section 4: the second byte of RTCP is its packet type. A compound packet begins with
 * one of 200 to 207. RTP has no payload type that would read so with the marker or without it.
 */
#define RTCP_TYPE_MASK 0xf8
#define RTCP_TYPES 0xc8
#define RTCP_MIN 8 /* bytes: a report of nothing */
#define PAYLOAD_TYPE_MASK 0x7f

/* Media have ports of 1024 and above: DNS, NTP and IKE, which may look like them, have others. */
#define FIRST_MEDIA_PORT 1024

/* RFC 3550, 5.1, without CSRCs. In RTCP, all of the second byte is its type, and its length in
 * words, less one, stands in the place of the sequence number. */
struct rtp_header {
	u8 version;
	u8 marker_type;
	__be16 sequence;
	__be32 timestamp;
	__be32 ssrc;
};

/* RTCP has a whole first packet; that of SRTCP has a trailer behind it. */
static __always_inline bool is_rtcp(struct rtp_header *header, u32 payload)
{
	return (header->marker_type & RTCP_TYPE_MASK) == RTCP_TYPES &&
	       (bpf_ntohs(header->sequence) + 1) * 4 <= payload;
}

/* RTP has no payload types from 64 to 95, because RTCP's types would read so (RFC 5761). */
static __always_inline bool is_rtp(struct rtp_header *header)
{
	u8 type = header->marker_type & PAYLOAD_TYPE_MASK;

	return type < 64 || type >= 96;
}

#endif
