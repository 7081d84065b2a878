"""`python -m moh_ebpf`: the same command as `moh-ebpf`."""

from moh_ebpf.cli import main

if __name__ == "__main__":
    main()
