// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Work requests on reliable connections: READs, and the registration of the
 * regions that the other side may READ.
 *
 * A completion handler only wakes: soft-RoCE calls it with the queue locked.
 * Whoever waits for a work request polls, and finds the others' too.
 */
#include <linux/mm.h>
#include <linux/slab.h>

#include "fork.h"
#include "link.h"

/* A work request that takes longer, whatever its retries, ends its connection. */
#define MITOSIS_LINK_PATIENCE (10 * HZ)

struct mitosis_work {
	struct ib_cqe cqe;
	struct mitosis_link *link;
	int done;			/* store-release in poll, load-acquire by waiters */
	enum ib_wc_status status;
};

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
