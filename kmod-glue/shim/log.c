// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* The kernel log. */
#include <linux/printk.h>

#include "shim.h"

void mitosis_log(int level, const char *text, u32 len)
{
	switch (level) {
	case 3:
		pr_err("%.*s\n", (int)len, text);
		break;
	case 4:
		pr_warn("%.*s\n", (int)len, text);
		break;
	default:
		pr_info("%.*s\n", (int)len, text);
	}
}
