// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Mutexes. */
#include <linux/mutex.h>
#include <linux/slab.h>

#include "fork.h"

struct mitosis_mutex {
	struct mutex mutex;
};

struct mitosis_mutex *mitosis_mutex_create(void)
{
	struct mitosis_mutex *mutex = kzalloc(sizeof(*mutex), GFP_KERNEL);

	if (mutex)
		mutex_init(&mutex->mutex);
	return mutex;
}

void mitosis_mutex_destroy(struct mitosis_mutex *mutex)
{
	mutex_destroy(&mutex->mutex);
	kfree(mutex);
}

void mitosis_mutex_lock(struct mitosis_mutex *mutex)
{
	mutex_lock(&mutex->mutex);
}

bool mitosis_mutex_try_lock(struct mitosis_mutex *mutex)
{
	return mutex_trylock(&mutex->mutex);
}

void mitosis_mutex_unlock(struct mitosis_mutex *mutex)
{
	mutex_unlock(&mutex->mutex);
}
