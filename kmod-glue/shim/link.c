// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Reliable connections between two machines' modules, the READs over them, and
 * the regions that the other side may READ. rdma_cm makes the connections.
 *
 * A completion handler only wakes: soft-RoCE calls it with the queue locked.
 * Whoever waits for a work request polls, and finds the others' too.
 */
#include <linux/completion.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <rdma/ib.h>
#include <rdma/ib_cm.h>
#include <rdma/ib_verbs.h>
#include <rdma/rdma_cm.h>

#include "cm.h"
#include "fork.h"

#define MITOSIS_LINK_DEPTH 64
#define MITOSIS_LINK_ATOMIC 16
/* A packet that is not answered within 4.096 us * 2^17 is repeated, six times: a
 * machine that is dead or cut off is known as such after 3.8 s. Soft-RoCE takes
 * a count of 7 as 'for ever'.
 */
#define MITOSIS_LINK_ACK_TIMEOUT 17
#define MITOSIS_LINK_RETRIES 6
/* A work request that takes longer all the same ends its connection. */
#define MITOSIS_LINK_PATIENCE (10 * HZ)

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

struct mitosis_work {
	struct ib_cqe cqe;
	struct mitosis_link *link;
	int done;			/* store-release in poll, load-acquire by waiters */
	enum ib_wc_status status;
};

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

/* Work requests. */
static void mitosis_link_poll(struct mitosis_link *link)
{
	struct ib_wc wcs[8];
	bool found = false;
	int polled, i;

	spin_lock_bh(&link->poll_lock);
	do {
		polled = ib_poll_cq(link->cq, ARRAY_SIZE(wcs), wcs);
		for (i = 0; i < polled; i++) {
			struct mitosis_work *work = container_of(wcs[i].wr_cqe,
						struct mitosis_work, cqe);

			work->status = wcs[i].status;
			if (work->status != IB_WC_SUCCESS)
				WRITE_ONCE(link->broken, true);
			atomic_dec(&link->posted);
			smp_store_release(&work->done, 1);
			found = true;
		}
	} while (polled == ARRAY_SIZE(wcs));
	spin_unlock_bh(&link->poll_lock);
	if (found) {
		atomic_inc(&link->events);
		wake_up_all(&link->waiters);
	}
}

/* Waits until `done` is set, or until one more can be posted. */
static bool mitosis_link_wait(struct mitosis_link *link, int *done)
{
	unsigned long end = jiffies + MITOSIS_LINK_PATIENCE;

	for (;;) {
		int seen = atomic_read(&link->events);

		mitosis_link_poll(link);
		if (done ? smp_load_acquire(done) :
			   atomic_read(&link->posted) < MITOSIS_LINK_DEPTH)
			return true;
		if (ib_req_notify_cq(link->cq, IB_CQ_NEXT_COMP |
					       IB_CQ_REPORT_MISSED_EVENTS) > 0)
			continue;
		wait_event_idle_timeout(link->waiters,
			atomic_read(&link->events) != seen, HZ);
		if (time_after(jiffies, end)) {
			mitosis_link_break(link);
			end = jiffies + MITOSIS_LINK_PATIENCE;
		}
	}
}

static int mitosis_link_post(struct mitosis_link *link,
			     struct mitosis_work *work, struct ib_send_wr *wr)
{
	int ret;

	work->link = link;
	work->done = 0;
	wr->wr_cqe = &work->cqe;
	wr->send_flags |= IB_SEND_SIGNALED;
	while (!atomic_add_unless(&link->posted, 1, MITOSIS_LINK_DEPTH))
		mitosis_link_wait(link, NULL);
	if (READ_ONCE(link->broken))
		ret = -ENOTCONN;
	else
		ret = ib_post_send(link->id->qp, wr, NULL);
	if (ret)
		atomic_dec(&link->posted);
	return ret;
}

static int mitosis_work_wait(struct mitosis_work *work)
{
	mitosis_link_wait(work->link, &work->done);
	switch (work->status) {
	case IB_WC_SUCCESS:
		return 0;
	case IB_WC_REM_ACCESS_ERR:
	case IB_WC_REM_INV_REQ_ERR:
	case IB_WC_REM_OP_ERR:
		return -EKEYREVOKED;
	case IB_WC_RETRY_EXC_ERR:
	case IB_WC_RNR_RETRY_EXC_ERR:
		return -EHOSTUNREACH;
	default:
		return -ECONNRESET;
	}
}

/* One READ into up to 16 pages. */
struct mitosis_read {
	struct mitosis_work work;
	struct ib_device *device;
	struct ib_rdma_wr wr;
	struct ib_sge sges[MITOSIS_READ_PAGES];
	u32 mapped;
};

struct mitosis_read *mitosis_read_create(struct ib_device *device)
{
	struct mitosis_read *read = kzalloc(sizeof(*read), GFP_KERNEL);

	if (read)
		read->device = device;
	return read;
}

void mitosis_read_destroy(struct mitosis_read *read)
{
	kfree(read);
}

static void mitosis_read_unmap(struct mitosis_read *read)
{
	while (read->mapped) {
		read->mapped--;
		ib_dma_unmap_page(read->device, read->sges[read->mapped].addr,
				  PAGE_SIZE, DMA_FROM_DEVICE);
	}
}

int mitosis_read_post(struct mitosis_link *link, struct mitosis_read *read,
		      struct page **pages, u32 count, u64 remote, u32 rkey)
{
	u32 lkey = link->id->qp->pd->local_dma_lkey;
	int ret;

	if (!count || count > MITOSIS_READ_PAGES)
		return -EINVAL;
	while (read->mapped < count) {
		u64 dma = ib_dma_map_page(read->device, pages[read->mapped], 0,
					  PAGE_SIZE, DMA_FROM_DEVICE);

		if (ib_dma_mapping_error(read->device, dma)) {
			mitosis_read_unmap(read);
			return -EIO;
		}
		read->sges[read->mapped++] = (struct ib_sge){
			.addr = dma, .length = PAGE_SIZE, .lkey = lkey,
		};
	}
	read->wr = (struct ib_rdma_wr){
		.wr = {
			.opcode = IB_WR_RDMA_READ,
			.sg_list = read->sges,
			.num_sge = count,
		},
		.remote_addr = remote,
		.rkey = rkey,
	};
	ret = mitosis_link_post(link, &read->work, &read->wr.wr);
	if (ret)
		mitosis_read_unmap(read);
	return ret;
}

/* After this the pages are the caller's again, also if it fails. */
int mitosis_read_wait(struct mitosis_read *read)
{
	int ret = mitosis_work_wait(&read->work);

	mitosis_read_unmap(read);
	return ret;
}

/* What others may READ: pages of a chunk, one after another under one key. */
struct mitosis_region {
	struct ib_mr *mr;
	struct ib_device *device;
	u32 count;
	int mapped;		/* entries of the list after DMA mapping */
	struct scatterlist *list;
};

struct mitosis_region *mitosis_region_create(struct mitosis_link *link,
					     struct page **pages, u32 count,
					     int *error)
{
	struct ib_pd *pd = link->id->qp->pd;
	struct mitosis_region *region = kzalloc(sizeof(*region), GFP_KERNEL);
	struct mitosis_work work = {};
	struct ib_reg_wr wr = {};
	struct scatterlist *entry;
	u32 i;
	int ret = -ENOMEM;

	if (!region)
		goto put;
	region->device = pd->device;
	region->list = kvmalloc_array(count, sizeof(*region->list), GFP_KERNEL);
	if (!region->list)
		goto free;
	sg_init_table(region->list, count);
	for_each_sg(region->list, entry, count, i)
		sg_set_page(entry, pages[i], PAGE_SIZE, 0);
	region->count = count;
	region->mapped = ib_dma_map_sg(region->device, region->list, count,
				       DMA_TO_DEVICE);
	if (!region->mapped) {
		ret = -EIO;
		goto free;
	}
	region->mr = ib_alloc_mr(pd, IB_MR_TYPE_MEM_REG, count);
	if (IS_ERR(region->mr)) {
		ret = PTR_ERR(region->mr);
		region->mr = NULL;
		goto unmap;
	}
	ret = ib_map_mr_sg(region->mr, region->list, region->mapped, NULL,
			   PAGE_SIZE);
	if (ret != region->mapped) {
		ret = ret < 0 ? ret : -EINVAL;
		goto unmap;
	}
	ib_update_fast_reg_key(region->mr, region->mr->rkey + 1);
	wr.wr.opcode = IB_WR_REG_MR;
	wr.mr = region->mr;
	wr.key = region->mr->rkey;
	wr.access = IB_ACCESS_REMOTE_READ;
	ret = mitosis_link_post(link, &work, &wr.wr);
	if (!ret)
		ret = mitosis_work_wait(&work);
	if (!ret)
		return region;
unmap:
	if (region->mr)
		ib_dereg_mr(region->mr);
	ib_dma_unmap_sg(region->device, region->list, count, DMA_TO_DEVICE);
free:
	kvfree(region->list);
	kfree(region);
put:
	mitosis_pages_put(pages, count);
	*error = ret;
	return NULL;
}

u32 mitosis_region_rkey(const struct mitosis_region *region)
{
	return region->mr->rkey;
}

u64 mitosis_region_iova(const struct mitosis_region *region)
{
	return region->mr->iova;
}

/* The key is worth nothing from here on, and then the pages are given back. */
void mitosis_region_destroy(struct mitosis_region *region)
{
	struct scatterlist *entry;
	u32 i;

	ib_dereg_mr(region->mr);
	ib_dma_unmap_sg(region->device, region->list, region->count,
			DMA_TO_DEVICE);
	for_each_sg(region->list, entry, region->count, i)
		put_page(sg_page(entry));
	kvfree(region->list);
	kfree(region);
}
