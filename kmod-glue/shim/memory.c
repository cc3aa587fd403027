// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Memory: tables of any size, and single pages that a device may reach. */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "shim.h"

void *mitosis_alloc(size_t size)
{
	return kvzalloc(size, GFP_KERNEL);
}

void mitosis_free(void *memory)
{
	kvfree(memory);
}

void *mitosis_page_alloc(void)
{
	return (void *)get_zeroed_page(GFP_KERNEL);
}

void mitosis_page_free(void *page)
{
	free_page((unsigned long)page);
}
