// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* mitosis_rpc_server: parameters, and the door to src/server. */
#include <linux/module.h>

#include "module.h"

static unsigned int running_secs = 80;
module_param(running_secs, uint, 0444);
MODULE_PARM_DESC(running_secs, "Seconds to serve before stopping by itself");
static unsigned int test_rpc_id = 778;
module_param(test_rpc_id, uint, 0444);
MODULE_PARM_DESC(test_rpc_id, "RPC id of the empty function");
static unsigned int qd_hint = 73;
module_param(qd_hint, uint, 0444);
MODULE_PARM_DESC(qd_hint, "Hint that selects the server's queue pair");
static unsigned int service_id;
module_param(service_id, uint, 0444);
MODULE_PARM_DESC(service_id, "Service to listen on (0 to 255)");
static char *cluster_key = "";
module_param(cluster_key, charp, 0);
MODULE_PARM_DESC(cluster_key, "What members of the cluster know: 32 hexadecimal digits; none: any client is served");

static int __init mitosis_rpc_server_init(void)
{
	const struct mitosis_server_parameters parameters = {
		.running_secs = running_secs,
		.test_rpc_id = test_rpc_id,
		.qd_hint = qd_hint,
		.service_id = service_id,
		.cluster_key = mitosis_text(cluster_key),
	};
	int ret = mitosis_server_start(&parameters);

	if (ret)
		mitosis_allocations_report();
	return ret;
}
module_init(mitosis_rpc_server_init);

static void __exit mitosis_rpc_server_exit(void)
{
	mitosis_server_stop();
	mitosis_allocations_report();
}
module_exit(mitosis_rpc_server_exit);

MODULE_DESCRIPTION("MITOSIS: kernel RPC over RDMA, the stress test's server");
MODULE_LICENSE("Dual MIT/GPL");
