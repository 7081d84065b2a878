/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A packet generator that is not the bottleneck: a prebuilt frame, from an AF_PACKET socket past
 * the qdisc (PACKET_QDISC_BYPASS), many with one system call (sendmmsg).
 *
 * Sent into a veth, each frame is received, forwarded and dropped at the far end in softirq before
 * the sender goes on: all on the sender's own CPU. So the time that sending takes is the time that
 * the packets' whole way takes, and what the sender itself costs is measured by dropping them at
 * the first hook.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FRAME 320 /* no power of two, which would share few cache sets */
#define MAX_BURST 1024
#define PATIENCE_NS 5000000000ULL
#define POLL_NS 20000

/* Offsets in an Ethernet frame of IPv4 without options, UDP, and RTP. */
enum { SADDR = 26, DADDR = 30, SPORT = 34, DPORT = 36, CHECK = 40, SEQUENCE = 44, TIMESTAMP = 46 };

static const char usage[] =
	"generator INTERFACE SINK to|from FLOWS COUNT BURST PAUSE < FRAME\n"
	"\n"
	"Sends COUNT frames like FRAME (Ethernet, IPv4, UDP) round robin over FLOWS endpoints: each\n"
	"its destination's (to) or its source's (from) address and port, counted up from FRAME's.\n"
	"Each endpoint's are a stream of RTP, of 20 ms a packet at 8 kHz.\n"
	"BURST frames at a time; PAUSE: ns from one burst's begin to the next one's, 0 for none,\n"
	"or \"arrival\": the next one when all have arrived at the interface SINK.\n"
	"Prints: frames that arrived at SINK, ns spent sending, ns of those not on the CPU (without\n"
	"pauses; else 0).\n";

struct flow_kind {
	int address, port, other_port;
	bool moves_other_port; /* UCM has a port of its own for each stream */
};
static const struct flow_kind to = { DADDR, DPORT, SPORT, true };
static const struct flow_kind from = { SADDR, SPORT, DPORT, false };

static unsigned char frame[MAX_FRAME];
static unsigned char burst[MAX_BURST][MAX_FRAME];

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static void sleep_until(uint64_t ns)
{
	struct timespec time = { ns / 1000000000ULL, ns % 1000000000ULL };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
		;
}

static uint16_t get16(int offset)
{
	return frame[offset] << 8 | frame[offset + 1];
}

/* Write a 16-bit word of the frame, and tell the checksum (RFC 1624). */
static void put16(unsigned char *at, int offset, uint16_t value, uint32_t *sum)
{
	*sum += (uint16_t)~get16(offset) + value;
	at[offset] = value >> 8;
	at[offset + 1] = value;
}

/*
 * A flow's frame of this round. Eight neighbouring ports share an address: endpoints of a provider's media
 * gateways. Computed, not kept: a table of frames would cost more cache with more flows.
 */
static void aim(unsigned char *at, const struct flow_kind *kind, uint32_t flow, uint32_t round)
{
	uint32_t timestamp = round * 160;
	uint32_t address = ((uint32_t)get16(kind->address) << 16 | get16(kind->address + 2)) +
			   flow / 8;
	uint32_t sum = (uint16_t)~get16(CHECK);

	put16(at, kind->address, address >> 16, &sum);
	put16(at, kind->address + 2, address, &sum);
	put16(at, kind->port, get16(kind->port) + 2 * (flow % 8), &sum);
	if (kind->moves_other_port)
		put16(at, kind->other_port, get16(kind->other_port) + 2 * (flow % 4096), &sum);
	put16(at, SEQUENCE, round, &sum);
	put16(at, TIMESTAMP, timestamp >> 16, &sum);
	put16(at, TIMESTAMP + 2, timestamp, &sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16));
	at[CHECK] = sum >> 8;
	at[CHECK + 1] = sum;
}

/* The IP header's checksum depends on the address too. */
static void finish_ip(unsigned char *at)
{
	uint32_t sum = 0;

	at[24] = at[25] = 0;
	for (int offset = 14; offset < 34; offset += 2)
		sum += at[offset] << 8 | at[offset + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16));
	at[24] = sum >> 8;
	at[25] = sum;
}

static int open_interface(const char *name)
{
	struct sockaddr_ll place = {
		.sll_family = AF_PACKET,
		.sll_ifindex = if_nametoindex(name),
	};
	int fd = socket(AF_PACKET, SOCK_RAW, 0); /* protocol 0: receives nothing */
	int on = 1;

	if (fd < 0 || !place.sll_ifindex || bind(fd, (void *)&place, sizeof(place)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on)))
		error(1, errno, "%s", name);
	return fd;
}

static uint64_t read_number(int fd, int field)
{
	char text[128] = "", *next = text;
	uint64_t number = 0;

	if (pread(fd, text, sizeof(text) - 1, 0) <= 0)
		error(1, errno, "a counter of the kernel's");
	while (field-- >= 0)
		number = strtoull(next, &next, 10);
	return number;
}

static int open_counter(const char *interface)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/sys/class/net/%s/statistics/rx_packets", interface);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		error(1, errno, "%s", path);
	return fd;
}

/* Of /proc/thread-self/schedstat: ns in which this thread wanted the CPU and others had it. */
static uint64_t waited(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = open("/proc/thread-self/schedstat", O_RDONLY);
	return fd < 0 ? 0 : read_number(fd, 1);
}

static void send_burst(int fd, struct mmsghdr *messages, unsigned int count)
{
	for (unsigned int sent = 0; sent < count;) {
		int done = sendmmsg(fd, messages + sent, count - sent, 0);

		if (done < 0 && errno != EINTR)
			error(1, errno, "sendmmsg");
		sent += done < 0 ? 0 : done;
	}
}

static void await(int counter, uint64_t arrived)
{
	uint64_t deadline = now() + PATIENCE_NS;

	while (read_number(counter, 0) < arrived && now() < deadline)
		sleep_until(now() + POLL_NS);
}

int main(int argc, char **argv)
{
	static struct mmsghdr messages[MAX_BURST];
	static struct iovec parts[MAX_BURST];

	if (argc != 8)
		error(2, 0, "%s", usage);
	const struct flow_kind *kind = strcmp(argv[3], "from") ? &to : &from;
	uint32_t flows = strtoul(argv[4], NULL, 10), flow = 0, round = 0;
	uint64_t left = strtoull(argv[5], NULL, 10);
	unsigned int size = strtoul(argv[6], NULL, 10);
	uint64_t pause = strtoull(argv[7], NULL, 10);
	bool awaits = !strcmp(argv[7], "arrival");
	int fd = open_interface(argv[1]), counter = open_counter(argv[2]);
	ssize_t length = read(STDIN_FILENO, frame, sizeof(frame));

	if (length < TIMESTAMP + 4 || !flows || !size || size > MAX_BURST)
		error(2, 0, "%s", usage);
	for (unsigned int i = 0; i < size; i++) {
		memcpy(burst[i], frame, length);
		parts[i] = (struct iovec){ burst[i], length };
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1 };
	}

	uint64_t before = read_number(counter, 0), expected = before;
	uint64_t first = now(), next = first, busy = 0, wait = waited();

	while (left) {
		unsigned int count = left < size ? left : size;
		uint64_t begin = now();

		for (unsigned int i = 0; i < count; i++) {
			aim(burst[i], kind, flow, round);
			finish_ip(burst[i]);
			if (++flow == flows) {
				flow = 0;
				round++;
			}
		}
		send_burst(fd, messages, count);
		busy += now() - begin;
		left -= count;
		expected += count;
		if (awaits)
			await(counter, expected);
		else if (pause)
			sleep_until(next += pause);
	}
	/*
	 * In a pause, too, others may have had the CPU: which of it was theirs is not known then.
	 * Without pauses, all that others had lies between the first and the last look at the clock.
	 */
	wait = pause || awaits ? 0 : waited() - wait;
	busy = pause || awaits ? busy : now() - first;
	if (read_number(counter, 0) > before) /* what a program in user space still has */
		await(counter, expected);
	printf("%lu %lu %lu\n", read_number(counter, 0) - before, busy, wait);
	return 0;
}
