"""Machines to break: hosts 10.77.0.1 .. 10.77.0.N on one Linux, for tests that need root.

All live in one *lab*: a process in mount, pid, network and ipc namespaces of its own, with its own
/tmp, /run and /dev/shm. Each host in it has, again, its own network (a bridge connects them), pids,
/tmp (so its own Ray), /dev/shm, home and SSH server. What is run in the lab can neither see nor
touch the processes, Ray, ports or network of the machine. The lab ends with one kill: the kernel
takes everything in its pid namespace, its mounts and its network with it, also when the test dies.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parent.parent
READY_S = 20.0  # longest the lab may take to come up
OUTPUT_MAX = 20_000  # characters of a failed command that are shown

# Runs as process 1 of the lab. $1: folder, $2: number of hosts, $3...: folders that must stay
# visible although they may lie under /tmp.
LAB = r"""
set -eu
D=$1 N=$2; shift 2
mkdir -p "$D/machine-tmp"
mount --bind /tmp "$D/machine-tmp"
fresh_tmp() {
  mount -t tmpfs -o mode=1777 tmpfs /tmp
  for keep in "$@"; do case $keep in /tmp/*)
    mkdir -p "$keep"; mount --bind "$D/machine-tmp/${keep#/tmp/}" "$keep";; esac; done
}
fresh_tmp "$@"
mount -t tmpfs tmpfs /run
mount -t tmpfs -o size=2g tmpfs /dev/shm
mkdir -p /run/sshd /run/netns
ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.254/24 dev br0
ip link set br0 up
cat > "$D/sshd_config" <<END
Port 22
HostKey $D/hostkey
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
AuthorizedKeysFile $D/key.pub
MaxStartups 100
END
for i in $(seq 1 "$N"); do
  H=$D/h$i
  mkdir -p "$H"
  echo "export PATH=$RAYWATCH_LAB_PATH RAY_USAGE_STATS_ENABLED=0" > "$H/.bashrc"
  cp "$H/.bashrc" "$H/.bash_profile"
  sed "s#^root:[^:]*:0:0:[^:]*:[^:]*:#root:x:0:0:root:$H:#" /etc/passwd > "$D/passwd$i"
  ip netns add h$i
  ip link add v$i type veth peer name eth0 netns h$i
  ip link set v$i master br0 up
  ip netns exec h$i ip addr add 10.77.0.$i/24 dev eth0
  ip netns exec h$i ip link set eth0 up
  ip netns exec h$i ip link set lo up
  ip netns exec h$i ip route add default via 10.77.0.254
  export D H i
  export -f fresh_tmp
  ip netns exec h$i unshare --pid --fork --kill-child=SIGKILL --mount --uts --ipc --mount-proc \
    bash -c 'hostname h$i; mount --bind "$D/passwd$i" /etc/passwd; fresh_tmp "$@"
      mount -t tmpfs -o size=4g tmpfs /dev/shm; cd "$H"; export HOME=$H
      exec /usr/sbin/sshd -D -f "$D/sshd_config" -E "$H/sshd.log"' host "$@" < /dev/null &
done
for i in $(seq 1 "$N"); do
  until timeout 1 bash -c "exec 3<>/dev/tcp/10.77.0.$i/22" 2> /dev/null; do sleep 0.1; done
done
touch "$D/ready"
sleep infinity &
wait  # and reap
"""


class Lab:
    """N hosts in namespaces of their own, as a context manager.

    `home` is the operator's home folder in the lab, `key` the SSH key to every host.
    """

    def __init__(self, hosts: int) -> None:
        assert os.geteuid() == 0, "namespaces need root"
        assert 0 <= hosts <= 200, hosts  # 0: a lab to run something alone in
        self.folder = Path(tempfile.mkdtemp(prefix="rw-lab-", dir="/var/tmp"))
        self.hosts = hosts
        self.key = self.folder / "key"
        self.home = self.folder / "operator"
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, host: int) -> str:
        """Of host 1..N."""
        assert 1 <= host <= self.hosts, host
        return f"10.77.0.{host}"

    def __enter__(self) -> "Lab":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        (self.home / ".ssh").mkdir(parents=True)
        for name in ("key", "hostkey"):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(make, check=True, timeout=20)
        keep = [str(REPOSITORY), sys.prefix, sys.base_prefix]
        log = (self.folder / "lab.log").open("w")
        self._process = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"),
                *("--net", "--ipc", "--mount", "bash", "-c", LAB, "lab"),
                *(str(self.folder), str(self.hosts), *keep),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self._environment({}),
            start_new_session=True,
        )
        log.close()
        began = time.monotonic()
        while not (self.folder / "ready").exists():
            said = (self.folder / "lab.log").read_text()
            assert self._process.poll() is None, f"the lab ended: {said}"
            assert time.monotonic() - began < READY_S, f"the lab is not ready: {said}"
            time.sleep(0.05)

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        return {
            "PATH": path,
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "RAYWATCH_LAB_PATH": path,
            "RAY_USAGE_STATS_ENABLED": "0",
            **extra,
        }

    def _inside(self) -> int:
        """Process 1 of the lab, as the machine numbers it."""
        assert self._process is not None, "not started"
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_s: float,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in the lab as the operator; whatever it leaves is killed on time-out."""
        enter = ["nsenter", f"--target={self._inside()}", "--mount", "--pid", "--net", "--ipc"]
        bounded = ["timeout", "--kill-after=2", f"{timeout_s:.0f}", *command]
        done = subprocess.run(
            [*enter, f"--wd={self.home}", *bounded],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s + 10,
            check=False,
            env=self._environment(env or {}),
        )
        if check and done.returncode != 0:
            text = done.stdout[-OUTPUT_MAX:]
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{text}")
        return done

    def on(
        self, host: int, command: str, *, timeout_s: float, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run a shell command on a host, through SSH and a login shell."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        flags = [part for option in options for part in ("-o", option)]
        login = f"bash --login -c {_quoted(command)}"
        ssh = ["ssh", "-i", str(self.key), "-o", "ConnectTimeout=5", *flags]
        return self.run(
            [*ssh, f"root@{self.address(host)}", login], timeout_s=timeout_s, check=check
        )

    def cut(self, host: int, *, whole: bool = False) -> None:
        """Pull the network cable of a host, or plug it in again (`whole`)."""
        state = "up" if whole else "down"
        self.run(["ip", "link", "set", f"v{host}", state], timeout_s=10)

    def close(self) -> None:
        """End the lab and everything in it; idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)  # --kill-child takes process 1, that takes the rest
            process.wait(timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"
