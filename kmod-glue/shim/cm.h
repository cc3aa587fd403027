/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the users of rdma_cm share: addresses. */
#ifndef MITOSIS_CM_H
#define MITOSIS_CM_H

#include <rdma/rdma_cm.h>

#include "shim.h"

int mitosis_cm_resolve(struct rdma_cm_id *id, const struct mitosis_port *port,
		       const u8 *gid, u64 ib_port_space, u16 service_port,
		       u32 timeout_ms);
int mitosis_cm_listen_at(struct rdma_cm_id *id, u64 ib_port_space,
			 u16 service_port, bool infiniband, int backlog);

#endif
