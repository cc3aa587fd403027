// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * A child's memory: mappings of an image's file, whose pages come when they are
 * touched. A page's number in the file says which of the seed's mappings it began
 * in, and its address there, so that it stays itself however the child moves its
 * mappings, and that the kernel takes no two for one.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "dropped.h"
#include "mitosis.h"
#include "fork.h"

struct mitosis_image_file {
	void *image;
	struct file *file;
	struct mutex lock;	/* guards what follows: one process maps at a time */
	struct task_struct *mapper;
	u32 flags;
	struct mitosis_child *child;
};

/* Bits of a page's number that are its address. */
#define MITOSIS_PAGE_BITS 36
#define MITOSIS_PAGE_MASK ((1ULL << MITOSIS_PAGE_BITS) - 1)

/*
 * Maps what is here around a page that was touched, so that it needs no fault.
 * Only where nobody else can be in this address space: what another thread gives
 * up at this moment must not come back, and nothing here would notice.
 */
static void mitosis_map_around(struct vm_fault *vmf,
			       struct mitosis_image_file *image)
{
	struct vm_area_struct *vma = vmf->vma;
	struct page *pages[MITOSIS_AROUND] = {};
	u64 number = vmf->pgoff & MITOSIS_PAGE_MASK;
	u64 from = number;
	int i;

	if ((vmf->flags & FAULT_FLAG_WRITE) || current->mm != vma->vm_mm ||
	    atomic_read(&vma->vm_mm->mm_users) != 1)
		return;
	mitosis_image_around(image->image, vmf->pgoff >> MITOSIS_PAGE_BITS,
			     number, pages, &from);
	for (i = 0; i < MITOSIS_AROUND; i++) {
		/* Numbers and addresses go up together in a mapping. */
		unsigned long pgoff = vmf->pgoff + (from + i - number);
		unsigned long address = (vmf->address & PAGE_MASK) +
					((from + i - number) << PAGE_SHIFT);

		if (!pages[i])
			continue;
		/* One that is mapped already, or lies beyond the mapping, is refused. */
		if (!mitosis_child_dropped(vma->vm_private_data, pgoff))
			vm_insert_page(vma, address, pages[i]);
		put_page(pages[i]);
	}
}

static vm_fault_t mitosis_vma_fault(struct vm_fault *vmf)
{
	struct mitosis_image_file *image = vmf->vma->vm_file->private_data;
	struct page *page = NULL;
	int ret = mitosis_child_dropped(vmf->vma->vm_private_data, vmf->pgoff);

	if (ret >= 0)
		ret = mitosis_image_fault(image->image,
					  vmf->pgoff >> MITOSIS_PAGE_BITS,
					  vmf->pgoff & MITOSIS_PAGE_MASK, ret, &page);
	if (!ret) {
		mitosis_map_around(vmf, image);
		vmf->page = page;
		return 0;
	}
	return ret == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
}

/*
 * What has a name of its own is dumped with a process, whether it was written or
 * not: the kernel would leave out what the child has not written, as a file's.
 */
static const char *mitosis_vma_name(struct vm_area_struct *vma)
{
	return "[mitosis]";
}

static const struct vm_operations_struct mitosis_vma_operations = {
	.open = mitosis_child_vma_opened,
	.close = mitosis_child_vma_closed,
	.fault = mitosis_vma_fault,
	.name = mitosis_vma_name,
};

/* A file's that cannot be written: dumped where the process asks for such. */
static const struct vm_operations_struct mitosis_vma_file_operations = {
	.open = mitosis_child_vma_opened,
	.close = mitosis_child_vma_closed,
	.fault = mitosis_vma_fault,
};

static int mitosis_image_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct mitosis_image_file *image = file->private_data;
	unsigned long flags = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC;

	/* Only MITOSIS_RESUME maps, and it says what. */
	if (READ_ONCE(image->mapper) != current)
		return -EACCES;
	flags |= image->flags & MITOSIS_VMA_READ ? VM_READ : 0;
	flags |= image->flags & MITOSIS_VMA_WRITE ? VM_WRITE : 0;
	flags |= image->flags & MITOSIS_VMA_EXEC ? VM_EXEC : 0;
	flags |= image->flags & MITOSIS_VMA_GROWSDOWN ? VM_GROWSDOWN : 0;
	flags |= image->flags & MITOSIS_VMA_DONTFORK ? VM_DONTCOPY : 0;
	/* Pages are put into it that no file has. */
	flags |= VM_MIXEDMAP;
	mitosis_vma_flags_replace(vma, VM_READ | VM_WRITE | VM_EXEC, flags);
	vma->vm_ops = (image->flags & MITOSIS_VMA_FILE) && !(flags & VM_WRITE) ?
			      &mitosis_vma_file_operations :
			      &mitosis_vma_operations;
	vma->vm_private_data = image->child;
	mitosis_child_hold(image->child);
	return 0;
}

static long mitosis_image_ioctl(struct file *file, unsigned int command,
				unsigned long argument)
{
	struct mitosis_image_file *image = file->private_data;
	struct mitosis_resume resume;
	long ret;

	if (command != MITOSIS_RESUME)
		return -ENOTTY;
	if (copy_from_user(&resume, (void __user *)argument, sizeof(resume)))
		return -EFAULT;
	if (resume.flags || resume.reserved)
		return -EINVAL;
	ret = mitosis_image_resume(image->image, image, resume.child);
	if (ret > 0)
		mitosis_task_reach_rseq();
	return ret;
}

static int mitosis_image_release(struct inode *inode, struct file *file)
{
	struct mitosis_image_file *image = file->private_data;

	mitosis_image_closed(image->image);
	kfree(image);
	return 0;
}

static const struct file_operations mitosis_image_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = mitosis_image_ioctl,
	.mmap = mitosis_image_mmap,
	.release = mitosis_image_release,
};

/* Returns the caller's new file descriptor; `image` is then the file's. */
int mitosis_image_file_create(void *image)
{
	struct mitosis_image_file *made = kzalloc(sizeof(*made), GFP_KERNEL);
	int fd;

	if (!made)
		return -ENOMEM;
	made->image = image;
	mutex_init(&made->lock);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		goto free;
	made->file = anon_inode_getfile("[mitosis]", &mitosis_image_operations,
					made, O_RDWR);
	if (IS_ERR(made->file)) {
		put_unused_fd(fd);
		fd = PTR_ERR(made->file);
		goto free;
	}
	fd_install(fd, made->file);
	return fd;
free:
	kfree(made);
	return fd;
}

/* Unmaps everything of the caller's but what lies between. */
int mitosis_child_clear(u64 keep_start, u64 keep_end)
{
	int ret = 0;

	if (keep_start)
		ret = vm_munmap(0, keep_start);
	if (!ret && keep_end < TASK_SIZE_MAX)
		ret = vm_munmap(keep_end, TASK_SIZE_MAX - keep_end);
	return ret;
}

u64 mitosis_child_vdso(void)
{
	return (unsigned long)current->mm->context.vdso;
}

int mitosis_child_map(struct mitosis_image_file *image,
		      struct mitosis_child *child, u64 start, u64 len,
		      u32 index, u32 flags)
{
	unsigned long how = MAP_PRIVATE | MAP_FIXED;
	unsigned long prot = PROT_READ;
	u64 page = (u64)index << MITOSIS_PAGE_BITS | start >> PAGE_SHIFT;
	unsigned long ret;

	if (flags & MITOSIS_VMA_WRITE)
		prot |= PROT_WRITE;
	if (flags & MITOSIS_VMA_NORESERVE)
		how |= MAP_NORESERVE;
	mutex_lock(&image->lock);
	image->flags = flags;
	image->child = child;
	WRITE_ONCE(image->mapper, current);
	ret = vm_mmap(image->file, start, len, prot, how,
		      page << PAGE_SHIFT);
	WRITE_ONCE(image->mapper, NULL);
	mutex_unlock(&image->lock);
	return IS_ERR_VALUE(ret) ? (int)ret : 0;
}

struct page *mitosis_page_take(void)
{
	return alloc_page(GFP_HIGHUSER);
}

struct page *mitosis_page_take_zeroed(void)
{
	return alloc_page(GFP_HIGHUSER | __GFP_ZERO);
}

void *mitosis_page_address(struct page *page)
{
	return page_address(page);
}

void mitosis_page_get(struct page *page)
{
	get_page(page);
}

void mitosis_page_put(struct page *page)
{
	put_page(page);
}

int mitosis_copy_to_user(u64 to, const void *from, size_t len)
{
	return copy_to_user(u64_to_user_ptr(to), from, len) ? -EFAULT : 0;
}
