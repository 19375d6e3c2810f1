"""Images and containers of buildah, without a daemon and apart from those of the machine.

Isolation "chroot" needs neither a container runtime nor control groups: containers share the network and the processes of
this machine, and their user, environment and mounts are those that the image and the command line say."""

import json
import os
import pathlib
import shlex
import subprocess


# buildah gives containers the machine's /dev, read-only, and lays its /dev/null over files of /proc that they are not to see,
# where it is not read-only: root in a container can change the mode of the machine's. So it is not the machine's, but that
# of a namespace which ends with the command.
NAMESPACE = ["unshare", "--mount", "--propagation", "private", "--"]
OWN_DEVICES = """\
mount -t tmpfs -o mode=755 devices /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/zero c 1 5
mknod -m 666 /dev/full c 1 7
mknod -m 666 /dev/random c 1 8
mknod -m 666 /dev/urandom c 1 9
mknod -m 666 /dev/tty c 5 0
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mkdir /dev/pts /dev/shm
mount -t tmpfs -o mode=1777 shm /dev/shm
"""


def device_modes():
    """Those of the machine that containers see, too."""
    return {path: path.stat().st_mode for path in map(pathlib.Path, ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"))}


class ImageStore:
    """Everything in `folder`. One user at a time."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "storage.conf"
        settings.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{self.folder / "images"}"\nrunroot = "{self.folder / "run"}"\n')
        self.containers = []
        self.variables = {"CONTAINERS_STORAGE_CONF": str(settings), "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}

    def run(self, *arguments, timeout=600, check=True):
        """The completed process of `buildah ARGUMENT...`."""
        line = [*NAMESPACE, "sh", "-c", f'set -e\n{OWN_DEVICES}exec buildah "$@"', "sh", *map(str, arguments)]
        done = subprocess.run(line, env={**os.environ, **self.variables}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, f"buildah {shlex.join(map(str, arguments))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done

    def has(self, image):
        return self.run("inspect", "--type", "image", image, check=False).returncode == 0

    def config(self, image):
        """What the image says of how it is run: Labels, Env, User, Entrypoint, Cmd, ..."""
        return json.loads(self.run("inspect", "--type", "image", image).stdout)["OCIv1"]["config"]

    def build(self, context, image, *options, timeout=7200):
        self.run("bud", "--isolation", "chroot", "--pull-never", "--tag", image, *options, context, timeout=timeout)

    def container(self, image):
        """A new container, not running, and the folder that is its root."""
        name = self.run("from", "--pull-never", image).stdout.split()[-1]
        self.containers.append(name)
        return name, self.root(name)

    def root(self, container):
        return pathlib.Path(self.run("mount", container).stdout.strip())

    def commit(self, container, image):
        self.run("commit", container, image)
        self.remove(container)

    def remove(self, container):
        self.run("rm", container)
        self.containers.remove(container)

    def remove_containers(self):
        for container in list(self.containers):
            self.remove(container)

    def script(self, path, container, command, *options):
        """Writes a program that runs `command` in the container, with what the program is called with behind it. The
        container's root is read-only, which buildah itself does not offer; what is mounted must have its place there. In
        /run, which is empty, buildah writes a file of its own."""
        root = shlex.quote(str(self.root(container)))
        line = shlex.join(["buildah", "run", "--isolation", "chroot", *map(str, options), container, "--", *command])
        path.write_text("#!/bin/sh\nset -e\n" +
                        f'[ "$IN_NAMESPACE" ] || IN_NAMESPACE=1 exec {shlex.join(NAMESPACE)} "$0" "$@"\n{OWN_DEVICES}' +
                        f"mount --bind {root} {root}\nmount -t tmpfs -o mode=755 run {root}/run\nmount -o remount,bind,ro {root}\n" +
                        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.variables.items()) +
                        f'exec {line} "$@"\n')
        path.chmod(0o755)
        return path
