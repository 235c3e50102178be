/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Packets on their way up: which NAPI poll brought the one that woke a thread,
 * and to which socket. A softirq of NET_RX makes several polls one behind the
 * other; napi:napi_poll comes when one is over, and behind the wake-ups that
 * it caused, so what it took is added to their labels then.
 */

/* A packet comes in, or passes from a virtual device to its other end. */
int p_cause_packet(args_t ctx)
{
	struct delivery *d = this_delivery();

	if (!d)
		return 0;
	d->packet.ts = bpf_ktime_get_ns();
	d->packet.dev = KERNEL_U64(ctx[0], OFF_SKB_DEV);
	d->packet.data = KERNEL_U64(ctx[0], OFF_SKB_DATA);
	d->packet.napi = KERNEL_U32(ctx[0], OFF_SKB_NAPI);
	/* A smaller one is no id but the sender's CPU (include/net/busy_poll.h). */
	if (d->packet.napi < MIN_NAPI_ID)
		d->packet.napi = 0;
	d->packet.queue = KERNEL_U16(ctx[0], OFF_SKB_QUEUE);
	return 0;
}

/* A socket tells that it has something to be read. */
int p_cause_ready(args_t ctx)
{
	struct delivery *d = this_delivery();

	if (!d)
		return 0;
	d->ready.ts = bpf_ktime_get_ns();
	d->ready.sock = ctx[0];
	return 0;
}

/* napi_poll(napi, work, budget): the poll is over. The per-CPU backlog has no device. */
int p_cause_poll(args_t ctx)
{
	struct delivery *d = this_delivery();
	u64 now, ns, packets = (u32)ctx[1];
	struct detail *row;
	u32 i;

	if (!d)
		return 0;
	now = bpf_ktime_get_ns();
	ns = now - d->poll_since;
	d->poll_since = now;
	if (!d->nr_polled)
		return 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < MAX_POLLED; i++) {
		if (i >= d->nr_polled)
			break;
		row = detail_of(d->polled[i].slot, CAUSE_NETWORK, d->polled[i].label);
		if (!row)
			continue;
		__sync_fetch_and_add(&row->extra[0], 1);
		__sync_fetch_and_add(&row->extra[1], packets);
		__sync_fetch_and_add(&row->extra[2], ns);
		if (packets >= (u32)ctx[2])
			__sync_fetch_and_add(&row->extra[3], 1);
		if (!KERNEL_U64(ctx[0], OFF_NAPI_DEV))
			__sync_fetch_and_add(&row->extra[4], 1);
	}
	d->nr_polled = 0;
	return 0;
}

/* A thread of @slot was woken in this poll: it is among those that learn what it took. */
static __always_inline void polled(struct delivery *d, u32 slot, u64 *label)
{
	u32 i = d->nr_polled;

	if (slot == NO_SLOT || slot >= SLOTS || i >= MAX_POLLED)
		return;
	/* Several threads of an agent, by the same packets. */
	if (i && d->polled[0].slot == slot && d->polled[0].label[0] == label[0] &&
	    d->polled[0].label[1] == label[1] && d->polled[0].label[2] == label[2])
		return;
	d->polled[i].slot = slot;
	d->polled[i].label[0] = label[0];
	d->polled[i].label[1] = label[1];
	d->polled[i].label[2] = label[2];
	d->polled[i].label[3] = 0;
	d->polled[i].label[4] = 0;
	d->nr_polled = i + 1;
}

/* Label: name of the device, then NAPI id, loopback, queue + 1. */
static __always_inline void give_network(struct given *g, struct delivery *d,
					 u32 slot, u64 now)
{
	u32 flags = 0;

	g->net_label[0] = 0;
	g->net_label[1] = 0;
	bpf_probe_read_kernel(g->net_label, 16, (void *)d->packet.dev + OFF_DEV_NAME);
	bpf_probe_read_kernel(&flags, sizeof(flags),
			      (void *)d->packet.dev + OFF_DEV_FLAGS);
	g->net_label[2] = (u64)d->packet.napi << 32 | d->packet.queue;
	if (flags & IFF_LOOPBACK)
		g->net_label[2] = 1U << 16;
	g->net_ns = now - d->poll_since;
	g->has |= 1U << CAUSE_NETWORK;
	polled(d, slot, g->net_label);
}

/*
 * A socket that is not connected: who sent the packet stands in its header. It
 * may have been read and freed by now, so it must be for this port.
 */
static __always_inline u16 sender(u64 *address, u32 family, u16 local, void *data)
{
	u16 ports[2] = {};
	u8 first = 0, next = 0;
	u32 sent_by = 0;

	bpf_probe_read_kernel(&first, 1, data);
	if (first >> 4 == 4) {
		bpf_probe_read_kernel(&next, 1, data + 9);
		bpf_probe_read_kernel(ports, 4, data + (first & 15) * 4);
	} else if (first >> 4 == 6) {
		bpf_probe_read_kernel(&next, 1, data + 6);
		bpf_probe_read_kernel(ports, 4, data + 40);
	}
	if (next != IPPROTO_UDP || bpf_ntohs(ports[1]) != local)
		return 0;
	if (first >> 4 == 6) {
		if (family != AF_INET6)
			return 0;
		bpf_probe_read_kernel(address, 16, data + 8);
		return ports[0];
	}
	bpf_probe_read_kernel(&sent_by, 4, data + 12);
	if (family == AF_INET) {
		address[0] = sent_by;
	} else {
		/* ::ffff:a.b.c.d */
		address[0] = 0;
		address[1] = (u64)sent_by << 32 | 0xffff0000;
	}
	return ports[0];
}

/* Label: the peer's address, the local one, then family, protocol, local and peer's port. */
static __always_inline void give_socket(struct given *g, struct delivery *d, u64 now)
{
	void *sock = (void *)d->ready.sock;
	u16 family = 0, protocol = 0, local = 0, peer = 0;

	g->sock_label[0] = 0;
	g->sock_label[1] = 0;
	g->sock_label[2] = 0;
	g->sock_label[3] = 0;
	bpf_probe_read_kernel(&family, 2, sock + OFF_SOCK_FAMILY);
	bpf_probe_read_kernel(&protocol, 2, sock + OFF_SOCK_PROTOCOL);
	bpf_probe_read_kernel(&local, 2, sock + OFF_SOCK_NUM);
	bpf_probe_read_kernel(&peer, 2, sock + OFF_SOCK_DPORT);
	if (family == AF_INET) {
		bpf_probe_read_kernel(&g->sock_label[0], 4, sock + OFF_SOCK_DADDR);
		bpf_probe_read_kernel(&g->sock_label[2], 4, sock + OFF_SOCK_SADDR);
	} else if (family == AF_INET6) {
		bpf_probe_read_kernel(&g->sock_label[0], 16, sock + OFF_SOCK_DADDR6);
		bpf_probe_read_kernel(&g->sock_label[2], 16, sock + OFF_SOCK_SADDR6);
	} else {
		return;
	}
	if (!peer && protocol == IPPROTO_UDP)
		peer = sender(g->sock_label, family, local, (void *)d->packet.data);
	g->sock_label[4] = (u64)family << 48 | (u64)protocol << 32 |
			   (u64)local << 16 | bpf_ntohs(peer);
	g->sock_ns = now - d->packet.ts;
	g->has |= 1U << CAUSE_SOCKET;
}

static __always_inline void give_packet(struct given *g, struct cpu *cpu,
					struct delivery *d, u32 slot, u32 wanted,
					u64 now)
{
	u32 vec = cpu->soft_vec;

	if (cpu->hard || !cpu->soft ||
	    (vec != SOFTIRQ_NET_RX && vec != SOFTIRQ_NET_TX) ||
	    d->packet.ts < cpu->soft_ts)
		return;
	if (wanted & 1U << CAUSE_NETWORK)
		give_network(g, d, slot, now);
	if (wanted & 1U << CAUSE_SOCKET && d->ready.ts >= d->packet.ts)
		give_socket(g, d, now);
}
