/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which addresses and interfaces are of this attachment: config.h's lists of them, asked here
 * alone.
 *
 * The compiler makes of a list a chain of comparisons, after which the verifier would know which
 * one of all it was, and follow the rest of the program once for each. So a list is asked of a copy
 * that has nothing to do with the value, and the answer may be any value.
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

/* Is it for each packet to tell where its IP header begins? */
static __always_inline bool finds_header(struct __sk_buff *skb)
{
	u32 copy = copy_of(skb->ifindex);

	return FINDS_HEADER(copy);
}

/* Bytes before the IP header; 0 as well where each packet tells. */
static __always_inline u32 link_header_len(struct __sk_buff *skb)
{
	u32 copy = copy_of(skb->ifindex);

	return LINK_HEADER(copy);
}

/* Where the IP header begins, once that is found: a constant, with which a packet is read faster,
 * where all interfaces have the same. */
static __always_inline u32 ip_offset(struct __sk_buff *skb, u32 found)
{
	return __builtin_constant_p(LINK_HEADER(skb->ifindex)) ? found : any_value(skb, found, 63);
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

/* Or one that only the kernel can make, as each packet that comes in there tells its own? */
static __always_inline bool makes_link_header(u8 index)
{
	return WANS_MAKING_HEADER >> (index & 63) & 1;
}

#endif
