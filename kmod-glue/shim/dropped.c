// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * What a child has given up of its anonymous memory: madvise(MADV_DONTNEED)
 * promises zeros there, and the kernel, which takes a child's memory for a file's,
 * would bring the seed's page back.
 *
 * The kernel tells of every page that leaves the page tables. Some of those are
 * only replaced, by a copy or a swap entry: they do not come to the fault handler
 * again unless they are given up later, so that noting them does no harm.
 *
 * One mitosis_child stands for the children's mappings in one address space. A
 * process that a child forks gets one of its own, which begins with what its
 * parent had given up.
 */
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "dropped.h"

/* Pages whose bits are kept together, by their numbers. */
#define MITOSIS_GROUP_SHIFT 9
#define MITOSIS_GROUP_PAGES (1UL << MITOSIS_GROUP_SHIFT)

struct mitosis_child {
	struct mmu_notifier notifier;
	struct mm_struct *mm;		/* only compared */
	struct list_head node;		/* in mitosis_children */
	unsigned long mappings;		/* under mitosis_children_lock */
	struct xarray groups;		/* of bitmaps, or of the value 1: all of them */
	bool lost;			/* there was no memory to note something */
};

static LIST_HEAD(mitosis_children);
static DEFINE_SPINLOCK(mitosis_children_lock);

static bool mitosis_is_child_vma(const struct vm_area_struct *vma);

/* Notes pages first to last, by their numbers. Called where nothing may sleep. */
static void mitosis_note(struct mitosis_child *child, unsigned long first,
			 unsigned long last)
{
	while (first <= last) {
		unsigned long group = first >> MITOSIS_GROUP_SHIFT;
		unsigned long end = min(last, first | (MITOSIS_GROUP_PAGES - 1));
		unsigned long from = first & (MITOSIS_GROUP_PAGES - 1);
		unsigned long *bits;
		void *entry;

		xa_lock(&child->groups);
		entry = xa_load(&child->groups, group);
		if (!entry && end - first + 1 == MITOSIS_GROUP_PAGES) {
			entry = __xa_store(&child->groups, group, xa_mk_value(1),
					   GFP_ATOMIC | __GFP_NOWARN);
			if (xa_is_err(entry))
				WRITE_ONCE(child->lost, true);
		} else if (!entry) {
			bits = kzalloc(MITOSIS_GROUP_PAGES / 8,
				       GFP_ATOMIC | __GFP_NOWARN);
			if (bits)
				bitmap_set(bits, from, end - first + 1);
			if (!bits || xa_is_err(__xa_store(&child->groups, group, bits,
						GFP_ATOMIC | __GFP_NOWARN))) {
				kfree(bits);
				WRITE_ONCE(child->lost, true);
			}
		} else if (!xa_is_value(entry)) {
			bitmap_set(entry, from, end - first + 1);
		}
		xa_unlock(&child->groups);
		first = end + 1;
	}
}

/*
 * Whether the caller holds an address space's mappings for writing. A semaphore's
 * owner is the writer; readers have bit 0 set, and bit 1 is about spinning.
 */
static bool mitosis_holds_mappings(struct mm_struct *mm)
{
	return (atomic_long_read(&mm->mmap_lock.owner) & ~2L) == (long)current;
}

static int mitosis_invalidated(struct mmu_notifier *notifier,
			       const struct mmu_notifier_range *range)
{
	struct mitosis_child *child =
		container_of(notifier, struct mitosis_child, notifier);
	struct vm_area_struct *vma;
	VMA_ITERATOR(iterator, range->mm, range->start);

	if (range->event != MMU_NOTIFY_CLEAR)
		return 0;
	/*
	 * Where a mapping is split, the kernel tells of all of the huge page that
	 * might be there, and takes nothing away. Pages are given up by whoever
	 * holds the mappings for reading; with a mapping that ends, by another event.
	 */
	if (mitosis_holds_mappings(range->mm))
		return 0;
	/*
	 * Whoever changes page tables holds a lock on the mappings that they
	 * belong to; RCU is for finding them.
	 */
	rcu_read_lock();
	for_each_vma_range(iterator, vma, range->end) {
		unsigned long from = max(range->start, vma->vm_start);
		unsigned long to = min(range->end, vma->vm_end);

		if (mitosis_is_child_vma(vma) && from < to)
			mitosis_note(child,
				     vma->vm_pgoff + ((from - vma->vm_start) >> PAGE_SHIFT),
				     vma->vm_pgoff + ((to - 1 - vma->vm_start) >> PAGE_SHIFT));
	}
	rcu_read_unlock();
	return 0;
}

static void mitosis_child_free(struct mmu_notifier *notifier)
{
	struct mitosis_child *child =
		container_of(notifier, struct mitosis_child, notifier);
	unsigned long group;
	void *entry;

	xa_for_each(&child->groups, group, entry) {
		if (!xa_is_value(entry))
			kfree(entry);
	}
	xa_destroy(&child->groups);
	kfree(child);
}

static const struct mmu_notifier_ops mitosis_child_operations = {
	.invalidate_range_start = mitosis_invalidated,
	.free_notifier = mitosis_child_free,
};

static struct mitosis_child *mitosis_child_alloc(struct mm_struct *mm)
{
	struct mitosis_child *child = kzalloc(sizeof(*child), GFP_KERNEL);

	if (child) {
		child->notifier.ops = &mitosis_child_operations;
		child->mm = mm;
		xa_init(&child->groups);
	}
	return child;
}

static void mitosis_child_publish(struct mitosis_child *child)
{
	spin_lock(&mitosis_children_lock);
	list_add(&child->node, &mitosis_children);
	spin_unlock(&mitosis_children_lock);
}

/* The child of the calling process, with one mapping that the caller holds. */
struct mitosis_child *mitosis_child_begin(void)
{
	struct mitosis_child *child = mitosis_child_alloc(current->mm);

	if (!child)
		return NULL;
	if (mmu_notifier_register(&child->notifier, current->mm)) {
		kfree(child);
		return NULL;
	}
	child->mappings = 1;
	mitosis_child_publish(child);
	return child;
}

static bool mitosis_copy_groups(struct mitosis_child *to, struct mitosis_child *from)
{
	unsigned long group;
	void *entry;

	to->lost = READ_ONCE(from->lost);
	xa_for_each(&from->groups, group, entry) {
		if (!xa_is_value(entry)) {
			entry = kmemdup(entry, MITOSIS_GROUP_PAGES / 8, GFP_KERNEL);
			if (!entry)
				return false;
		}
		if (xa_is_err(xa_store(&to->groups, group, entry, GFP_KERNEL))) {
			if (!xa_is_value(entry))
				kfree(entry);
			return false;
		}
	}
	return true;
}

/* The address space of a process that a child is forking. */
static struct mitosis_child *mitosis_child_of(struct mm_struct *mm,
					      struct mitosis_child *parent)
{
	struct mitosis_child *child;

	spin_lock(&mitosis_children_lock);
	list_for_each_entry(child, &mitosis_children, node) {
		if (child->mm == mm) {
			child->mappings++;
			spin_unlock(&mitosis_children_lock);
			return child;
		}
	}
	spin_unlock(&mitosis_children_lock);
	child = mitosis_child_alloc(mm);
	if (!child)
		return NULL;
	if (!mitosis_copy_groups(child, parent) ||
	    __mmu_notifier_register(&child->notifier, mm)) {
		mitosis_child_free(&child->notifier);
		return NULL;
	}
	child->mappings = 1;
	mitosis_child_publish(child);
	return child;
}

void mitosis_child_hold(struct mitosis_child *child)
{
	spin_lock(&mitosis_children_lock);
	child->mappings++;
	spin_unlock(&mitosis_children_lock);
}

void mitosis_child_end(struct mitosis_child *child)
{
	bool last;

	spin_lock(&mitosis_children_lock);
	last = !--child->mappings;
	if (last)
		list_del(&child->node);
	spin_unlock(&mitosis_children_lock);
	if (last)
		mmu_notifier_put(&child->notifier);
}

/* A mapping was split, or copied by fork(), which holds the new one's lock. */
void mitosis_child_vma_opened(struct vm_area_struct *vma)
{
	struct mitosis_child *child = vma->vm_private_data;

	if (!child)
		return;
	if (child->mm == vma->vm_mm)
		mitosis_child_hold(child);
	else
		/* Without one the process can touch nothing new there: see mitosis_child_dropped(). */
		vma->vm_private_data = mitosis_child_of(vma->vm_mm, child);
}

void mitosis_child_vma_closed(struct vm_area_struct *vma)
{
	if (vma->vm_private_data)
		mitosis_child_end(vma->vm_private_data);
}

/* Whether the page was given up: 1 or 0; or -ENOMEM if that is not known. */
int mitosis_child_dropped(struct mitosis_child *child, unsigned long page)
{
	void *entry;
	int dropped = 0;

	if (!child || READ_ONCE(child->lost))
		return -ENOMEM;
	xa_lock(&child->groups);
	entry = xa_load(&child->groups, page >> MITOSIS_GROUP_SHIFT);
	if (entry)
		dropped = xa_is_value(entry) ||
			  test_bit(page & (MITOSIS_GROUP_PAGES - 1), entry);
	xa_unlock(&child->groups);
	return dropped;
}

static bool mitosis_is_child_vma(const struct vm_area_struct *vma)
{
	return vma->vm_ops && vma->vm_ops->open == mitosis_child_vma_opened;
}
