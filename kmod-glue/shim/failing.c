// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Which allocation fails, and what is left of all: see failing.h, which each file includes. */
#include <linux/atomic.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

static unsigned int fail_allocation;
static atomic_t allocations = ATOMIC_INIT(0);
static atomic_t failed = ATOMIC_INIT(0);
static atomic_t left = ATOMIC_INIT(0);

/* What is counted begins anew with each wish. */
static int mitosis_set_fail(const char *text, const struct kernel_param *parameter)
{
	int ret = param_set_uint(text, parameter);

	if (!ret)
		atomic_set(&allocations, 0);
	return ret;
}

static const struct kernel_param_ops mitosis_fail_operations = {
	.set = mitosis_set_fail,
	.get = param_get_uint,
};

module_param_cb(fail_allocation, &mitosis_fail_operations, &fail_allocation, 0644);
MODULE_PARM_DESC(fail_allocation, "Which allocation from now on fails; 0: none");
module_param_named(allocations, allocations.counter, int, 0444);
MODULE_PARM_DESC(allocations, "Allocations since fail_allocation was set");

bool mitosis_fails(const char *what)
{
	unsigned int number = atomic_inc_return(&allocations);

	if (!number || number != READ_ONCE(fail_allocation))
		return false;
	atomic_inc(&failed);
	pr_info("allocation %u fails: %s\n", number, what);
	return true;
}

void *mitosis_noted(void *memory)
{
	if (memory)
		atomic_inc(&left);
	return memory;
}

void mitosis_forget(const void *memory)
{
	if (memory)
		atomic_dec(&left);
}

void mitosis_allocations_report(void)
{
	pr_info("allocations: %d, failed %d, left %d\n", atomic_read(&allocations),
		atomic_read(&failed), atomic_read(&left));
}
