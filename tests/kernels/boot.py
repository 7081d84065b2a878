"""Running a command under another kernel: QEMU in software emulation, this machine's own files."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.kernels.debian import Kernel
from tests.support.debian import output
from tests.support.matrix import Process

INIT = Path(__file__).with_name("init")
BUSYBOX = Path("/bin/busybox")

# Longer than all tests of a kernel take; then something hangs.
PATIENCE_SECONDS = 7200.0

# What the initramfs needs to get at the root file system.
ROOT_MODULES = ["virtio_pci", "virtio_mmio", "9pnet_virtio", "9p", "overlay"]
# "mitigations" and the rest save time; nothing here is about them.
COMMAND_LINE = (
    "console=ttyS0 panic=-1 quiet mitigations=off nokaslr no_timer_check nowatchdog audit=0 "
    "random.trust_cpu=on cryptomgr.notests"
)


class Boot:
    """`lines` boots and yields what the command says; then `status` is its exit status, or None if
    it never ended. It finds `directory` as /run/results, where alone what it writes stays.
    """

    def __init__(self, kernel: Kernel, directory: Path) -> None:
        self.kernel, self.directory = kernel, directory

    def lines(self, command: list[str], environment: dict[str, str]) -> Iterator[str]:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self._write_command(command, environment)
        initramfs = self._write_initramfs()
        self._qemu = Process(self._machine(initramfs), PATIENCE_SECONDS)
        yield from self._qemu.lines()

    @property
    def timed_out(self) -> bool:
        return self._qemu.timed_out

    @property
    def status(self) -> int | None:
        try:
            return int((self.directory / "status").read_text())
        except (OSError, ValueError):
            return None

    def _write_command(self, command: list[str], environment: dict[str, str]) -> None:
        exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
        lines = [f"cd {shlex.quote(str(Path.cwd()))}", *exports, shlex.join(command)]
        (self.directory / "command").write_text("\n".join(lines) + "\n")

    def _write_initramfs(self) -> Path:
        """Static busybox, our init, and the modules in the order in which they are inserted."""
        tree = self.kernel.directory / "initramfs"
        shutil.rmtree(tree, ignore_errors=True)
        for each in ("bin", "modules", "proc", "dev", "host", "layer", "tmp", "root"):
            (tree / each).mkdir(parents=True)
        shutil.copy(BUSYBOX, tree / "bin/busybox")
        shutil.copy(INIT, tree / "init")
        for number, module in enumerate(self._modules()):
            target = tree / "modules" / f"{number:02}-{module.name.removesuffix('.xz')}"
            if module.suffix == ".xz":
                with target.open("wb") as unpacked:
                    subprocess.run(["xz", "-dc", str(module)], stdout=unpacked, check=True)
            else:
                shutil.copy(module, target)
        names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
        archive = subprocess.run(
            ["cpio", "--create", "--format=newc", "--quiet"],
            cwd=tree,
            input=names.encode(),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        initramfs = self.kernel.directory / "initramfs.cpio"
        initramfs.write_bytes(archive)
        return initramfs

    def _modules(self) -> list[Path]:
        """Those of ROOT_MODULES and what they depend on, each once; what is built in is none."""
        layer = str((self.kernel.layer / "usr").resolve())
        modprobe = ["modprobe", "-S", self.kernel.release, "-d", layer, "--show-depends"]
        found: dict[Path, None] = {}
        for name in ROOT_MODULES:
            for line in output(*modprobe, name).splitlines():
                if line.startswith("insmod "):
                    found[Path(line.split()[1])] = None
        return list(found)

    def _machine(self, initramfs: Path) -> list[str]:
        """One CPU: emulating two in threads, now and then a boot panics."""
        machine = (
            "-M q35 -accel tcg -cpu qemu64 -smp 1 -m 2048 -nodefaults -no-user-config "
            "-nographic -no-reboot -serial stdio"
        )
        shares = [
            share("host", Path("/"), ",readonly=on"),
            share("layer", self.kernel.layer, ",readonly=on"),
            share("results", self.directory),
        ]
        return [
            "qemu-system-x86_64",
            *machine.split(),
            *(argument for each in shares for argument in each),
            *["-kernel", str(self.kernel.image), "-initrd", str(initramfs)],
            *["-append", COMMAND_LINE],
        ]


def share(tag: str, directory: Path, more: str = "") -> list[str]:
    path = str(directory.resolve()).replace(",", ",,")
    return [
        "-virtfs",
        f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap{more}",
    ]
