/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What kernels call differently. */
#ifndef MITOSIS_COMPAT_H
#define MITOSIS_COMPAT_H

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
static inline pmd_t pmdp_get_lockless(pmd_t *pmd)
{
	return READ_ONCE(*pmd);
}
#endif

static inline void mitosis_vma_flags_replace(struct vm_area_struct *vma,
					     unsigned long clear,
					     unsigned long set)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_clear(vma, clear);
	vm_flags_set(vma, set);
#else
	vma->vm_flags = (vma->vm_flags & ~clear) | set;
#endif
}

#endif
