// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* mitosis: parameters, /dev/mitosis, and the door to src/fork. */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "mitosis.h"
#include "fork.h"

static unsigned int service_id = 2;
module_param(service_id, uint, 0444);
MODULE_PARM_DESC(service_id, "Service at which other machines find this one (0 to 255)");
static unsigned int prefetch_pages = 16;
module_param_named(prefetch, prefetch_pages, uint, 0444);
MODULE_PARM_DESC(prefetch, "Pages read with one that was touched (1 to 16)");
static unsigned int cache_pages = 262144;
module_param(cache_pages, uint, 0444);
MODULE_PARM_DESC(cache_pages, "Pages of other machines' seeds that are kept for the next child");
static unsigned int warm_pages = 512;
module_param(warm_pages, uint, 0444);
MODULE_PARM_DESC(warm_pages, "Pages that a seed touched last and that are read when it is opened, at most (0: none)");
static char *cluster_key = "";
module_param(cluster_key, charp, 0);
MODULE_PARM_DESC(cluster_key, "What members of the cluster know: 32 hexadecimal digits; none: every peer is served");

/* Longest argument of a call. */
#define MITOSIS_ARGUMENT_MAX 192

static int mitosis_device_open(struct inode *inode, struct file *file)
{
	void *client = mitosis_client_opened(mitosis_task_tgid());

	if (!client)
		return -ENOMEM;
	file->private_data = client;
	return 0;
}

/* Each process that closes its copy of the file comes by here; so does one that ends. */
static int mitosis_device_flush(struct file *file, fl_owner_t id)
{
	mitosis_client_flushed(file->private_data, mitosis_task_tgid());
	return 0;
}

static int mitosis_device_release(struct inode *inode, struct file *file)
{
	mitosis_client_closed(file->private_data);
	return 0;
}

static long mitosis_device_ioctl(struct file *file, unsigned int command,
				 unsigned long address)
{
	void __user *user = (void __user *)address;
	u64 argument[MITOSIS_ARGUMENT_MAX / sizeof(u64)] = {};
	size_t len = _IOC_SIZE(command);
	long ret;

	if (_IOC_TYPE(command) != _IOC_TYPE(MITOSIS_FREEZE))
		return -ENOTTY;
	if (len > sizeof(argument))
		return -EINVAL;
	if ((_IOC_DIR(command) & _IOC_WRITE) && copy_from_user(argument, user, len))
		return -EFAULT;
	ret = mitosis_client_call(file->private_data, command, argument, len);
	if ((_IOC_DIR(command) & _IOC_READ) && copy_to_user(user, argument, len))
		return -EFAULT;
	return ret;
}

static const struct file_operations mitosis_device_operations = {
	.owner = THIS_MODULE,
	.open = mitosis_device_open,
	.flush = mitosis_device_flush,
	.release = mitosis_device_release,
	.unlocked_ioctl = mitosis_device_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice mitosis_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "mitosis",
	.fops = &mitosis_device_operations,
	.mode = 0660,
};

static int __init mitosis_init(void)
{
	const struct mitosis_fork_parameters parameters = {
		.service_id = service_id,
		.prefetch = prefetch_pages,
		.cache_pages = cache_pages,
		.warm_pages = warm_pages,
		.cluster_key = mitosis_text(cluster_key),
	};
	int ret = mitosis_fork_start(&parameters);

	if (!ret) {
		ret = misc_register(&mitosis_device);
		if (ret)
			mitosis_fork_stop();
	}
	if (ret)
		mitosis_allocations_report();
	return ret;
}
module_init(mitosis_init);

static void __exit mitosis_exit(void)
{
	misc_deregister(&mitosis_device);
	mitosis_fork_stop();
	/* What children noted is freed behind their backs. */
	mmu_notifier_synchronize();
	mitosis_allocations_report();
}
module_exit(mitosis_exit);

MODULE_DESCRIPTION("MITOSIS: remote fork over RDMA");
MODULE_LICENSE("Dual MIT/GPL");
