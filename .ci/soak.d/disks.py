"""The brokers' disks: small file systems, so that one can be filled without harm to the machine.

Loop-mounted ext4 where root may, as it takes O_DIRECT and is as fast as the disk below; else tmpfs; else plain directories, which are
never filled.
"""

import os
import subprocess

# In memory it is all taken when the disk is filled.
SIZE_MIB = {"loop": 4096, "tmpfs": 2048}
CHUNK = bytes(1 << 20)


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Disks:
    def __init__(self, data_dir, kind):
        """Mounts them at data_dir/broker-1 to broker-3. The namespace that .ci/soak made unmounts them at its end."""
        self.data_dir, self.images, self.why = data_dir, [], ""
        mounts = os.environ.get("SOAK_MOUNTS", "none")
        kinds = {"auto": ["loop", "tmpfs"], "plain": []}.get(kind, [kind])
        for n in (1, 2, 3):
            os.makedirs(self.path(n), exist_ok=True)
        for self.kind in kinds if mounts != "none" else []:
            try:
                for n in (1, 2, 3):
                    self.mount(n)
                return
            except (subprocess.CalledProcessError, OSError) as e:
                self.why = f"{self.kind}: {getattr(e, 'stderr', None) or e}".strip()
                self.end()
        self.kind, self.why = "plain", self.why or "no mounts are allowed here, or --disk plain"

    def path(self, n):
        return f"{self.data_dir}/broker-{n}"

    def mount(self, n):
        if self.kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB[self.kind]}m", "tmpfs", self.path(n))
            return
        image = f"{self.data_dir}/disk-{n}.img"
        with open(image, "wb") as file:
            file.truncate(SIZE_MIB[self.kind] << 20)
        self.images.append(image)
        run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,nodiscard", image)
        device = run("losetup", "--find", "--show", "--direct-io=on", image)
        try:
            run("mount", "-o", "noatime", device, self.path(n))
            os.rmdir(f"{self.path(n)}/lost+found")
        finally:
            # It is detached once it is unmounted, also by the end of the namespace.
            run("losetup", "--detach", device)

    def fill(self, n):
        """Takes what is free. To be called again and again: brokers remove files meanwhile. Returns the bytes taken."""
        taken = 0
        fd = os.open(f"{self.path(n)}/filler", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            while free := self.free(n):
                size = os.fstat(fd).st_size
                try:
                    os.posix_fallocate(fd, size, free)
                except OSError:
                    # Metadata of the file system takes some too: the rest by smaller pieces.
                    taken += os.write(fd, CHUNK[: min(len(CHUNK), free)])
                else:
                    taken += free
        except OSError:
            pass
        finally:
            os.close(fd)
        return taken

    def free(self, n):
        stat = os.statvfs(self.path(n))
        return stat.f_bavail * stat.f_frsize

    def release(self, n):
        os.unlink(f"{self.path(n)}/filler")

    def end(self):
        for n in (1, 2, 3):
            subprocess.run(["umount", "--lazy", self.path(n)], capture_output=True)
        for image in self.images:
            os.unlink(image)
        self.images = []
