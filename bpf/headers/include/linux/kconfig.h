/* BCC includes this first, as kbuild does. Its helpers.h asks for these two. */
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_64BIT 1
