// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The object that `offmap demo` runs on when it is given none: a small XDP filter that counts
// packets, drops denied senders and keeps a record of each flow. Its maps cover the four
// types that the SmartNIC holds, with the key and value shapes that real filters use.
//
// Rebuild demo.bpf.o, in this folder (clang 14 and libbpf-dev; no path of the machine stays in it):
//   clang -O2 -g -target bpf -mcpu=v2 -I/usr/include/$(uname -m)-linux-gnu -fdebug-prefix-map=$PWD=. -c demo.bpf.c -o demo.bpf.o && llvm-strip -g demo.bpf.o

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct tally {
	__u64 packets;
	__u64 bytes;
};

struct settings {
	__u32 flags;
	__u32 min_frame_bytes;
	__u64 flow_idle_ns;
};

#define SETTING_DENY 1
#define SETTING_FLOWS 2

struct flow_key {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
};

struct flow {
	struct tally tally;
	__u64 last_seen_ns;
	__u8 tcp_flags;
};

struct neighbour {
	char name[32];
	__be32 addr;
	__u16 vlan;
	__u16 port;
	__u64 first_seen_ns;
	struct tally tally;
};

struct ethaddr {
	__u8 addr[ETH_ALEN];
};

/* What became of the packets, one row for each XDP action. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, XDP_REDIRECT + 1);
	__type(key, __u32);
	__type(value, struct tally);
} action_tally SEC(".maps");

/* One row, written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

/* Bitmap rows by destination port: bit n for protocol class n. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u8);
} port_class SEC(".maps");

/* Senders to drop, with the packets dropped for each. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10000);
	__type(key, __be32);
	__type(value, __u64);
} deny_ipv4 SEC(".maps");

/* Known neighbours by MAC address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ethaddr);
	__type(value, struct neighbour);
} neighbours SEC(".maps");

/* Flows, counted without sharing a cache line between CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

static __always_inline int done(struct xdp_md *ctx, __u32 action)
{
	struct tally *tally = bpf_map_lookup_elem(&action_tally, &action);

	if (!tally)
		return XDP_ABORTED;
	tally->packets += 1;
	tally->bytes += ctx->data_end - ctx->data;
	return action;
}

static __always_inline void note_flow(const struct flow_key *key, __u64 bytes, __u8 tcp_flags)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);

	if (flow) {
		flow->tally.packets += 1;
		flow->tally.bytes += bytes;
		flow->last_seen_ns = bpf_ktime_get_ns();
		flow->tcp_flags |= tcp_flags;
	} else {
		struct flow fresh = {
			.tally = { .packets = 1, .bytes = bytes },
			.last_seen_ns = bpf_ktime_get_ns(),
			.tcp_flags = tcp_flags,
		};

		bpf_map_update_elem(&flows, key, &fresh, BPF_NOEXIST);
	}
}

SEC("xdp")
int filter(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct flow_key key = {};
	struct neighbour *neighbour;
	struct settings *set;
	struct iphdr *ip;
	__u8 tcp_flags = 0;
	__u32 zero = 0;
	__u32 port;
	__u64 *hits;
	__u8 *class;

	if ((void *)(eth + 1) > end)
		return done(ctx, XDP_DROP);
	set = bpf_map_lookup_elem(&settings, &zero);
	if (!set || end - data < set->min_frame_bytes)
		return done(ctx, XDP_DROP);
	neighbour = bpf_map_lookup_elem(&neighbours, eth->h_source);
	if (neighbour) {
		__sync_fetch_and_add(&neighbour->tally.packets, 1);
		__sync_fetch_and_add(&neighbour->tally.bytes, end - data);
	}
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return done(ctx, XDP_PASS);

	ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > end || ip->ihl != 5)
		return done(ctx, XDP_PASS);
	if (set->flags & SETTING_DENY) {
		hits = bpf_map_lookup_elem(&deny_ipv4, &ip->saddr);
		if (hits) {
			__sync_fetch_and_add(hits, 1);
			return done(ctx, XDP_DROP);
		}
	}

	key.saddr = ip->saddr;
	key.daddr = ip->daddr;
	key.protocol = ip->protocol;
	if (ip->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = (void *)(ip + 1);

		if ((void *)(tcp + 1) > end)
			return done(ctx, XDP_DROP);
		key.sport = tcp->source;
		key.dport = tcp->dest;
		tcp_flags = ((__u8 *)tcp)[13];
	} else if (ip->protocol == IPPROTO_UDP) {
		struct udphdr *udp = (void *)(ip + 1);

		if ((void *)(udp + 1) > end)
			return done(ctx, XDP_DROP);
		key.sport = udp->source;
		key.dport = udp->dest;
	} else {
		return done(ctx, XDP_PASS);
	}

	port = bpf_ntohs(key.dport);
	class = bpf_map_lookup_elem(&port_class, &port);
	if (class && *class & (ip->protocol == IPPROTO_TCP ? 1 : 2))
		return done(ctx, XDP_DROP);
	if (set->flags & SETTING_FLOWS)
		note_flow(&key, end - data, tcp_flags);
	return done(ctx, XDP_PASS);
}

char _license[] SEC("license") = "Dual MIT/GPL";
