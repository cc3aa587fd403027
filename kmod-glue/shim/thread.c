// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Time, chance, events that a thread sleeps on, and threads. */
#include <linux/completion.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "fork.h"

u64 mitosis_clock_ns(void)
{
	return ktime_get_ns();
}

u64 mitosis_random_u64(void)
{
	return get_random_u64();
}

void mitosis_yield(void)
{
	cond_resched();
	cpu_relax();
}

/* Whether nobody else wants the processor that this thread runs on. */
bool mitosis_alone(void)
{
	return single_task_running() && !need_resched();
}

void mitosis_park(void)
{
	schedule_timeout_idle(HZ);
}

/* A signal is kept until one waiter takes it; signals do not add up. */
struct mitosis_event {
	wait_queue_head_t queue;
	atomic_t signaled;
};

struct mitosis_event *mitosis_event_create(void)
{
	struct mitosis_event *event = kzalloc(sizeof(*event), GFP_KERNEL);

	if (event)
		init_waitqueue_head(&event->queue);
	return event;
}

void mitosis_event_destroy(struct mitosis_event *event)
{
	kfree(event);
}

void mitosis_event_signal(struct mitosis_event *event)
{
	atomic_set_release(&event->signaled, 1);
	wake_up(&event->queue);
}

/* Idle sleep: neither load average nor the hung-task detector counts it. */
void mitosis_event_wait(struct mitosis_event *event, u64 timeout_ns)
{
	wait_event_idle_timeout(event->queue,
				atomic_xchg(&event->signaled, 0),
				nsecs_to_jiffies(timeout_ns) + 1);
}

/*
 * For processes: only a deadly signal ends it early, and one that is ending already
 * waits for nothing. A seed sleeps for as long as it lives, and is no load.
 */
int mitosis_event_wait_frozen(struct mitosis_event *event, u64 timeout_ns)
{
	long left = timeout_ns == U64_MAX ? MAX_SCHEDULE_TIMEOUT :
		    (long)min_t(u64, nsecs_to_jiffies64(timeout_ns),
				MAX_SCHEDULE_TIMEOUT - 2) + 1;
	DEFINE_WAIT(wait);
	int ret = 0;

	for (;;) {
		prepare_to_wait(&event->queue, &wait,
				TASK_KILLABLE | TASK_NOLOAD | TASK_FREEZABLE);
		if (atomic_xchg(&event->signaled, 0) || !left)
			break;
		if (fatal_signal_pending(current) ||
		    (current->flags & PF_EXITING)) {
			ret = -EINTR;
			break;
		}
		left = schedule_timeout(left);
	}
	finish_wait(&event->queue, &wait);
	return ret;
}

struct mitosis_thread {
	struct task_struct *task;
	void (*body)(void *context);
	void *context;
	struct completion done;
};

static int mitosis_thread_body(void *argument)
{
	struct mitosis_thread *thread = argument;

	thread->body(thread->context);
	complete(&thread->done);
	/* kthread_stop() wants a thread that is still there to be stopped. */
	for (;;) {
		set_current_state(TASK_IDLE);
		if (kthread_should_stop())
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	return 0;
}

struct mitosis_thread *mitosis_thread_start(void (*body)(void *), void *context,
					    const char *name, u32 index)
{
	struct mitosis_thread *thread = kzalloc(sizeof(*thread), GFP_KERNEL);
	struct task_struct *task;

	if (!thread)
		return NULL;
	thread->body = body;
	thread->context = context;
	init_completion(&thread->done);
	task = kthread_create(mitosis_thread_body, thread, "%s/%u", name, index);
	if (IS_ERR(task)) {
		kfree(thread);
		return NULL;
	}
	thread->task = task;
	wake_up_process(task);
	return thread;
}

/*
 * Sleeps until the body has returned. The wait is an idle one: a run of many
 * minutes would otherwise look like a hung task.
 */
void mitosis_thread_join(struct mitosis_thread *thread)
{
	wait_for_completion_state(&thread->done, TASK_IDLE);
	kthread_stop(thread->task);
	kfree(thread);
}
