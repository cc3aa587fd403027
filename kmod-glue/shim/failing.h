/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Allocations that fail when they are told to: what the stock kernel's fault
 * injection would do, which no distribution builds in. Included before each of the
 * module's C files where it is built with FAILING=y, and nowhere else.
 *
 * fail_allocation=n lets the n-th allocation from now on fail, memory and the
 * kernel's objects alike; 0 lets none fail. `allocations` says how many there have
 * been since. What was allocated as memory is counted until it is freed, and the
 * module says at its end how much is left.
 */
#ifndef MITOSIS_FAILING_H
#define MITOSIS_FAILING_H

#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/slab.h>
#include <rdma/ib_verbs.h>
#include <rdma/rdma_cm.h>

/* Whether this allocation is the one that fails. */
bool mitosis_fails(const char *what);
/* Notes memory that was given, and returns it. */
void *mitosis_noted(void *memory);
void mitosis_forget(const void *memory);
void mitosis_allocations_report(void);

static inline void *mitosis_kzalloc(size_t len, gfp_t flags)
{
	return mitosis_fails("kzalloc") ? NULL : mitosis_noted(kzalloc(len, flags));
}

static inline void *mitosis_kmalloc(size_t len, gfp_t flags)
{
	return mitosis_fails("kmalloc") ? NULL : mitosis_noted(kmalloc(len, flags));
}

static inline void *mitosis_kmemdup(const void *from, size_t len, gfp_t flags)
{
	return mitosis_fails("kmemdup") ? NULL : mitosis_noted(kmemdup(from, len, flags));
}

static inline void *mitosis_kvzalloc(size_t len, gfp_t flags)
{
	return mitosis_fails("kvzalloc") ? NULL : mitosis_noted(kvzalloc(len, flags));
}

static inline void *mitosis_kvmalloc_array(size_t count, size_t len, gfp_t flags)
{
	return mitosis_fails("kvmalloc_array") ? NULL :
			mitosis_noted(kvmalloc_array(count, len, flags));
}

static inline unsigned long mitosis_zeroed_page(gfp_t flags)
{
	return mitosis_fails("get_zeroed_page") ? 0 :
			(unsigned long)mitosis_noted((void *)get_zeroed_page(flags));
}

/* Such pages end in processes, which give them back. */
static inline struct page *mitosis_page(gfp_t flags)
{
	return mitosis_fails("alloc_page") ? NULL : alloc_page(flags);
}

static inline void mitosis_kfree(const void *memory)
{
	mitosis_forget(memory);
	kfree(memory);
}

static inline void mitosis_kvfree(const void *memory)
{
	mitosis_forget(memory);
	kvfree(memory);
}

static inline void mitosis_page_freed(unsigned long page)
{
	mitosis_forget((void *)page);
	free_page(page);
}

#undef kzalloc
#define kzalloc mitosis_kzalloc
#undef kmalloc
#define kmalloc mitosis_kmalloc
#undef kmemdup
#define kmemdup mitosis_kmemdup
#undef kvzalloc
#define kvzalloc mitosis_kvzalloc
#undef kvmalloc_array
#define kvmalloc_array mitosis_kvmalloc_array
#undef get_zeroed_page
#define get_zeroed_page mitosis_zeroed_page
#undef alloc_page
#define alloc_page mitosis_page
#define kfree mitosis_kfree
#define kvfree mitosis_kvfree
#undef free_page
#define free_page mitosis_page_freed

#define MITOSIS_OR_FAIL(call) \
	(mitosis_fails(#call) ? ERR_PTR(-ENOMEM) : (call))

#undef kthread_create
#define kthread_create(body, context, ...) \
	MITOSIS_OR_FAIL(kthread_create_on_node(body, context, NUMA_NO_NODE, __VA_ARGS__))
#undef ib_alloc_pd
#define ib_alloc_pd(device, flags) \
	MITOSIS_OR_FAIL(__ib_alloc_pd(device, flags, KBUILD_MODNAME))
#undef ib_create_cq
#define ib_create_cq(device, completed, event, context, attr) \
	MITOSIS_OR_FAIL(__ib_create_cq(device, completed, event, context, attr, KBUILD_MODNAME))
#define ib_create_qp(pd, init) MITOSIS_OR_FAIL(ib_create_qp(pd, init))
#define ib_alloc_mr(pd, type, count) MITOSIS_OR_FAIL(ib_alloc_mr(pd, type, count))
#define rdma_create_ah(pd, attr, flags) MITOSIS_OR_FAIL(rdma_create_ah(pd, attr, flags))
#undef rdma_create_id
#define rdma_create_id(net, handler, context, space, type) \
	MITOSIS_OR_FAIL(__rdma_create_kernel_id(net, handler, context, space, type, KBUILD_MODNAME))
#define rdma_create_qp(id, pd, init) \
	(mitosis_fails("rdma_create_qp") ? -ENOMEM : rdma_create_qp(id, pd, init))
#define anon_inode_getfile(name, operations, context, flags) \
	MITOSIS_OR_FAIL(anon_inode_getfile(name, operations, context, flags))
#define mmu_notifier_register(notifier, mm) \
	(mitosis_fails("mmu_notifier_register") ? -ENOMEM : mmu_notifier_register(notifier, mm))
#define __mmu_notifier_register(notifier, mm) \
	(mitosis_fails("__mmu_notifier_register") ? -ENOMEM : __mmu_notifier_register(notifier, mm))
#define vm_mmap(file, address, len, prot, flags, offset) \
	(mitosis_fails("vm_mmap") ? (unsigned long)-ENOMEM : \
	 vm_mmap(file, address, len, prot, flags, offset))

#endif
