/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Another host's connection: the firewall's NAT may have given it one of the phantom ports.
 */

/* RTP and RTCP of audio, video and data, in this order, as far as --rtp-ports leaves them. */
static inline bool is_phantom(__be16 port)
{
	return bpf_ntohs(port) >= MOH_PORT && bpf_ntohs(port) <= LAST_PHANTOM_PORT;
}

/* Another host sends from a phantom port: the answers come to it. */
static inline void note_anothers(struct packet *packet)
{
	struct anothers way = {
		.address = packet->daddr,
		.port = packet->dport,
		.public_port = packet->sport,
	};
	u64 now, *used;

	if (!is_phantom(packet->sport) || is_ucm(packet->saddr))
		return;
	now = tick_ns();
	used = others.lookup(&way);
	if (!used)
		others.update(&way, &now);
	else if ((s64)(now - *used) >= (s64)ANOTHERS_STEP_NS)
		*used = now;
}

/* Does UCM send to this endpoint, has it just now, or will it, as signalling says? */
static inline bool is_sent_to(struct endpoint endpoint, u64 now)
{
	struct peer *peer = peers.lookup(&endpoint);
	struct waiting *waiting;

	if (peer && is_signalled(peer, now))
		return true;
	if (peer && peer->out_last && (s64)(now - peer->out_last) < (s64)LONGEST_PAUSE_NS)
		return true;
	waiting = waiting_for.lookup(&endpoint);
	return waiting && (s64)(now - waiting->last) < (s64)LONGEST_PAUSE_NS;
}

/*
 * Is what comes to a phantom port an answer to another host? As long as conntrack would keep the
 * connection, from its last packet on, either way; but where UCM sends, the port is its hold's.
 */
static inline bool is_anothers(struct packet *packet)
{
	struct endpoint endpoint = source_of(packet);
	struct anothers way = {
		.address = packet->saddr,
		.port = packet->sport,
		.public_port = packet->dport,
	};
	u64 *used = others.lookup(&way);

	if (!used || (s64)(packet->now - *used) >= (s64)ANOTHERS_NS ||
	    is_sent_to(endpoint, packet->now))
		return false;
	endpoint.port = next_port(endpoint.port, -1);
	if (packet->is_rtcp && is_sent_to(endpoint, packet->now))
		return false;
	if ((s64)(packet->now - *used) >= (s64)ANOTHERS_STEP_NS)
		*used = packet->now;
	return true;
}
