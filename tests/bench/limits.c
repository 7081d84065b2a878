/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What tc itself costs: programs that do nothing, drop, and redirect. -D flags give WAN, an
 * ifindex, and in MAC_LOW, MAC_MIDDLE and MAC_HIGH the next hop's MAC address and the WAN's.
 */

/* What a test run of a program costs without a program. */
int empty(struct __sk_buff *skb)
{
	return -1; /* TC_ACT_UNSPEC */
}

/* At the first hook: what is left is the generator's own. At the last one: the sink. */
int drop(struct __sk_buff *skb)
{
	return 2; /* TC_ACT_SHOT */
}

/* The least that forwarding by tc can be: other MAC addresses, another interface. */
int redirect(struct __sk_buff *skb)
{
	u8 *mac = (void *)(long)skb->data;

	if (mac + 14 > (u8 *)(long)skb->data_end)
		return 2;
	*(u32 *)mac = MAC_LOW;
	*(u32 *)(mac + 4) = MAC_MIDDLE;
	*(u32 *)(mac + 8) = MAC_HIGH;
	return bpf_redirect(WAN, 0);
}
