#include_next <linux/bpf.h>
