/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * enforce, at the WAN's egress.
 */

/*
 * To an endpoint in a call. A packet that bypass has let through is counted there already. If it is
 * still UCM's at the WAN, the firewall does not NAT it: worth knowing, none of our doing.
 */
static inline bool pass_two(struct __sk_buff *skb, struct counters *count)
{
	count->passed_unnatted++;
	if (is_lan(skb->ingress_ifindex))
		return false;
	count->passed_two++;
	return true;
}

static inline int judge_known_at_wan(struct known *known, struct packet *packet)
{
	if (known->heard.state == STATE_MOH) {
		if (rewrite_source(packet->skb, packet, &known->heard, 0, NO_LINK))
			return drop_failed(packet->count);
		packet->count->rewritten++;
	} else if (known->peer && !is_of_the_call(known->peer, packet, known->heard)) {
		return hold_back(packet->count, known->peer);
	} else if (!pass_two(packet->skb, packet->count)) {
		return TC_ACT_UNSPEC;
	}
	count_outbound(known, packet);
	return TC_ACT_UNSPEC;
}

/* Not heard, at the WAN. What passes there is UCM's still: the firewall does not NAT it. */
static inline int judge_unheard_at_wan(struct packet *packet)
{
	int verdict = judge_unheard(packet, wan_index(packet->skb, packet->skb->ifindex),
				    !is_lan(packet->skb->ingress_ifindex));

	if (verdict == TC_ACT_UNSPEC)
		packet->count->passed_unnatted++;
	return verdict;
}

/* What came in by no LAN, where bypass would have seen it: by now it has its public port. */
static inline void note_anothers_at_wan(struct packet *packet)
{
	if (is_public(packet->saddr) && !is_lan(packet->skb->ingress_ifindex))
		note_anothers(packet);
}

/* WAN egress. The rule: UCM's RTP leaves as its destination was heard to expect it, or not. */
int moh_enforce(struct __sk_buff *skb)
{
	struct packet packet;
	enum kind kind = read_packet(skb, &packet);
	struct known known;

	if (kind < KIND_ALIKE) {
		if (kind == KIND_FRAGMENT && is_ucm(packet.saddr))
			count_fragment();
		if (kind == KIND_UDP)
			note_anothers_at_wan(&packet);
		flip_hold(skb);
		return TC_ACT_UNSPEC;
	}
	if (!is_ours(&packet)) {
		note_anothers_at_wan(&packet);
		return TC_ACT_UNSPEC;
	}
	if (!begin_judging(kind, &packet, &known))
		return TC_ACT_UNSPEC;
	if (!known.evidence)
		return judge_unheard_at_wan(&packet);
	return judge_known_at_wan(&known, &packet);
}
