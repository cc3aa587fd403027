// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Reliable connections between two machines' modules: rdma_cm makes them.
 * What is posted on them is in work.c.
 */
#include <linux/slab.h>
#include <rdma/ib.h>
#include <rdma/ib_cm.h>

#include "cm.h"
#include "fork.h"
#include "link.h"

#define MITOSIS_LINK_ATOMIC 16
/* A packet that is not answered within 4.096 us * 2^17 is repeated, six times: a
 * machine that is dead or cut off is known as such after 3.8 s. Soft-RoCE takes
 * a count of 7 as 'for ever'.
 */
#define MITOSIS_LINK_ACK_TIMEOUT 17
#define MITOSIS_LINK_RETRIES 6

/* Step numbers of our own: rdma_cm's event numbers begin at 0. */
#define MITOSIS_STEP(event) ((int)(event) + 1)

static void mitosis_link_completed(struct ib_cq *cq, void *context)
{
	struct mitosis_link *link = context;

	atomic_inc(&link->events);
	wake_up_all(&link->waiters);
}

static int mitosis_link_event(struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	struct mitosis_link *link = id->context;

	switch (event->event) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
	case RDMA_CM_EVENT_ESTABLISHED:
		WRITE_ONCE(link->step, MITOSIS_STEP(event->event));
		break;
	case RDMA_CM_EVENT_TIMEWAIT_EXIT:
	case RDMA_CM_EVENT_ADDR_CHANGE:
		return 0;
	case RDMA_CM_EVENT_REJECTED:
		/* The other side's connection manager takes the queue pair for one
		 * of this machine's that it does not know to be gone: numbers begin
		 * anew with each boot.
		 */
		WRITE_ONCE(link->status, event->status == IB_CM_REJ_STALE_CONN ?
					 -ESTALE : -ECONNREFUSED);
		WRITE_ONCE(link->broken, true);
		break;
	case RDMA_CM_EVENT_DISCONNECTED:
		/* Flushes what is posted. */
		rdma_disconnect(id);
		fallthrough;
	default:
		WRITE_ONCE(link->status, event->status < 0 ? event->status : -ECONNRESET);
		WRITE_ONCE(link->broken, true);
		if (link->event)
			mitosis_event_signal(link->event);
	}
	atomic_inc(&link->events);
	wake_up_all(&link->waiters);
	return 0;
}

static struct mitosis_link *mitosis_link_alloc(void)
{
	struct mitosis_link *link = kzalloc(sizeof(*link), GFP_KERNEL);

	if (link) {
		init_waitqueue_head(&link->waiters);
		spin_lock_init(&link->poll_lock);
	}
	return link;
}

static int mitosis_link_open_queue(struct mitosis_link *link, struct ib_pd *pd)
{
	struct ib_cq_init_attr cq_attr = { .cqe = 2 * MITOSIS_LINK_DEPTH };
	struct ib_qp_init_attr qp_attr = {
		.qp_type = IB_QPT_RC,
		.sq_sig_type = IB_SIGNAL_ALL_WR,
		.cap = {
			.max_send_wr = MITOSIS_LINK_DEPTH,
			.max_recv_wr = 1,
			.max_send_sge = MITOSIS_READ_PAGES,
			.max_recv_sge = 1,
		},
	};
	int ret;

	link->cq = ib_create_cq(pd->device, mitosis_link_completed, NULL, link,
				&cq_attr);
	if (IS_ERR(link->cq)) {
		ret = PTR_ERR(link->cq);
		link->cq = NULL;
		return ret;
	}
	qp_attr.send_cq = link->cq;
	qp_attr.recv_cq = link->cq;
	return rdma_create_qp(link->id, pd, &qp_attr);
}

static int mitosis_link_wait_step(struct mitosis_link *link,
				  enum rdma_cm_event_type event, u32 timeout_ms)
{
	long left = wait_event_idle_timeout(link->waiters,
			READ_ONCE(link->step) == MITOSIS_STEP(event) ||
			READ_ONCE(link->broken), msecs_to_jiffies(timeout_ms));

	if (READ_ONCE(link->broken))
		return READ_ONCE(link->status) ?: -ECONNRESET;
	return left ? 0 : -ETIMEDOUT;
}

struct mitosis_link *mitosis_link_connect(const struct mitosis_port *port,
					  struct ib_pd *pd, const u8 *gid,
					  u16 service_port,
					  const u8 *private_data, u32 len,
					  u32 timeout_ms, int *error)
{
	struct mitosis_link *link = mitosis_link_alloc();
	struct rdma_conn_param param = {
		.private_data = private_data,
		.private_data_len = len,
		.retry_count = MITOSIS_LINK_RETRIES,
		/* READs meet no queue that is not ready. */
		.rnr_retry_count = 7,
	};
	int ret = -ENOMEM;

	if (!link)
		goto fail;
	link->id = rdma_create_id(&init_net, mitosis_link_event, link,
				  RDMA_PS_TCP, IB_QPT_RC);
	if (IS_ERR(link->id)) {
		ret = PTR_ERR(link->id);
		link->id = NULL;
		goto fail;
	}
	/* Before the route, which has it too. The other side posts nothing that
	 * is answered, and takes it over from the request.
	 */
	ret = rdma_set_ack_timeout(link->id, MITOSIS_LINK_ACK_TIMEOUT);
	if (!ret)
		ret = mitosis_cm_resolve(link->id, port, gid, RDMA_IB_IP_PS_TCP,
					 service_port, timeout_ms);
	if (!ret)
		ret = mitosis_link_wait_step(link, RDMA_CM_EVENT_ADDR_RESOLVED,
					     timeout_ms);
	if (!ret && link->id->device != pd->device)
		ret = -EXDEV;
	if (!ret)
		ret = rdma_resolve_route(link->id, timeout_ms);
	if (!ret)
		ret = mitosis_link_wait_step(link, RDMA_CM_EVENT_ROUTE_RESOLVED,
					     timeout_ms);
	if (!ret)
		ret = mitosis_link_open_queue(link, pd);
	if (ret)
		goto fail;
	param.initiator_depth = min_t(int, MITOSIS_LINK_ATOMIC,
				      pd->device->attrs.max_qp_init_rd_atom);
	param.responder_resources = min_t(int, MITOSIS_LINK_ATOMIC,
					  pd->device->attrs.max_qp_rd_atom);
	ret = rdma_connect(link->id, &param);
	if (!ret)
		ret = mitosis_link_wait_step(link, RDMA_CM_EVENT_ESTABLISHED,
					     timeout_ms);
	if (!ret)
		return link;
fail:
	*error = ret;
	if (link)
		mitosis_link_destroy(link);
	return NULL;
}

bool mitosis_link_alive(struct mitosis_link *link)
{
	return !READ_ONCE(link->broken);
}

/* Ends the connection; what is posted completes with an error. */
void mitosis_link_break(struct mitosis_link *link)
{
	struct ib_qp_attr attr = { .qp_state = IB_QPS_ERR };

	WRITE_ONCE(link->broken, true);
	rdma_disconnect(link->id);
	ib_modify_qp(link->id->qp, &attr, IB_QP_STATE);
}

/* It counts as ended, and whoever looks after the listener's side is told so. */
void mitosis_link_give_up(struct mitosis_link *link)
{
	WRITE_ONCE(link->broken, true);
	if (link->event)
		mitosis_event_signal(link->event);
}

/* Nobody waits on it any more. */
void mitosis_link_destroy(struct mitosis_link *link)
{
	if (link->id) {
		if (link->id->qp) {
			rdma_disconnect(link->id);
			rdma_destroy_qp(link->id);
		}
		rdma_destroy_id(link->id);
	}
	if (link->cq)
		ib_destroy_cq(link->cq);
	kfree(link);
}

/* The listener's side. */
struct mitosis_link_listener {
	struct rdma_cm_id *id;
	struct mitosis_event *event;
	struct ib_pd *(*admit)(void *context,
			       const struct mitosis_link_request *request);
	bool (*established)(void *context,
			    const struct mitosis_link_request *request,
			    struct mitosis_link *link);
	void *context;
};

static int mitosis_link_requested(struct rdma_cm_id *id,
				  struct rdma_cm_event *event)
{
	struct mitosis_link_listener *listener = id->context;
	struct mitosis_link_request request = {
		.device = id->device,
		.port_num = id->port_num,
		.private_data = event->param.conn.private_data,
		.private_data_len = event->param.conn.private_data_len,
	};
	struct rdma_conn_param param = { .rnr_retry_count = 7 };
	struct mitosis_link *link;
	struct ib_pd *pd;

	if (event->event != RDMA_CM_EVENT_CONNECT_REQUEST)
		return 0;
	if (id->route.path_rec)
		memcpy(request.gid, id->route.path_rec->dgid.raw,
		       sizeof(request.gid));
	pd = listener->admit(listener->context, &request);
	if (!pd)
		goto reject;
	link = mitosis_link_alloc();
	if (!link)
		goto reject;
	link->id = id;
	link->event = listener->event;
	if (mitosis_link_open_queue(link, pd))
		goto free;
	id->context = link;
	id->event_handler = mitosis_link_event;
	param.responder_resources = min_t(int, event->param.conn.responder_resources,
					  pd->device->attrs.max_qp_rd_atom);
	param.initiator_depth = min_t(int, event->param.conn.initiator_depth,
				      pd->device->attrs.max_qp_init_rd_atom);
	if (!rdma_accept(id, &param) &&
	    listener->established(listener->context, &request, link))
		return 0;
	rdma_destroy_qp(id);
free:
	if (link->cq)
		ib_destroy_cq(link->cq);
	kfree(link);
reject:
	rdma_reject(id, NULL, 0, IB_CM_REJ_CONSUMER_DEFINED);
	/* A non-zero return destroys the id. */
	return 1;
}

struct mitosis_link_listener *mitosis_link_listen(u16 service_port,
		bool infiniband, struct mitosis_event *event,
		struct ib_pd *(*admit)(void *, const struct mitosis_link_request *),
		bool (*established)(void *, const struct mitosis_link_request *,
				    struct mitosis_link *),
		void *context, int *error)
{
	struct mitosis_link_listener *listener;

	listener = kzalloc(sizeof(*listener), GFP_KERNEL);
	if (!listener) {
		*error = -ENOMEM;
		return NULL;
	}
	listener->event = event;
	listener->admit = admit;
	listener->established = established;
	listener->context = context;
	listener->id = rdma_create_id(&init_net, mitosis_link_requested,
				      listener, RDMA_PS_TCP, IB_QPT_RC);
	if (IS_ERR(listener->id)) {
		*error = PTR_ERR(listener->id);
		kfree(listener);
		return NULL;
	}
	*error = mitosis_cm_listen_at(listener->id, RDMA_IB_IP_PS_TCP,
				      service_port, infiniband, 16);
	if (!*error)
		return listener;
	mitosis_link_unlisten(listener);
	return NULL;
}

void mitosis_link_unlisten(struct mitosis_link_listener *listener)
{
	rdma_destroy_id(listener->id);
	kfree(listener);
}
