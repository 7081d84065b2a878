/* The kernel's short names for the UAPI types, as BCC's helpers.h expects them. */
#ifndef MOH_LINUX_TYPES_H
#define MOH_LINUX_TYPES_H

#include <asm/types.h>
#include <linux/posix_types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;

typedef __u16 __le16;
typedef __u16 __be16;
typedef __u32 __le32;
typedef __u32 __be32;
typedef __u64 __le64;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef unsigned int __poll_t;

typedef _Bool bool;
typedef __kernel_size_t size_t;
typedef unsigned long uintptr_t;

#define __bitwise
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define __aligned_be64 __be64 __attribute__((aligned(8)))
#define __aligned_le64 __le64 __attribute__((aligned(8)))

#define true 1
#define false 0
#define NULL ((void *)0)

#ifndef offsetof
#define offsetof(type, member) __builtin_offsetof(type, member)
#endif

#endif
