/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What Rust may call of the kernel. Each function forwards one call, or one
 * fixed sequence of calls with nothing decided in between; src/ffi.rs declares
 * the same functions and structures for Rust. Structures that cross the border
 * are defined here, with fixed-width fields; everything else is opaque.
 */
#ifndef MITOSIS_SHIM_H
#define MITOSIS_SHIM_H

#include <linux/types.h>

struct ib_device;
struct ib_pd;
struct ib_cq;
struct ib_qp;
struct ib_ah;
struct mitosis_event;
struct mitosis_thread;
struct mitosis_resolution;
struct mitosis_listener;
struct mitosis_devices;

/* log.c */
void mitosis_log(int level, const char *text, u32 len);

/* memory.c: zeroed; the large kind may be virtually contiguous only. */
void *mitosis_alloc(size_t size);
void mitosis_free(void *memory);
void *mitosis_page_alloc(void);
void mitosis_page_free(void *page);

/* thread.c */
u64 mitosis_clock_ns(void);
u64 mitosis_random_u64(void);
void mitosis_yield(void);
bool mitosis_alone(void);
void mitosis_park(void);
struct mitosis_event *mitosis_event_create(void);
void mitosis_event_destroy(struct mitosis_event *event);
void mitosis_event_signal(struct mitosis_event *event);
void mitosis_event_wait(struct mitosis_event *event, u64 timeout_ns);
struct mitosis_thread *mitosis_thread_start(void (*body)(void *), void *context,
					    const char *name, u32 index);
void mitosis_thread_join(struct mitosis_thread *thread);

/* devices.c */
struct mitosis_port {
	struct ib_device *device;
	u32 port_num;
	u32 mtu_bytes;
	u32 ifindex;		/* of the net device below it, 0 on InfiniBand */
	u32 max_qp_wr;
	u32 is_infiniband;
	u8 gid[16];		/* entry 0 of the port's table */
	u8 name[64];		/* of the device, NUL-terminated */
};

struct mitosis_devices *mitosis_devices_open(struct mitosis_event *removed);
u32 mitosis_devices_ports(struct mitosis_devices *devices,
			  struct mitosis_port *ports, u32 capacity);
bool mitosis_devices_removed(struct mitosis_devices *devices);
void mitosis_devices_close(struct mitosis_devices *devices);

/* verbs.c: functions that return an int give 0 or a negative errno. */
struct mitosis_completion {
	u64 wr_id;
	u32 status;		/* enum ib_wc_status, 0 is success */
	u32 byte_len;		/* of a receive, its 40 bytes of GRH included */
	u32 src_qp;
	u32 wc_flags;
	u32 slid;
	u16 pkey_index;
	u16 vlan_id;
	u8 sl;
	u8 dlid_path_bits;
	u8 network_hdr_type;
	u8 has_grh;
	u8 is_ipv4;
	u8 reserved[3];
};

struct mitosis_receive {
	u64 wr_id;
	u64 grh_dma;
	u64 data_dma;
	u32 data_len;
};

/* A datagram is gathered: its header, and a payload in up to two pages. */
#define MITOSIS_PIECES 3

struct mitosis_piece {
	u64 dma;
	u32 len;
	u32 reserved;
};

struct mitosis_send {
	struct ib_ah *ah;
	u64 wr_id;
	struct mitosis_piece pieces[MITOSIS_PIECES];
	u32 piece_count;
	u32 remote_qpn;
	u32 remote_qkey;
	u32 signaled;
};

struct ib_pd *mitosis_pd_alloc(struct ib_device *device, int *error);
void mitosis_pd_free(struct ib_pd *pd);
struct ib_cq *mitosis_cq_create(struct ib_device *device, u32 entries,
				struct mitosis_event *event, int *error);
void mitosis_cq_destroy(struct ib_cq *cq);
u32 mitosis_cq_poll(struct ib_cq *cq, struct mitosis_completion *completions,
		    u32 capacity);
bool mitosis_cq_arm(struct ib_cq *cq);
struct ib_qp *mitosis_qp_create_ud(struct ib_pd *pd, struct ib_cq *send_cq,
				   struct ib_cq *recv_cq, u32 send_depth,
				   u32 recv_depth, u32 port_num, u32 qkey,
				   int *error);
void mitosis_qp_destroy(struct ib_qp *qp);
u32 mitosis_qp_num(const struct ib_qp *qp);
int mitosis_post_receives(struct ib_qp *qp,
			  const struct mitosis_receive *receives, u32 count);
int mitosis_post_sends(struct ib_qp *qp, const struct mitosis_send *sends,
		       u32 count, u32 *posted);
struct ib_ah *mitosis_ah_from_completion(struct ib_pd *pd, u32 port_num,
					 const struct mitosis_completion *completion,
					 const u8 *grh, int *error);
void mitosis_ah_destroy(struct ib_ah *ah);
u64 mitosis_dma_map(struct ib_device *device, void *page, bool to_device,
		    int *error);
void mitosis_dma_unmap(struct ib_device *device, u64 dma, bool to_device);
void mitosis_dma_sync_for_cpu(struct ib_device *device, u64 dma, u32 len);

/* cm.c */
enum mitosis_cm_step {
	MITOSIS_CM_PENDING = 0,
	MITOSIS_CM_ADDRESS,
	MITOSIS_CM_ROUTE,
	MITOSIS_CM_ESTABLISHED,
	MITOSIS_CM_REFUSED,
	MITOSIS_CM_FAILED,
};

struct mitosis_cm_state {
	u32 step;		/* enum mitosis_cm_step */
	s32 status;		/* errno, or SIDR status of a refusal */
	u32 remote_qpn;
	u32 remote_qkey;
	u32 reason;		/* first word of a refusal's private data */
};

struct mitosis_cm_request {
	struct ib_device *device;
	u32 port_num;
	u32 private_data_len;
	const u8 *private_data;
};

struct mitosis_cm_answer {
	u32 accept;
	u32 qpn;
	u32 qkey;
	u32 reason;
};

struct mitosis_resolution *mitosis_cm_open(struct mitosis_event *event,
					   int *error);
int mitosis_cm_resolve_address(struct mitosis_resolution *resolution,
			       const struct mitosis_port *port, const u8 *gid,
			       u16 service_port, u32 timeout_ms);
int mitosis_cm_resolve_route(struct mitosis_resolution *resolution,
			     u32 timeout_ms);
int mitosis_cm_connect(struct mitosis_resolution *resolution,
		       struct ib_pd *pd, const u8 *private_data, u32 len);
void mitosis_cm_state(struct mitosis_resolution *resolution,
		      struct mitosis_cm_state *state);
struct ib_device *mitosis_cm_device(struct mitosis_resolution *resolution,
				    u32 *port_num);
struct ib_ah *mitosis_cm_take_ah(struct mitosis_resolution *resolution);
void mitosis_cm_close(struct mitosis_resolution *resolution);

struct mitosis_listener *mitosis_cm_listen(u16 service_port, bool infiniband,
		void (*answer)(void *, const struct mitosis_cm_request *,
			       struct mitosis_cm_answer *),
		void *context, int *error);
void mitosis_cm_unlisten(struct mitosis_listener *listener);

#endif
