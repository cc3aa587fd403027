/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the modules' C files may call of Rust. */
#ifndef MITOSIS_MODULE_H
#define MITOSIS_MODULE_H

#include <linux/string.h>
#include <linux/types.h>

/* At a module's end, where it is built to let allocations fail (failing.h). */
#ifndef MITOSIS_FAILING_H
static inline void mitosis_allocations_report(void)
{
}
#endif

/* A parameter that was not given. */
#define MITOSIS_DEFAULT 0xffffffff

/* A parameter's characters, without the NUL; read while start lasts. */
struct mitosis_text {
	const u8 *bytes;
	size_t len;
};

static inline struct mitosis_text mitosis_text(const char *text)
{
	return (struct mitosis_text){ (const u8 *)text, strlen(text) };
}

struct mitosis_server_parameters {
	u32 running_secs;
	u32 test_rpc_id;
	u32 qd_hint;
	u32 service_id;
	struct mitosis_text cluster_key;
};

struct mitosis_client_parameters {
	u32 server_qd_hint;
	u32 client_qd_hint;
	u32 server_service_id;
	u32 client_service_id_base;
	u32 test_rpc_id;
	u32 running_secs;
	u32 report_interval;
	u32 thread_count;
	u32 window;
	u32 session_id_base;
	u32 payload_size;	/* MITOSIS_DEFAULT: as built */
	struct mitosis_text gid;
	struct mitosis_text cluster_key;
};

struct mitosis_flood_parameters {
	u32 server_qd_hint;
	u32 server_service_id;
	u32 test_rpc_id;
	u32 datagrams;
	u32 seed;
	struct mitosis_text gid;
	struct mitosis_text play;
	struct mitosis_text connect;
	struct mitosis_text confirm;
};

/* Start answers at once: 0, or a negative errno and a line in the log. */
int mitosis_server_start(const struct mitosis_server_parameters *parameters);
void mitosis_server_stop(void);
int mitosis_client_start(const struct mitosis_client_parameters *parameters);
void mitosis_client_stop(void);
int mitosis_flood_start(const struct mitosis_flood_parameters *parameters);
void mitosis_flood_stop(void);

#endif
