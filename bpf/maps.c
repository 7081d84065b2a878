/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The maps, the clocks, and this CPU's counters. moh_ebpf/maps.py has a row for each map.
 */

#ifdef COARSE_CLOCK
static u64 (*coarse_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
#endif

BPF_TABLE("lru_hash", struct endpoint, struct peer, peers, MAX_PEERS + LRU_SPARE);
BPF_TABLE("percpu_array", u32, struct counters, counters, 1);
/* A peer to be: too large for the stack. What is not set in it is 0. A command has one of its own,
 * because packets may come in between. */
BPF_TABLE("percpu_array", u32, struct peer, unborn, 2);
#define UNBORN 0
#define UNBORN_BY_COMMAND 1

/* What happened, for any number of readers; see moh_ebpf/registry/ring.py. */
BPF_RINGBUF_OUTPUT(events, EVENTS_PAGES);
/* Endpoints that UCM sends to and that are not heard. */
BPF_TABLE("lru_hash", struct endpoint, struct waiting, waiting_for, 16384 + LRU_SPARE);
/* Other hosts' connections that our phantom ports are in the way of: when each was used last. */
BPF_TABLE("lru_hash", struct anothers, u64, others, 4096 + LRU_SPARE);
#ifdef RTCP_TIMEOUT_NS
/* By their source: what RTCP says where RTP says nothing. */
BPF_TABLE("lru_hash", struct endpoint, struct report, reports, MAX_PEERS + LRU_SPARE);
#endif
#ifdef MAX_SIGNALLED
/* What signalling says. Not LRU: a flood of dialogs must not evict calls. */
BPF_F_TABLE("hash", struct endpoint, struct signalled, signalled, MAX_SIGNALLED, BPF_F_NO_PREALLOC);
#endif
/* By the WANs' order: does learn see anything there? */
BPF_TABLE("array", u32, struct wan, wans, MAX_WANS);

/* JSON for `status` and `detach`. No program reads it; it lives as long as they do. */
struct settings {
	char json[SETTINGS_SIZE];
};
BPF_TABLE("array", u32, struct settings, settings, 1);

#ifdef MAX_PROVIDERS
BPF_LPM_TRIE(providers, struct prefix, u8, MAX_PROVIDERS);
#endif

#ifdef IS_SIP_PORT
/* Dialogs, by a hash of their Call-ID, in which UCM holds and the provider was told otherwise: when
 * it was told last, in ns. */
BPF_TABLE("lru_hash", u64, u64, dialogs, 16384 + LRU_SPARE);
BPF_TABLE("array", u32, struct sip_holds, holding, 1);
#ifdef MAX_SIP_FROM
BPF_LPM_TRIE(sip_networks, struct prefix, u8, MAX_SIP_FROM);
#endif
/* TCP segments that go on with a message, if the one before them was seen. Each direction has maps
 * of its own: what anybody can send evicts nothing of what UCM has sent. */
BPF_TABLE("lru_hash", struct sip_segment, struct sip_context, segments, 4096 + LRU_SPARE);
BPF_TABLE("lru_hash", struct sip_segment, struct sip_context, segments_back, 4096 + LRU_SPARE);
/* Where in a TCP connection a line began that is in two segments. */
BPF_TABLE("lru_hash", struct sip_segment, u8, cut_lines, 4096 + LRU_SPARE);
BPF_TABLE("lru_hash", struct sip_segment, u8, cut_lines_back, 4096 + LRU_SPARE);
BPF_TABLE("percpu_array", u32, struct sip, sip_text, 1);
#endif

/* ns of CLOCK_MONOTONIC at its last tick, which costs less than the exact time. */
static inline u64 tick_ns(void)
{
#ifdef COARSE_CLOCK
	return coarse_ns();
#else
	return bpf_ktime_get_ns();
#endif
}

/* ns of CLOCK_MONOTONIC, exact where the quality of streams is kept. */
static inline u64 clock_ns(void)
{
#ifdef QUALITY
	return bpf_ktime_get_ns();
#else
	return tick_ns();
#endif
}

/* Not negative, even if the two times are of two CPUs. */
static inline u64 elapsed(u64 since, u64 until)
{
	return (s64)(until - since) > 0 ? until - since : 0;
}

static inline struct counters *this_cpu_counters(void)
{
	u32 zero = 0;

	return counters.lookup(&zero);
}

static inline void count_fragment(void)
{
	struct counters *count = this_cpu_counters();

	if (count)
		count->fragments++;
}
