/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which addresses and interfaces are of this attachment: config.h's lists, each asked here alone.
 *
 * The compiler makes a chain of comparisons of a list. The verifier would know after it which of
 * all it was, and follow whatever comes then once for each. So it is asked of a copy that has
 * nothing to do with the value, and what comes out may be any value.
 */
#ifndef MOH_ATTACHED_H
#define MOH_ATTACHED_H

#include "config.h"

/* To the verifier any value within this mask. */
static __always_inline u32 any_value(struct __sk_buff *skb, u32 value, u32 mask)
{
	u32 rest = skb->len - value;

	asm volatile("" : "+r"(rest));
	return (skb->len - rest) & mask;
}

/* The same value, which the verifier does not take for the same. */
static __always_inline u32 copy_of(u32 value)
{
	u32 copy = ~value;

	asm volatile("" : "+r"(copy));
	return ~copy;
}

static __always_inline bool is_ucm(__be32 address)
{
	u32 copy = copy_of(address);

	return IS_UCM(copy);
}

static __always_inline bool is_public(__be32 address)
{
	u32 copy = copy_of(address);

	return IS_PUBLIC(copy);
}

static __always_inline bool is_lan(u32 ifindex)
{
	u32 copy = copy_of(ifindex);

	return IS_LAN(copy);
}

static __always_inline u8 wan_index(struct __sk_buff *skb, u32 ifindex)
{
	u32 copy = copy_of(ifindex);

	return any_value(skb, WAN_INDEX(copy), 0xff);
}

static __always_inline bool finds_header(struct __sk_buff *skb)
{
	u32 copy = copy_of(skb->ifindex);

	return FINDS_HEADER(copy);
}

static __always_inline u32 link_header(struct __sk_buff *skb)
{
	u32 copy = copy_of(skb->ifindex);

	return LINK_HEADER(copy);
}

/* 0: there is no such WAN. */
static __always_inline u32 wan_ifindex(struct __sk_buff *skb, u8 index)
{
	u32 copy = copy_of(index);

	return any_value(skb, WAN_IFINDEX(copy), ~0);
}

/* Does what leaves by the WAN of this index get an Ethernet header? */
static __always_inline bool has_link_header(u8 index)
{
	return WANS_WITH_HEADER >> (index & 63) & 1;
}

/* Or one that only the kernel can make? */
static __always_inline bool makes_link_header(u8 index)
{
	return WANS_MAKING_HEADER >> (index & 63) & 1;
}

#endif
