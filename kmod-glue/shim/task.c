// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* The calling process: what it is, and becoming another; and a few words about others. */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/kernel.h>
#include <linux/pagemap.h>
#include <linux/pid.h>
#include <linux/rseq.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/ptrace.h>
#include <linux/uidgid.h>
#include <linux/user_namespace.h>
#include <linux/utsname.h>
#include <linux/version.h>
#include <linux/wait.h>
#include <uapi/linux/futex.h>
#include <asm/fsgsbase.h>
#include <asm/fpu/xcr.h>
#include <asm/processor.h>
#include <asm/ptrace.h>

#include "fork.h"

static_assert(sizeof(struct mitosis_registers) == 23 * 8);
static_assert(sizeof(struct mitosis_task) == 9 * 8);
static_assert(sizeof(struct mitosis_layout) == 12 * 8);
static_assert(sizeof(struct mitosis_identity) == 168);

/* Flags that a process may choose for itself. */
#define MITOSIS_USER_EFLAGS                                                    \
	(X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF |       \
	 X86_EFLAGS_SF | X86_EFLAGS_DF | X86_EFLAGS_OF | X86_EFLAGS_AC |       \
	 X86_EFLAGS_ID)

void mitosis_task_registers(struct mitosis_registers *to)
{
	const struct pt_regs *from = current_pt_regs();

	current_save_fsgs();
	*to = (struct mitosis_registers){
		.r15 = from->r15, .r14 = from->r14, .r13 = from->r13,
		.r12 = from->r12, .rbp = from->bp, .rbx = from->bx,
		.r11 = from->r11, .r10 = from->r10, .r9 = from->r9,
		.r8 = from->r8, .rax = from->ax, .rcx = from->cx,
		.rdx = from->dx, .rsi = from->si, .rdi = from->di,
		.orig_rax = from->orig_ax, .rip = from->ip, .cs = from->cs,
		.eflags = from->flags, .rsp = from->sp, .ss = from->ss,
		.fs_base = current->thread.fsbase,
		.gs_base = current->thread.gsbase,
	};
}

/*
 * Whatever a peer sent, the process stays one of user space: its segments and
 * privileges are set here, and only harmless flags are taken over.
 */
void mitosis_task_set_registers(const struct mitosis_registers *from)
{
	struct pt_regs *to = current_pt_regs();

	to->r15 = from->r15;
	to->r14 = from->r14;
	to->r13 = from->r13;
	to->r12 = from->r12;
	to->bp = from->rbp;
	to->bx = from->rbx;
	to->r11 = from->r11;
	to->r10 = from->r10;
	to->r9 = from->r9;
	to->r8 = from->r8;
	to->cx = from->rcx;
	to->dx = from->rdx;
	to->si = from->rsi;
	to->di = from->rdi;
	to->orig_ax = -1;	/* no system call to restart */
	to->ip = from->rip;
	to->cs = __USER_CS;
	to->flags = (from->eflags & MITOSIS_USER_EFLAGS) | X86_EFLAGS_IF |
		    X86_EFLAGS_FIXED;
	to->sp = from->rsp;
	to->ss = __USER_DS;

	preempt_disable();
	loadsegment(fs, 0);
	current->thread.fsindex = 0;
	current->thread.fsbase = from->fs_base;
	x86_fsbase_write_cpu(from->fs_base);
	preempt_enable();
}

void mitosis_task_state(struct mitosis_task *to)
{
	memset(to, 0, sizeof(*to));
	memcpy(&to->blocked, &current->blocked, sizeof(to->blocked));
#ifdef CONFIG_RSEQ
	to->rseq = (unsigned long)current->rseq;
	to->rseq_signature = current->rseq_sig;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	to->rseq_len = current->rseq_len;
#else
	to->rseq_len = current->rseq ? sizeof(struct rseq) : 0;
#endif
#endif
	to->robust_list = (unsigned long)current->robust_list;
	to->robust_list_len = sizeof(*current->robust_list);
	to->clear_child_tid = (unsigned long)current->clear_child_tid;
	to->altstack_sp = current->sas_ss_sp;
	to->altstack_size = current->sas_ss_size;
	to->altstack_flags = current->sas_ss_flags;
	to->personality = current->personality;
}

void mitosis_task_set_state(const struct mitosis_task *from)
{
	sigset_t blocked;

	memcpy(&blocked, &from->blocked, sizeof(blocked));
	sigdelsetmask(&blocked, sigmask(SIGKILL) | sigmask(SIGSTOP));
	spin_lock_irq(&current->sighand->siglock);
	current->blocked = blocked;
	recalc_sigpending();
	spin_unlock_irq(&current->sighand->siglock);

	current->robust_list =
		(struct robust_list_head __user *)from->robust_list;
	current->clear_child_tid = (int __user *)from->clear_child_tid;
	current->sas_ss_sp = from->altstack_sp;
	current->sas_ss_size = from->altstack_size;
	current->sas_ss_flags = from->altstack_flags;
#ifdef CONFIG_RSEQ
	preempt_disable();
	current->rseq = (struct rseq __user *)from->rseq;
	current->rseq_sig = from->rseq_signature;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	current->rseq_len = from->rseq_len;
#endif
	/* The processor's number in it is written on the way out. */
	if (current->rseq)
		rseq_preempt(current);
	preempt_enable();
#endif
}

/*
 * On a child's way out the kernel writes the processor's number there, and takes a
 * page that cannot be had for the process's own mistake: SIGSEGV. Here it is
 * SIGBUS, as for any other page.
 */
void mitosis_task_reach_rseq(void)
{
#ifdef CONFIG_RSEQ
	const struct rseq __user *rseq = current->rseq;

	if (!rseq || !fault_in_readable((const char __user *)rseq, sizeof(*rseq)))
		return;
	current->rseq = NULL;
	force_sig(SIGBUS);
#endif
}

void mitosis_task_layout(struct mitosis_layout *to)
{
	const struct mm_struct *mm = current->mm;

	*to = (struct mitosis_layout){
		.start_code = mm->start_code, .end_code = mm->end_code,
		.start_data = mm->start_data, .end_data = mm->end_data,
		.start_brk = mm->start_brk, .brk = mm->brk,
		.start_stack = mm->start_stack,
		.arg_start = mm->arg_start, .arg_end = mm->arg_end,
		.env_start = mm->env_start, .env_end = mm->env_end,
		.vdso = (unsigned long)mm->context.vdso,
	};
}

int mitosis_task_set_layout(const struct mitosis_layout *from)
{
	struct mm_struct *mm = current->mm;

	if (mmap_write_lock_killable(mm))
		return -EINTR;
	spin_lock(&mm->arg_lock);
	mm->start_code = from->start_code;
	mm->end_code = from->end_code;
	mm->start_data = from->start_data;
	mm->end_data = from->end_data;
	mm->start_brk = from->start_brk;
	mm->brk = from->brk;
	mm->start_stack = from->start_stack;
	mm->arg_start = from->arg_start;
	mm->arg_end = from->arg_end;
	mm->env_start = from->env_start;
	mm->env_end = from->env_end;
	spin_unlock(&mm->arg_lock);
	mmap_write_unlock(mm);
	return 0;
}

void mitosis_task_identity(struct mitosis_identity *to)
{
	memset(to, 0, sizeof(*to));
	to->uid = from_kuid_munged(&init_user_ns, current_euid());
	to->threads = get_nr_threads(current);
	to->pid = task_tgid_nr(current);
	memcpy(to->comm, current->comm, sizeof(to->comm));
	strscpy((char *)to->release, init_uts_ns.name.release,
		sizeof(to->release));
	strscpy((char *)to->version, init_uts_ns.name.version,
		sizeof(to->version));
}

/* Of signals 1 to 64. */
bool mitosis_task_action(u32 signal, struct mitosis_action *to)
{
	const struct k_sigaction *from;

	if (!signal || signal > _NSIG)
		return false;
	spin_lock_irq(&current->sighand->siglock);
	from = &current->sighand->action[signal - 1];
	to->handler = (unsigned long)from->sa.sa_handler;
	to->flags = from->sa.sa_flags;
	to->restorer = (unsigned long)from->sa.sa_restorer;
	memcpy(&to->mask, &from->sa.sa_mask, sizeof(to->mask));
	spin_unlock_irq(&current->sighand->siglock);
	return true;
}

/* EAX, EBX, ECX and EDX; zeros for a leaf that the processor does not have. */
void mitosis_cpuid(u32 leaf, u32 subleaf, u32 registers[4])
{
	memset(registers, 0, 4 * sizeof(*registers));
	if (cpuid_eax(leaf & 0x80000000) < leaf)
		return;
	cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2],
		    &registers[3]);
}

u32 mitosis_xcr0(void)
{
	return boot_cpu_has(X86_FEATURE_OSXSAVE) ? (u32)xgetbv(0) : 0;
}

s32 mitosis_task_tgid(void)
{
	return task_tgid_nr(current);
}

bool mitosis_task_is_admin(void)
{
	return capable(CAP_SYS_ADMIN);
}

/* The number that a process has for the caller; 0: none. */
s32 mitosis_task_number_here(s32 global_pid)
{
	struct pid *pid;
	s32 number;

	rcu_read_lock();
	pid = find_pid_ns(global_pid, &init_pid_ns);
	number = pid ? pid_vnr(pid) : 0;
	rcu_read_unlock();
	return number;
}

static bool mitosis_is_alive(const struct task_struct *task)
{
	return task && !READ_ONCE(task->exit_state) &&
	       !(READ_ONCE(task->flags) & PF_EXITING);
}

bool mitosis_task_is_alive(s32 local_pid)
{
	bool alive;

	rcu_read_lock();
	alive = mitosis_is_alive(pid_task(find_vpid(local_pid), PIDTYPE_TGID));
	rcu_read_unlock();
	return alive;
}

/* One that is a child of the caller's and alive; NULL: there is none. */
struct pid *mitosis_process_child(s32 local_pid)
{
	struct task_struct *task;
	struct pid *pid;

	rcu_read_lock();
	pid = find_vpid(local_pid);
	task = pid_task(pid, PIDTYPE_TGID);
	if (mitosis_is_alive(task) &&
	    same_thread_group(rcu_dereference(task->real_parent), current))
		get_pid(pid);
	else
		pid = NULL;
	rcu_read_unlock();
	return pid;
}

void mitosis_process_put(struct pid *pid)
{
	put_pid(pid);
}

bool mitosis_process_is_alive(struct pid *pid)
{
	bool alive;

	rcu_read_lock();
	alive = mitosis_is_alive(pid_task(pid, PIDTYPE_TGID));
	rcu_read_unlock();
	return alive;
}

/* A plain wait() of its parent's, the caller, does not see it: it is no child of
 * the program's. Only while that parent is there: the next one, who may know of
 * nothing but a plain wait(), gets it with its signal restored.
 */
void mitosis_process_hide(struct pid *pid)
{
	struct task_struct *task;

	rcu_read_lock();
	task = pid_task(pid, PIDTYPE_TGID);
	if (task)
		WRITE_ONCE(task->exit_signal, 0);
	rcu_read_unlock();
}

void mitosis_task_kill_self(void)
{
	send_sig(SIGKILL, current, 1);
}

struct mm_struct *mitosis_task_mm(void)
{
	mmgrab(current->mm);
	return current->mm;
}

void mitosis_mm_release(struct mm_struct *mm)
{
	mmdrop(mm);
}
