/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* A reliable connection, for those who make it and those who post on it. */
#ifndef MITOSIS_LINK_H
#define MITOSIS_LINK_H

#include <linux/spinlock.h>
#include <linux/wait.h>
#include <rdma/ib_verbs.h>
#include <rdma/rdma_cm.h>

/* Work requests that may be outstanding. */
#define MITOSIS_LINK_DEPTH 64

struct mitosis_link {
	struct rdma_cm_id *id;
	struct ib_cq *cq;
	struct mitosis_event *event;	/* of the listener's side: signalled when it breaks */
	wait_queue_head_t waiters;
	atomic_t events;
	atomic_t posted;
	spinlock_t poll_lock;
	int step;			/* the last event of rdma_cm that a step waits for */
	int status;
	bool broken;
};

#endif
