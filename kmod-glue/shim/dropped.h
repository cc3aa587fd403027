/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What children have given up of their anonymous memory. */
#ifndef MITOSIS_DROPPED_H
#define MITOSIS_DROPPED_H

#include <linux/mm_types.h>

struct mitosis_child;

struct mitosis_child *mitosis_child_begin(void);
void mitosis_child_hold(struct mitosis_child *child);
void mitosis_child_end(struct mitosis_child *child);
void mitosis_child_vma_opened(struct vm_area_struct *vma);
void mitosis_child_vma_closed(struct vm_area_struct *vma);
int mitosis_child_dropped(struct mitosis_child *child, unsigned long page);

#endif
