/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How long a packet is under way: sent from one interface, and stamped by the kernel when it comes
 * in by another one, both in this namespace.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/filter.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define MAX_FRAME 2048
#define PATIENCE_MS 200
#define NUMBER_AT 54 /* in the RTP payload: Ethernet 14, IP 20, UDP 8, RTP 12 */

static const char usage[] = "latency FROM TO COUNT INTERVAL < FRAME\n"
			    "\n"
			    "Sends FRAME COUNT times, one each INTERVAL (ns), by the interface FROM.\n"
			    "Prints for each the ns until it came in by TO, -1 for one that did not.\n";

static uint64_t ns(struct timespec time)
{
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static int open_interface(const char *name, int protocol)
{
	struct sockaddr_ll place = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(protocol),
		.sll_ifindex = if_nametoindex(name),
	};
	int fd = socket(AF_PACKET, SOCK_RAW, 0), on = 1;

	if (fd < 0 || !place.sll_ifindex ||
	    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on)))
		error(1, errno, "%s", name);
	return bind(fd, (void *)&place, sizeof(place)) ? error(1, errno, "bind"), -1 : fd;
}

/* Only what goes to the frame's destination: the load beside it must cost next to nothing. */
static void listen_for(int fd, const unsigned char *frame)
{
	uint32_t address = frame[30] << 24 | frame[31] << 16 | frame[32] << 8 | frame[33];
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 30),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, address, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, MAX_FRAME),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog filter = { sizeof(code) / sizeof(*code), code };
	int on = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) ||
	    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)))
		error(1, errno, "setsockopt");
}

/* When the kernel got the frame with this number; 0 if it did not come in time. */
static uint64_t arrival(int fd, uint32_t number)
{
	unsigned char frame[MAX_FRAME];
	char control[256];
	struct iovec part = { frame, sizeof(frame) };
	struct pollfd ready = { fd, POLLIN, 0 };
	struct timespec time;
	uint32_t found;

	while (poll(&ready, 1, PATIENCE_MS) > 0) {
		struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
					  .msg_controllen = sizeof(control) };
		ssize_t length = recvmsg(fd, &message, 0);

		memcpy(&found, frame + NUMBER_AT, sizeof(found));
		if (length < NUMBER_AT + 4 || found != number || !CMSG_FIRSTHDR(&message))
			continue; /* one that came too late */
		memcpy(&time, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(time));
		return ns(time);
	}
	return 0;
}

/* With its complement behind it, in place of 8 bytes of 0xff: the UDP checksum stays right. */
static void put_number(unsigned char *frame, uint32_t number)
{
	uint32_t complement = ~number;

	memcpy(frame + NUMBER_AT, &number, sizeof(number));
	memcpy(frame + NUMBER_AT + 4, &complement, sizeof(complement));
}

int main(int argc, char **argv)
{
	static unsigned char frame[MAX_FRAME];
	struct timespec sent, next;

	if (argc != 5)
		error(2, 0, "%s", usage);
	uint32_t count = strtoul(argv[3], NULL, 10);
	uint64_t interval = strtoull(argv[4], NULL, 10), at;
	ssize_t length = fread(frame, 1, sizeof(frame), stdin);

	if (length < NUMBER_AT + 8)
		error(2, 0, "%s", usage);
	int out = open_interface(argv[1], 0), in = open_interface(argv[2], ETH_P_ALL);

	listen_for(in, frame);
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (uint32_t number = 0; number < count; number++) {
		at = ns(next) + interval;
		next = (struct timespec){ at / 1000000000ULL, at % 1000000000ULL };
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
		put_number(frame, number);
		clock_gettime(CLOCK_REALTIME, &sent);
		if (send(out, frame, length, 0) != length)
			error(1, errno, "send");
		at = arrival(in, number);
		printf("%ld\n", at ? (long)(at - ns(sent)) : -1L);
	}
	return 0;
}
