/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What tests/support/nfqueue_rewriter.py does, in C: packets wait in NFQUEUE, are given a source,
 * and go on. For the benchmark, to tell what Python costs from what the way through user space does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/netfilter.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <libnetfilter_queue/libnetfilter_queue.h>

#define MAX_PACKET 65536

struct source {
	uint32_t address;
	uint16_t port;
};

static uint16_t fold(uint32_t sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static uint32_t words(uint32_t address)
{
	return (address & 0xffff) + (address >> 16);
}

/* RFC 1624, equation 3; a UDP checksum of 0 is none, and stays 0. */
static void rewrite(struct iphdr *ip, const struct source *source)
{
	struct udphdr *udp = (void *)((uint32_t *)ip + ip->ihl);
	uint32_t change = words(~ip->saddr) + words(source->address);

	ip->check = ~fold((uint16_t)~ip->check + change);
	if (udp->check) {
		change += (uint16_t)~udp->source + source->port;
		udp->check = ~fold((uint16_t)~udp->check + change);
		if (!udp->check)
			udp->check = 0xffff;
	}
	ip->saddr = source->address;
	udp->source = source->port;
}

static int on_packet(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *data,
		     void *source)
{
	uint32_t id = ntohl(nfq_get_msg_packet_hdr(data)->packet_id);
	unsigned char *packet;
	int length = nfq_get_payload(data, &packet);

	(void)message;
	if (length < (int)(sizeof(struct iphdr) + sizeof(struct udphdr)))
		return nfq_set_verdict(queue, id, NF_DROP, 0, NULL);
	rewrite((void *)packet, source);
	return nfq_set_verdict(queue, id, NF_ACCEPT, length, packet);
}

int main(int argc, char **argv)
{
	static char buffer[MAX_PACKET] __attribute__((aligned(8)));
	char *port = argc == 3 ? strchr(argv[2], ':') : NULL;
	struct nfq_handle *library = nfq_open();
	struct nfq_q_handle *queue;
	struct source source;
	ssize_t length;

	if (!port)
		error(2, 0, "queue_rewriter QUEUE ADDRESS:PORT");
	*port = '\0';
	source.address = inet_addr(argv[2]);
	source.port = htons(strtoul(port + 1, NULL, 10));
	queue = library ? nfq_create_queue(library, strtoul(argv[1], NULL, 10), on_packet, &source)
			: NULL;
	if (!queue || nfq_set_mode(queue, NFQNL_COPY_PACKET, 0xffff))
		error(1, errno, "queue %s", argv[1]);
	puts("ready");
	fflush(stdout);
	while ((length = recv(nfq_fd(library), buffer, sizeof(buffer), 0)) >= 0 || errno == EINTR ||
	       errno == ENOBUFS)
		if (length > 0)
			nfq_handle_packet(library, buffer, length);
	error(1, errno, "recv");
}
