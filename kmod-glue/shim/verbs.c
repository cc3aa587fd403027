// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Protection domains, completion queues, UD queue pairs, address handles, DMA. */
#include <linux/bottom_half.h>
#include <linux/build_bug.h>
#include <linux/slab.h>
#include <rdma/ib_verbs.h>

#include "shim.h"

#define MITOSIS_BATCH 16
#define MITOSIS_SENDS 8
#define MITOSIS_GRH_LEN sizeof(struct ib_grh)

static_assert(sizeof(struct ib_grh) == 40);
static_assert(sizeof(struct mitosis_completion) == 40);

struct ib_pd *mitosis_pd_alloc(struct ib_device *device, int *error)
{
	struct ib_pd *pd = ib_alloc_pd(device, 0);

	if (!IS_ERR(pd))
		return pd;
	*error = PTR_ERR(pd);
	return NULL;
}

void mitosis_pd_free(struct ib_pd *pd)
{
	ib_dealloc_pd(pd);
}

static void mitosis_cq_completed(struct ib_cq *cq, void *event)
{
	mitosis_event_signal(event);
}

struct ib_cq *mitosis_cq_create(struct ib_device *device, u32 entries,
				struct mitosis_event *event, int *error)
{
	struct ib_cq_init_attr attr = { .cqe = entries };
	struct ib_cq *cq = ib_create_cq(device, mitosis_cq_completed, NULL,
					event, &attr);

	if (!IS_ERR(cq))
		return cq;
	*error = PTR_ERR(cq);
	return NULL;
}

void mitosis_cq_destroy(struct ib_cq *cq)
{
	ib_destroy_cq(cq);
}

u32 mitosis_cq_poll(struct ib_cq *cq, struct mitosis_completion *completions,
		    u32 capacity)
{
	struct ib_wc wcs[MITOSIS_BATCH];
	int polled, i;

	polled = ib_poll_cq(cq, min_t(u32, capacity, MITOSIS_BATCH), wcs);
	for (i = 0; i < polled; i++) {
		const struct ib_wc *wc = &wcs[i];
		struct mitosis_completion *to = &completions[i];

		to->wr_id = wc->wr_id;
		to->status = wc->status;
		to->byte_len = wc->byte_len;
		to->src_qp = wc->src_qp;
		to->wc_flags = wc->wc_flags;
		to->slid = wc->slid;
		to->pkey_index = wc->pkey_index;
		to->vlan_id = wc->vlan_id;
		to->sl = wc->sl;
		to->dlid_path_bits = wc->dlid_path_bits;
		to->network_hdr_type = wc->network_hdr_type;
		to->has_grh = !!(wc->wc_flags & IB_WC_GRH);
		to->is_ipv4 = (wc->wc_flags & IB_WC_WITH_NETWORK_HDR_TYPE) &&
			      wc->network_hdr_type == RDMA_NETWORK_IPV4;
	}
	return polled > 0 ? polled : 0;
}

/* True when completions may have arrived meanwhile: poll again before sleeping. */
bool mitosis_cq_arm(struct ib_cq *cq)
{
	return ib_req_notify_cq(cq, IB_CQ_NEXT_COMP |
				    IB_CQ_REPORT_MISSED_EVENTS) != 0;
}

struct ib_qp *mitosis_qp_create_ud(struct ib_pd *pd, struct ib_cq *send_cq,
				   struct ib_cq *recv_cq, u32 send_depth,
				   u32 recv_depth, u32 port_num, u32 qkey,
				   int *error)
{
	struct ib_qp_init_attr init = {
		.qp_type = IB_QPT_UD,
		.send_cq = send_cq,
		.recv_cq = recv_cq,
		.sq_sig_type = IB_SIGNAL_REQ_WR,
		.port_num = port_num,
		.cap = {
			.max_send_wr = send_depth,
			.max_recv_wr = recv_depth,
			.max_send_sge = MITOSIS_PIECES,
			.max_recv_sge = 2,
		},
	};
	struct ib_qp_attr attr = {
		.qp_state = IB_QPS_INIT,
		.port_num = port_num,
		.qkey = qkey,
	};
	struct ib_qp *qp = ib_create_qp(pd, &init);

	if (IS_ERR(qp)) {
		*error = PTR_ERR(qp);
		return NULL;
	}
	*error = ib_modify_qp(qp, &attr, IB_QP_STATE | IB_QP_PKEY_INDEX |
					 IB_QP_PORT | IB_QP_QKEY);
	if (*error)
		goto destroy;
	attr.qp_state = IB_QPS_RTR;
	*error = ib_modify_qp(qp, &attr, IB_QP_STATE);
	if (*error)
		goto destroy;
	attr.qp_state = IB_QPS_RTS;
	*error = ib_modify_qp(qp, &attr, IB_QP_STATE | IB_QP_SQ_PSN);
	if (*error)
		goto destroy;
	return qp;

destroy:
	ib_destroy_qp(qp);
	return NULL;
}

void mitosis_qp_destroy(struct ib_qp *qp)
{
	ib_destroy_qp(qp);
}

u32 mitosis_qp_num(const struct ib_qp *qp)
{
	return qp->qp_num;
}

int mitosis_post_receives(struct ib_qp *qp,
			  const struct mitosis_receive *receives, u32 count)
{
	struct ib_recv_wr wrs[MITOSIS_BATCH];
	struct ib_sge sges[MITOSIS_BATCH][2];
	u32 i;

	if (!count || count > MITOSIS_BATCH)
		return -EINVAL;
	for (i = 0; i < count; i++) {
		ib_dma_sync_single_for_device(qp->device, receives[i].grh_dma,
					      MITOSIS_GRH_LEN, DMA_FROM_DEVICE);
		ib_dma_sync_single_for_device(qp->device, receives[i].data_dma,
					      receives[i].data_len, DMA_FROM_DEVICE);
		sges[i][0] = (struct ib_sge){
			.addr = receives[i].grh_dma,
			.length = MITOSIS_GRH_LEN,
			.lkey = qp->pd->local_dma_lkey,
		};
		sges[i][1] = (struct ib_sge){
			.addr = receives[i].data_dma,
			.length = receives[i].data_len,
			.lkey = qp->pd->local_dma_lkey,
		};
		wrs[i] = (struct ib_recv_wr){
			.next = i + 1 < count ? &wrs[i + 1] : NULL,
			.wr_id = receives[i].wr_id,
			.sg_list = sges[i],
			.num_sge = 2,
		};
	}
	return ib_post_recv(qp, wrs, NULL);
}

/* One doorbell for all. On an error *posted says how many the device has. */
int mitosis_post_sends(struct ib_qp *qp, const struct mitosis_send *sends,
		       u32 count, u32 *posted)
{
	struct ib_sge sges[MITOSIS_SENDS][MITOSIS_PIECES];
	struct ib_ud_wr wrs[MITOSIS_SENDS];
	const struct ib_send_wr *bad = NULL;
	u32 i, j;
	int ret;

	*posted = 0;
	if (!count || count > MITOSIS_SENDS)
		return -EINVAL;
	for (i = 0; i < count; i++) {
		const struct mitosis_send *send = &sends[i];

		if (send->piece_count > MITOSIS_PIECES)
			return -EINVAL;
		for (j = 0; j < send->piece_count; j++) {
			sges[i][j] = (struct ib_sge){
				.addr = send->pieces[j].dma,
				.length = send->pieces[j].len,
				.lkey = qp->pd->local_dma_lkey,
			};
			ib_dma_sync_single_for_device(qp->device,
						      sges[i][j].addr,
						      sges[i][j].length,
						      DMA_TO_DEVICE);
		}
		wrs[i] = (struct ib_ud_wr){
			.wr = {
				.next = i + 1 < count ? &wrs[i + 1].wr : NULL,
				.wr_id = send->wr_id,
				.sg_list = sges[i],
				.num_sge = send->piece_count,
				.opcode = IB_WR_SEND,
				.send_flags = send->signaled ?
						      IB_SEND_SIGNALED : 0,
			},
			.ah = send->ah,
			.remote_qpn = send->remote_qpn,
			.remote_qkey = send->remote_qkey,
		};
	}
	/*
	 * Where a soft device sends in a tasklet, it runs as bottom halves are
	 * enabled again, here, rather than when ksoftirqd is next scheduled.
	 */
	local_bh_disable();
	ret = ib_post_send(qp, &wrs[0].wr, &bad);
	local_bh_enable();
	for (i = 0; i < count && (!ret || &wrs[i].wr != bad); i++)
		*posted += 1;
	return ret;
}

/* The way back to the sender of a received datagram; resolves its MAC. */
struct ib_ah *mitosis_ah_from_completion(struct ib_pd *pd, u32 port_num,
					 const struct mitosis_completion *completion,
					 const u8 *grh, int *error)
{
	struct ib_wc wc = {
		.wc_flags = completion->wc_flags,
		.slid = completion->slid,
		.pkey_index = completion->pkey_index,
		.vlan_id = completion->vlan_id,
		.sl = completion->sl,
		.dlid_path_bits = completion->dlid_path_bits,
		.network_hdr_type = completion->network_hdr_type,
		.port_num = port_num,
	};
	struct rdma_ah_attr attr;
	struct ib_ah *ah;

	*error = ib_init_ah_attr_from_wc(pd->device, port_num, &wc,
					 (const struct ib_grh *)grh, &attr);
	if (*error)
		return NULL;
	ah = rdma_create_ah(pd, &attr, RDMA_CREATE_AH_SLEEPABLE);
	rdma_destroy_ah_attr(&attr);
	if (!IS_ERR(ah))
		return ah;
	*error = PTR_ERR(ah);
	return NULL;
}

void mitosis_ah_destroy(struct ib_ah *ah)
{
	rdma_destroy_ah(ah, RDMA_DESTROY_AH_SLEEPABLE);
}

static enum dma_data_direction mitosis_direction(bool to_device)
{
	return to_device ? DMA_TO_DEVICE : DMA_FROM_DEVICE;
}

u64 mitosis_dma_map(struct ib_device *device, void *page, bool to_device,
		    int *error)
{
	u64 dma = ib_dma_map_single(device, page, PAGE_SIZE,
				    mitosis_direction(to_device));

	*error = ib_dma_mapping_error(device, dma) ? -EIO : 0;
	return dma;
}

void mitosis_dma_unmap(struct ib_device *device, u64 dma, bool to_device)
{
	ib_dma_unmap_single(device, dma, PAGE_SIZE,
			    mitosis_direction(to_device));
}

void mitosis_dma_sync_for_cpu(struct ib_device *device, u64 dma, u32 len)
{
	ib_dma_sync_single_for_cpu(device, dma, len, DMA_FROM_DEVICE);
}
