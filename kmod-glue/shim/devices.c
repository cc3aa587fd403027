// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * RDMA devices and their ports, and what happens when a device goes away: its
 * removal waits until the module has let go of everything on every device, so
 * a device seen in the list stays valid until mitosis_devices_close().
 *
 * The kernel's add callback is not told which module state it is for, and each
 * module opens its devices once: the state is therefore a static.
 */
#include <linux/completion.h>
#include <linux/mutex.h>
#include <linux/netdevice.h>
#include <linux/string.h>
#include <rdma/ib_cache.h>
#include <rdma/ib_verbs.h>

#include "shim.h"

#define MITOSIS_MAX_DEVICES 16

struct mitosis_devices {
	struct ib_client client;
	struct mutex lock;	/* guards list and count */
	struct ib_device *list[MITOSIS_MAX_DEVICES];
	u32 count;
	struct mitosis_event *removed_event;
	atomic_t removed;
	struct completion released;
};

static struct mitosis_devices mitosis_devices;

static int mitosis_device_add(struct ib_device *device)
{
	int ret = -ENOSPC;

	mutex_lock(&mitosis_devices.lock);
	if (mitosis_devices.count < MITOSIS_MAX_DEVICES) {
		mitosis_devices.list[mitosis_devices.count++] = device;
		ret = 0;
	}
	mutex_unlock(&mitosis_devices.lock);
	return ret;
}

static void mitosis_device_remove(struct ib_device *device, void *client_data)
{
	u32 i;

	atomic_set(&mitosis_devices.removed, 1);
	if (!completion_done(&mitosis_devices.released))
		mitosis_event_signal(mitosis_devices.removed_event);
	wait_for_completion_state(&mitosis_devices.released, TASK_IDLE);

	mutex_lock(&mitosis_devices.lock);
	for (i = 0; i < mitosis_devices.count; i++) {
		if (mitosis_devices.list[i] == device)
			mitosis_devices.list[i] =
				mitosis_devices.list[--mitosis_devices.count];
	}
	mutex_unlock(&mitosis_devices.lock);
}

struct mitosis_devices *mitosis_devices_open(struct mitosis_event *removed)
{
	struct mitosis_devices *devices = &mitosis_devices;

	mutex_init(&devices->lock);
	init_completion(&devices->released);
	atomic_set(&devices->removed, 0);
	devices->count = 0;
	devices->removed_event = removed;
	devices->client.name = KBUILD_MODNAME;
	devices->client.add = mitosis_device_add;
	devices->client.remove = mitosis_device_remove;
	return ib_register_client(&devices->client) ? NULL : devices;
}

static void mitosis_port_gid(struct mitosis_port *port)
{
	const struct ib_gid_attr *attr;
	struct net_device *ndev;

	attr = rdma_get_gid_attr(port->device, port->port_num, 0);
	if (IS_ERR(attr))
		return;
	memcpy(port->gid, attr->gid.raw, sizeof(port->gid));
	rcu_read_lock();
	ndev = rdma_read_gid_attr_ndev_rcu(attr);
	if (!IS_ERR(ndev))
		port->ifindex = ndev->ifindex;
	rcu_read_unlock();
	rdma_put_gid_attr(attr);
}

/* Fills in the ports that are active and that the connection manager serves. */
u32 mitosis_devices_ports(struct mitosis_devices *devices,
			  struct mitosis_port *ports, u32 capacity)
{
	struct ib_port_attr attr;
	u32 i, port_num, filled = 0;

	mutex_lock(&devices->lock);
	for (i = 0; i < devices->count; i++) {
		struct ib_device *device = devices->list[i];

		rdma_for_each_port(device, port_num) {
			struct mitosis_port *port = &ports[filled];

			if (filled == capacity ||
			    !rdma_cap_ib_cm(device, port_num) ||
			    ib_query_port(device, port_num, &attr) ||
			    attr.state != IB_PORT_ACTIVE)
				continue;
			memset(port, 0, sizeof(*port));
			port->device = device;
			port->port_num = port_num;
			port->mtu_bytes = ib_mtu_enum_to_int(attr.active_mtu);
			port->max_qp_wr = device->attrs.max_qp_wr;
			port->is_infiniband =
				rdma_protocol_ib(device, port_num) ? 1 : 0;
			strscpy((char *)port->name, dev_name(&device->dev),
				sizeof(port->name));
			mitosis_port_gid(port);
			filled++;
		}
	}
	mutex_unlock(&devices->lock);
	return filled;
}

bool mitosis_devices_removed(struct mitosis_devices *devices)
{
	return atomic_read(&devices->removed) != 0;
}

void mitosis_devices_close(struct mitosis_devices *devices)
{
	complete_all(&devices->released);
	ib_unregister_client(&devices->client);
}
