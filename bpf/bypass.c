/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bypass, at the LAN's ingress, before netfilter and conntrack.
 */

/* The rewrite, and what else ip_forward() does to a packet besides routing it. */
static inline long rewrite_for(struct packet *packet, struct heard *heard, struct way *way)
{
	struct link_header link = packet->l3 == ETH_HLEN ? way->link : NO_LINK;
	bool takes_link = has_link_header(way->wan) || makes_link_header(way->wan);

	if (packet->skb->vlan_present && bpf_skb_vlan_pop(packet->skb))
		return -1;
	packet->skb->priority = tos_priority(packet->tos);
	if (rewrite_source(packet->skb, packet, heard, 1, link))
		return -1;
	if (!packet->l3 && takes_link && add_link_header(packet->skb, &way->link))
		return -1;
	if (finds_header(packet->skb) && packet->l3 > ETH_HLEN)
		return shorten_link_header(packet->skb, packet->l3);
	return 0;
}

/* Hold music is rewritten, and has its way out: TC_ACT_REDIRECT. */
static inline int prepare_moh(struct known *known, struct packet *packet, struct way *way)
{
	struct peer *peer = known->peer;
	struct heard heard = known->heard;
	int verdict;

	if (packet->ttl <= 1)
		return leave_to_stack(packet->count);
	if (!keep_hop(peer, packet, heard, way) && !renew_hop(peer, packet, heard, way)) {
		verdict = find_route(peer, packet, heard, way);
		if (verdict != TC_ACT_REDIRECT)
			return verdict;
	}
	if (rewrite_for(packet, &known->heard, way))
		return drop_failed(packet->count);
	packet->count->rewritten++;
	packet->count->bypassed++;
	return TC_ACT_REDIRECT;
}

static inline int send_out(struct way *way, u32 l3)
{
	if (is_redirected(l3, way->wan, &way->link))
		return bpf_redirect(way->ifindex, 0);
	return way->hop.family ? redirect_neigh(way->ifindex, &way->hop, sizeof(way->hop), 0)
			       : redirect_neigh(way->ifindex, NULL, 0, 0);
}

static inline int judge_known_at_lan(struct known *known, struct packet *packet)
{
	bool is_moh = known->heard.state == STATE_MOH;
	struct way way = {};
	int verdict;

	if (is_moh) {
		verdict = prepare_moh(known, packet, &way);
		if (verdict != TC_ACT_REDIRECT)
			return verdict;
	} else {
		packet->count->passed_two++;
	}
	count_outbound(known, packet);
	return is_moh ? send_out(&way, packet->l3) : TC_ACT_UNSPEC;
}

/* May it have to wait: not heard yet, or from a port that may be of a hold? */
static inline bool may_wait(struct known *known, struct packet *packet)
{
	if (!known->evidence)
		return true;
	return known->heard.state == STATE_TWO && known->peer &&
	       !is_of_the_call(known->peer, packet, known->heard);
}

/*
 * LAN ingress, before netfilter and conntrack. Hold music is rewritten and sent out of the WAN
 * that its peer was heard on; a two-way call goes on to the firewall's ordinary NAT.
 */
int moh_bypass(struct __sk_buff *skb)
{
	struct packet packet;
	enum kind kind = read_packet(skb, &packet);
	struct known known;
	u8 wan;

	/* As ip_forward(): what a promiscuous interface overhears is not for us to forward. */
	if (kind == KIND_OTHER || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	if (kind == KIND_FRAGMENT) {
		if (is_ucm(packet.saddr))
			count_fragment();
		return TC_ACT_UNSPEC;
	}
	if (kind == KIND_UDP || !is_ours(&packet)) {
		note_anothers(&packet);
		return TC_ACT_UNSPEC;
	}
	if (!begin_judging(kind, &packet, &known))
		return TC_ACT_UNSPEC;
	/* Only what would leave by a WAN waits. The rest is not ours. */
	if (may_wait(&known, &packet)) {
		wan = wan_by_route(&packet);
		if (wan != NO_WAN)
			return known.evidence ? hold_back(packet.count, known.peer)
					      : judge_unheard(&packet, wan, true);
		if (!known.evidence)
			return TC_ACT_UNSPEC;
	}
	return judge_known_at_lan(&known, &packet);
}
