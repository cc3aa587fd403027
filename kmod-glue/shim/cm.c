// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * rdma_cm in its UDP port space: from a GID and a service port to a queue pair
 * number, a queue key and an address handle (docs/wire.md section 10).
 */
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <net/ipv6.h>
#include <net/net_namespace.h>
#include <rdma/ib.h>
#include <rdma/ib_cm.h>
#include <rdma/rdma_cm.h>

#include "cm.h"
#include "shim.h"

/* The client's side: one resolution is used by one thread. */
struct mitosis_resolution {
	struct rdma_cm_id *id;
	struct mitosis_event *event;
	struct ib_pd *pd;
	struct ib_ah *ah;
	spinlock_t lock;	/* guards state: the callback writes it */
	struct mitosis_cm_state state;
};

static void mitosis_cm_set(struct mitosis_resolution *resolution,
			   const struct mitosis_cm_state *state)
{
	spin_lock(&resolution->lock);
	resolution->state = *state;
	spin_unlock(&resolution->lock);
	mitosis_event_signal(resolution->event);
}

static void mitosis_cm_established(struct mitosis_resolution *resolution,
				   const struct rdma_ud_param *ud)
{
	struct mitosis_cm_state state = {
		.step = MITOSIS_CM_ESTABLISHED,
		.remote_qpn = ud->qp_num,
		.remote_qkey = ud->qkey,
	};
	struct rdma_ah_attr attr = ud->ah_attr;
	struct ib_ah *ah = rdma_create_ah(resolution->pd, &attr,
					  RDMA_CREATE_AH_SLEEPABLE);

	if (IS_ERR(ah)) {
		state.step = MITOSIS_CM_FAILED;
		state.status = PTR_ERR(ah);
	} else {
		resolution->ah = ah;
	}
	mitosis_cm_set(resolution, &state);
}

static int mitosis_cm_client_event(struct rdma_cm_id *id,
				   struct rdma_cm_event *event)
{
	struct mitosis_resolution *resolution = id->context;
	struct mitosis_cm_state state = { .status = event->status };

	switch (event->event) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
		state.step = MITOSIS_CM_ADDRESS;
		break;
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
		state.step = MITOSIS_CM_ROUTE;
		break;
	case RDMA_CM_EVENT_ESTABLISHED:
		mitosis_cm_established(resolution, &event->param.ud);
		return 0;
	case RDMA_CM_EVENT_UNREACHABLE:
		/* A positive status is the other side's SIDR status. */
		state.step = event->status > 0 ? MITOSIS_CM_REFUSED :
						 MITOSIS_CM_FAILED;
		if (event->param.ud.private_data &&
		    event->param.ud.private_data_len >= sizeof(__le32))
			state.reason = le32_to_cpup(event->param.ud.private_data);
		break;
	default:
		state.step = MITOSIS_CM_FAILED;
	}
	mitosis_cm_set(resolution, &state);
	return 0;
}

struct mitosis_resolution *mitosis_cm_open(struct mitosis_event *event,
					   int *error)
{
	struct mitosis_resolution *resolution;

	resolution = kzalloc(sizeof(*resolution), GFP_KERNEL);
	if (!resolution) {
		*error = -ENOMEM;
		return NULL;
	}
	spin_lock_init(&resolution->lock);
	resolution->event = event;
	resolution->id = rdma_create_id(&init_net, mitosis_cm_client_event,
					resolution, RDMA_PS_UDP, IB_QPT_UD);
	if (IS_ERR(resolution->id)) {
		*error = PTR_ERR(resolution->id);
		kfree(resolution);
		return NULL;
	}
	return resolution;
}

/*
 * Over Ethernet a GID is an IPv6 address, or an IPv4 one in its mapped form.
 * Over InfiniBand it is given as it is, with the service port in the service id.
 */
int mitosis_cm_resolve(struct rdma_cm_id *id, const struct mitosis_port *port,
		       const u8 *gid, u64 ib_port_space, u16 service_port,
		       u32 timeout_ms)
{
	struct sockaddr_storage source = {}, destination = {};
	struct sockaddr *src = NULL, *dst = (struct sockaddr *)&destination;

	if (port->is_infiniband) {
		struct sockaddr_ib *to = (struct sockaddr_ib *)&destination;
		struct sockaddr_ib *from = (struct sockaddr_ib *)&source;

		from->sib_family = AF_IB;
		from->sib_pkey = cpu_to_be16(0xffff);
		memcpy(from->sib_addr.sib_raw, port->gid, 16);
		to->sib_family = AF_IB;
		to->sib_pkey = cpu_to_be16(0xffff);
		memcpy(to->sib_addr.sib_raw, gid, 16);
		to->sib_sid = cpu_to_be64(ib_port_space | service_port);
		to->sib_sid_mask = cpu_to_be64(~0ULL);
		src = (struct sockaddr *)&source;
	} else {
		struct sockaddr_in6 *to6 = (struct sockaddr_in6 *)&destination;
		struct sockaddr_in *to4 = (struct sockaddr_in *)&destination;
		struct in6_addr address;

		memcpy(&address, gid, sizeof(address));
		if (ipv6_addr_v4mapped(&address)) {
			to4->sin_family = AF_INET;
			to4->sin_port = htons(service_port);
			to4->sin_addr.s_addr = address.s6_addr32[3];
		} else {
			to6->sin6_family = AF_INET6;
			to6->sin6_port = htons(service_port);
			to6->sin6_addr = address;
			if (ipv6_addr_type(&address) & IPV6_ADDR_LINKLOCAL)
				to6->sin6_scope_id = port->ifindex;
		}
	}
	return rdma_resolve_addr(id, src, dst, timeout_ms);
}

/* Listens at the port on every device of one kind of link. */
int mitosis_cm_listen_at(struct rdma_cm_id *id, u64 ib_port_space,
			 u16 service_port, bool infiniband, int backlog)
{
	struct sockaddr_storage address = {};
	struct sockaddr_in6 *any = (struct sockaddr_in6 *)&address;
	struct sockaddr_ib *any_ib = (struct sockaddr_ib *)&address;
	int ret;

	if (infiniband) {
		any_ib->sib_family = AF_IB;
		any_ib->sib_pkey = cpu_to_be16(0xffff);
		any_ib->sib_sid = cpu_to_be64(ib_port_space | service_port);
		any_ib->sib_sid_mask = cpu_to_be64(~0ULL);
	} else {
		any->sin6_family = AF_INET6;
		any->sin6_port = htons(service_port);
	}
	ret = rdma_bind_addr(id, (struct sockaddr *)&address);
	return ret ? ret : rdma_listen(id, backlog);
}

int mitosis_cm_resolve_address(struct mitosis_resolution *resolution,
			       const struct mitosis_port *port, const u8 *gid,
			       u16 service_port, u32 timeout_ms)
{
	return mitosis_cm_resolve(resolution->id, port, gid, RDMA_IB_IP_PS_UDP,
				  service_port, timeout_ms);
}

int mitosis_cm_resolve_route(struct mitosis_resolution *resolution,
			     u32 timeout_ms)
{
	return rdma_resolve_route(resolution->id, timeout_ms);
}

int mitosis_cm_connect(struct mitosis_resolution *resolution,
		       struct ib_pd *pd, const u8 *private_data, u32 len)
{
	struct rdma_conn_param param = {
		.private_data = private_data,
		.private_data_len = len,
	};

	resolution->pd = pd;
	return rdma_connect(resolution->id, &param);
}

void mitosis_cm_state(struct mitosis_resolution *resolution,
		      struct mitosis_cm_state *state)
{
	spin_lock(&resolution->lock);
	*state = resolution->state;
	spin_unlock(&resolution->lock);
}

struct ib_device *mitosis_cm_device(struct mitosis_resolution *resolution,
				    u32 *port_num)
{
	*port_num = resolution->id->port_num;
	return resolution->id->device;
}

struct ib_ah *mitosis_cm_take_ah(struct mitosis_resolution *resolution)
{
	struct ib_ah *ah = resolution->ah;

	resolution->ah = NULL;
	return ah;
}

void mitosis_cm_close(struct mitosis_resolution *resolution)
{
	/* No callback runs once the id is destroyed. */
	rdma_destroy_id(resolution->id);
	if (resolution->ah)
		rdma_destroy_ah(resolution->ah, RDMA_DESTROY_AH_SLEEPABLE);
	kfree(resolution);
}

/* The server's side. */
struct mitosis_listener {
	struct rdma_cm_id *id;
	void (*answer)(void *context, const struct mitosis_cm_request *request,
		       struct mitosis_cm_answer *answer);
	void *context;
};

static int mitosis_cm_server_event(struct rdma_cm_id *id,
				   struct rdma_cm_event *event)
{
	struct mitosis_listener *listener = id->context;
	struct mitosis_cm_request request = {
		.device = id->device,
		.port_num = id->port_num,
		.private_data = event->param.ud.private_data,
		.private_data_len = event->param.ud.private_data_len,
	};
	struct mitosis_cm_answer answer = {};
	struct rdma_conn_param param = {};
	__le32 reason;

	if (event->event != RDMA_CM_EVENT_CONNECT_REQUEST)
		return 0;
	listener->answer(listener->context, &request, &answer);
	if (answer.accept) {
		param.qp_num = answer.qpn;
		param.qkey = answer.qkey;
		rdma_accept(id, &param);
	} else {
		reason = cpu_to_le32(answer.reason);
		rdma_reject(id, &reason, sizeof(reason),
			    IB_CM_REJ_CONSUMER_DEFINED);
	}
	/* The id has served its purpose: a non-zero return destroys it. */
	return 1;
}

struct mitosis_listener *mitosis_cm_listen(u16 service_port, bool infiniband,
		void (*answer)(void *, const struct mitosis_cm_request *,
			       struct mitosis_cm_answer *),
		void *context, int *error)
{
	struct mitosis_listener *listener;

	listener = kzalloc(sizeof(*listener), GFP_KERNEL);
	if (!listener) {
		*error = -ENOMEM;
		return NULL;
	}
	listener->answer = answer;
	listener->context = context;
	listener->id = rdma_create_id(&init_net, mitosis_cm_server_event,
				      listener, RDMA_PS_UDP, IB_QPT_UD);
	if (IS_ERR(listener->id)) {
		*error = PTR_ERR(listener->id);
		goto free;
	}
	*error = mitosis_cm_listen_at(listener->id, RDMA_IB_IP_PS_UDP,
				      service_port, infiniband, 0);
	if (!*error)
		return listener;
	rdma_destroy_id(listener->id);
free:
	kfree(listener);
	return NULL;
}

void mitosis_cm_unlisten(struct mitosis_listener *listener)
{
	rdma_destroy_id(listener->id);
	kfree(listener);
}
