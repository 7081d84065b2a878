/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The three tc programs and their maps. docs/packet-flow.md follows a packet through them.
 *
 *   learn    WAN ingress   what the provider sends says who is in hold music (MOH) or in a
 *                          two-way call (TWO)
 *   enforce  WAN egress    UCM's RTP: MOH rewritten, TWO passed, neither: dropped while learn
 *                          can hear it, and not for longer than the patience
 *   bypass   LAN ingress   the same verdict before netfilter; hold music goes straight out
 *
 * What is not clearly ours gets TC_ACT_UNSPEC: untouched, and other filters still see it.
 *
 * BCC turns map accesses into helper calls in its main buffer only. So compiler.py puts the parts
 * below, which have maps, into that buffer; the headers hold pure functions. BCC also inlines
 * each static function of that buffer; those of a header must say __always_inline.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "config.h"
#include "layout.h"
#include "packet.h"
#include "rewrite.h"
#include "forward.h"
#include "rtp.h"
#ifdef IS_SIP_PORT
#include "sip.h"
#endif

#include "maps.c"
#include "sip_dialog.c"
#include "peer.c"
#include "events.c"
#include "anothers.c"
#include "signalled.c"
#include "learn.c"
#include "new_port.c"
#include "known.c"
#include "unheard.c"
#include "verdict.c"
#include "enforce.c"
#include "hop.c"
#include "bypass.c"
