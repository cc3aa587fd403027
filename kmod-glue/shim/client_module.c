// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* mitosis_rpc_client: parameters, and the door to src/client. */
#include <linux/module.h>

#include "module.h"

static unsigned int server_qd_hint = 73;
module_param(server_qd_hint, uint, 0444);
MODULE_PARM_DESC(server_qd_hint, "Hint that selects the server's queue pair");
static unsigned int client_qd_hint = 75;
module_param(client_qd_hint, uint, 0444);
MODULE_PARM_DESC(client_qd_hint, "Hint under which the client asks");
static unsigned int server_service_id;
module_param(server_service_id, uint, 0444);
MODULE_PARM_DESC(server_service_id, "The server's service (0 to 255)");
static unsigned int client_service_id_base = 1;
module_param(client_service_id_base, uint, 0444);
MODULE_PARM_DESC(client_service_id_base, "Service from which the client asks");
static unsigned int test_rpc_id = 778;
module_param(test_rpc_id, uint, 0444);
MODULE_PARM_DESC(test_rpc_id, "RPC id to call");
static unsigned int running_secs = 60;
module_param(running_secs, uint, 0444);
MODULE_PARM_DESC(running_secs, "Seconds to call for");
static unsigned int report_interval = 1;
module_param(report_interval, uint, 0444);
MODULE_PARM_DESC(report_interval, "Seconds between two throughput lines");
static unsigned int thread_count = 12;
module_param(thread_count, uint, 0444);
MODULE_PARM_DESC(thread_count, "Kernel threads that call");
static unsigned int window = 1;
module_param(window, uint, 0444);
MODULE_PARM_DESC(window, "Calls that each thread has under way (1 to 16); 1: it calls synchronously");
static unsigned int session_id_base;
module_param(session_id_base, uint, 0444);
MODULE_PARM_DESC(session_id_base, "Base of the keys with which the threads ask for sessions");
static char *gid = "";
module_param(gid, charp, 0444);
MODULE_PARM_DESC(gid, "The server's GID: eight groups of four hexadecimal digits");
static unsigned int payload_size = MITOSIS_DEFAULT;
module_param(payload_size, uint, 0444);
MODULE_PARM_DESC(payload_size, "Bytes that each request and reply carries; 2048 if built with checksums, otherwise 0");
static char *cluster_key = "";
module_param(cluster_key, charp, 0);
MODULE_PARM_DESC(cluster_key, "What members of the cluster know: 32 hexadecimal digits; none: for a server without one");

static int __init mitosis_rpc_client_init(void)
{
	const struct mitosis_client_parameters parameters = {
		.server_qd_hint = server_qd_hint,
		.client_qd_hint = client_qd_hint,
		.server_service_id = server_service_id,
		.client_service_id_base = client_service_id_base,
		.test_rpc_id = test_rpc_id,
		.running_secs = running_secs,
		.report_interval = report_interval,
		.thread_count = thread_count,
		.window = window,
		.session_id_base = session_id_base,
		.payload_size = payload_size,
		.gid = mitosis_text(gid),
		.cluster_key = mitosis_text(cluster_key),
	};
	int ret = mitosis_client_start(&parameters);

	if (ret)
		mitosis_allocations_report();
	return ret;
}
module_init(mitosis_rpc_client_init);

static void __exit mitosis_rpc_client_exit(void)
{
	mitosis_client_stop();
	mitosis_allocations_report();
}
module_exit(mitosis_rpc_client_exit);

MODULE_DESCRIPTION("MITOSIS: kernel RPC over RDMA, the stress test's client");
MODULE_LICENSE("Dual MIT/GPL");
