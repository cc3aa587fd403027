// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* mitosis_rpc_flood: parameters, and the door to src/flood/. */
#include <linux/module.h>

#include "module.h"

static unsigned int server_qd_hint = 73;
module_param(server_qd_hint, uint, 0444);
MODULE_PARM_DESC(server_qd_hint, "Hint that selects the server's queue pair");
static unsigned int server_service_id;
module_param(server_service_id, uint, 0444);
MODULE_PARM_DESC(server_service_id, "The server's service (0 to 255)");
static unsigned int datagrams = 1000000;
module_param(datagrams, uint, 0444);
MODULE_PARM_DESC(datagrams, "Bad datagrams to send, or damaged requests");
static unsigned int seed = 1;
module_param(seed, uint, 0444);
MODULE_PARM_DESC(seed, "Makes the same datagrams again");
static unsigned int test_rpc_id = 778;
module_param(test_rpc_id, uint, 0444);
MODULE_PARM_DESC(test_rpc_id, "RPC id of the function that damaged requests call");
static char *play = "noise";
module_param(play, charp, 0444);
MODULE_PARM_DESC(play, "noise, old-version, replay or damaged");
static char *connect = "";
module_param(connect, charp, 0444);
MODULE_PARM_DESC(connect, "replay: a Connect that was overheard, in hexadecimal digits");
static char *confirm = "";
module_param(confirm, charp, 0444);
MODULE_PARM_DESC(confirm, "replay: the Confirm that followed it");
static char *gid = "";
module_param(gid, charp, 0444);
MODULE_PARM_DESC(gid, "The server's GID: eight groups of four hexadecimal digits");

static int __init mitosis_rpc_flood_init(void)
{
	const struct mitosis_flood_parameters parameters = {
		.server_qd_hint = server_qd_hint,
		.server_service_id = server_service_id,
		.test_rpc_id = test_rpc_id,
		.datagrams = datagrams,
		.seed = seed,
		.gid = mitosis_text(gid),
		.play = mitosis_text(play),
		.connect = mitosis_text(connect),
		.confirm = mitosis_text(confirm),
	};
	int ret = mitosis_flood_start(&parameters);

	if (ret)
		mitosis_allocations_report();
	return ret;
}
module_init(mitosis_rpc_flood_init);

static void __exit mitosis_rpc_flood_exit(void)
{
	mitosis_flood_stop();
	mitosis_allocations_report();
}
module_exit(mitosis_rpc_flood_exit);

MODULE_DESCRIPTION("MITOSIS: a sender of what the RPC server must survive or refuse");
MODULE_LICENSE("Dual MIT/GPL");
