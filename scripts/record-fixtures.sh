#!/bin/sh
# Records migration streams of stock QEMU builds, as they come out of
# `migrate exec:cat>FILE`, with no code of this repository in between.
#
#   record-fixtures.sh [--qemu-dir DIR] [--out DIR] [--set NAME] [--only STORY]
#                      [RELEASE...]
#   record-fixtures.sh --vfio DIR [--migwire PATH] [--out DIR] [--only STORY]
#                      cuts captures of VFIO migrations, which take hardware or a
#                      good imitation of it, down to what is about devices
#   record-fixtures.sh --check [--set NAME] [--out DIR]     compares size and SHA-256 of the
#                      streams with recorded.json beside them; needs no QEMU
#
#   --set fixtures   (default) the small streams that tests read:
#                    DIR/qemu-RELEASE/STORY.bin, --out default fixtures/streams;
#                    rewrites the table in DIR/../README.md where there is one
#   --set multifd    migrations over a socket with multifd, a directory each and in
#                    it a file a connection: DIR/qemu-RELEASE/STORY/connNN.src-to-dst.bin,
#                    --out default fixtures/multifd
#   --set streams    larger, more realistic ones, for work on the bench and not
#                    for the repository: DIR/RELEASE-STORY.bin; --out is needed
#
# DIR of --qemu-dir is what fetch-qemu.sh filled (default $MIGWIRE_QEMU_DIR,
# else target/qemu). A stream that a build cannot make is reported; whatever
# file had its name stays. Exit codes: 0 all recorded or known not to exist in
# that release, 1 a recording failed, 2 usage, 3 a build or a tool is missing.
set -eu
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
export HERE
command -v python3 >/dev/null 2>&1 || {
    echo "record-fixtures: needs python3" >&2
    exit 3
}
program=$(cat <<'PYTHON'
import argparse, hashlib, json, os, re, shlex, shutil, signal, socket
import subprocess, sys, tempfile, threading, time

REPO = os.path.dirname(os.environ["HERE"])
RELEASES = ["5.2", "7.2", "10.0", "11.1"]
# The longest wait for one answer of QEMU, and for one whole migration.
ANSWER, MIGRATION = 20, 120


class Failed(Exception):
    """The build did not do what was asked; the text says what."""


class Vm:
    """One QEMU with a QMP connection. Every wait has an end, and the process
    group is killed whatever happens."""

    def __init__(self, launcher, args, folder):
        self.folder, self.log, self.events = folder, [], []
        path = os.path.join(folder, "qmp")
        self.stderr = open(os.path.join(folder, "stderr"), "w+")
        self.process = subprocess.Popen(
            [launcher, *args, "-qmp", f"unix:{path},server=on,wait=off"],
            stdin=subprocess.DEVNULL, stdout=self.stderr, stderr=self.stderr,
            start_new_session=True, cwd=folder)
        try:
            self.socket = self._connect(path)
            self.buffer = b""
            self._message(time.monotonic() + ANSWER)
            self.command("qmp_capabilities")
            self.log.clear()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _connect(self, path):
        end = time.monotonic() + ANSWER
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Failed(f"does not start: {self.said()}")
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
                return connection
            except OSError:
                connection.close()
                time.sleep(0.02)
        raise Failed("no QMP socket")

    def _message(self, end):
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise Failed("no answer on QMP in time")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except socket.timeout:
                raise Failed("no answer on QMP in time") from None
            except OSError as error:
                raise Failed(f"QMP: {error}; {self.said()}") from None
            if not data:
                raise Failed(f"QEMU went away: {self.said()}")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def command(self, name, quiet=False, /, **arguments):
        request = {"execute": name}
        if arguments:
            request["arguments"] = arguments
        if not quiet:
            self.log.append(request)
        try:
            self.socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise Failed(f"QMP: {error}; {self.said()}") from None
        end = time.monotonic() + ANSWER
        while True:
            answer = self._message(end)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failed(f"{name}: {answer['error']['desc']}")
            self.events.append(answer)

    def hmp(self, line, quiet=False):
        return self.command("human-monitor-command", quiet, **{"command-line": line})

    def said(self):
        self.stderr.flush()
        with open(self.stderr.name) as text:
            return text.read().strip()[-400:]

    def capabilities(self, *names):
        if names:
            self.command("migrate-set-capabilities", capabilities=[
                {"capability": name, "state": True} for name in names])

    def parameters(self, **values):
        if values:
            self.command("migrate-set-parameters", **{
                name.replace("_", "-"): value for name, value in values.items()})

    def passes(self):
        """Passes of memory that the dirtying guest has done; 0 before it runs."""
        text = self.hmp("xp /4wx 0x7000", True)
        words = re.findall(r"0x([0-9a-f]{8})\b", text)
        return int(words[0], 16) if words[3:] and words[3] == "5747494d" else 0

    def wait_passes(self, number):
        end = time.monotonic() + 60
        while self.passes() < number:
            if time.monotonic() > end:
                raise Failed(f"the guest does not run: {self.said()}")
            time.sleep(0.05)

    def migrate(self, path, uri=None, iterations=0, after=None):
        """Migrates to a file; with `iterations`, refuses to converge before
        that many passes over the dirty pages, then applies `after`."""
        self.command("migrate", uri=uri or f"exec:cat>{path}")
        end = time.monotonic() + MIGRATION
        throttled = 0
        while True:
            state = self.command("query-migrate", True)
            status = state.get("status")
            throttled = max(throttled, state.get("cpu-throttle-percentage", 0))
            if status == "completed":
                state["cpu-throttle-percentage"] = throttled
                return state
            if status in ("failed", "cancelled"):
                raise Failed(f"migration {status}: {state.get('error-desc', self.said())}")
            if time.monotonic() > end:
                raise Failed(f"migration does not end: {status} {state.get('ram')}")
            if after and state.get("ram", {}).get("dirty-sync-count", 0) > iterations:
                self.parameters(**after)
                after = None
            time.sleep(0.02)

    def close(self):
        if self.process.poll() is None:
            try:
                self.command("quit", True)
                self.process.wait(5)
            except (Failed, AttributeError, subprocess.TimeoutExpired):
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.stderr.close()


COMMON = ["-accel", "tcg", "-nodefaults", "-display", "none"]
NONE = ["-machine", "none", "-m", "16"]
# The clock of the guest starts at a fixed date, so that a recording says
# nothing about the day that it was made.
CLOCK = ["-rtc", "base=2020-01-01T00:00:00,clock=vm"]


def disk(folder):
    """The dirtying boot sector, padded: firmware refuses smaller disks."""
    path = os.path.join(folder, "guest.img")
    shutil.copyfile(os.path.join(REPO, "interop/guest/dirty.bin"), path)
    os.truncate(path, 1 << 20)
    return ["-drive", "file=guest.img,format=raw,if=ide,snapshot=on"]


class Story:
    """A way to make one stream. `make(vm, path)` runs the QMP commands."""

    def __init__(self, name, args, capabilities=(), releases=RELEASES, prepare=None,
                 passes=0, parameters=None, iterations=0, after=None, make=None,
                 proof=None, keep=None, suffix=".bin"):
        self.name, self.args, self.capabilities = name, args, capabilities
        self.releases, self.prepare, self.passes = releases, prepare, passes
        self.parameters, self.iterations = parameters or {}, iterations
        self.after, self.make, self.proof = after, make, proof
        self.keep, self.suffix = keep, suffix

    def record(self, launcher, target):
        if os.path.isdir(target):
            shutil.rmtree(target)
        with tempfile.TemporaryDirectory(prefix="migwire-") as folder:
            args = COMMON + self.args
            if self.prepare:
                args += self.prepare(folder, launcher)
            path = os.path.join(folder, "stream")
            with Vm(launcher, args, folder) as vm:
                vm.capabilities(*self.capabilities)
                vm.parameters(**self.parameters)
                if self.passes:
                    vm.wait_passes(self.passes)
                if self.make:
                    path = self.make(vm, path) or path
                else:
                    state = vm.migrate(path, None, self.iterations, self.after)
                    # A stream named after a feature has to show it.
                    if self.proof and not self.proof(state):
                        raise Failed(f"the stream has no {self.name}: {state}")
                log = vm.log
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.move(path, target)
            if os.path.isdir(target):
                os.chmod(target, 0o755)
            else:
                os.chmod(target, 0o644)
            if self.keep:
                # cp keeps the holes of a sparse file.
                subprocess.run(["cp", "--sparse=always", os.path.join(folder, self.keep),
                                f"{target}.{self.keep}"], check=True, timeout=60)
            return args, [
                json.loads(json.dumps(entry).replace(folder + "/stream", "FILE")
                           .replace(folder, "DIR")) for entry in log]


def boot(folder, _launcher):
    return disk(folder)


def devices(folder, _launcher):
    """The dirtying guest among the devices that most machines have."""
    with open(os.path.join(folder, "data.img"), "wb") as image:
        image.truncate(4 << 20)
    return disk(folder) + [
        "-chardev", "null,id=serial0", "-serial", "chardev:serial0", "-vga", "std",
        "-drive", "file=data.img,format=raw,if=none,id=data0,snapshot=on",
        "-device", "virtio-blk-pci,drive=data0",
        "-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"]


def qcow2_boot(folder, launcher):
    """The same guest on a disk that can hold snapshots."""
    disk(folder)
    subprocess.run(
        [os.path.join(os.path.dirname(launcher), "qemu-img"), "convert", "-f", "raw",
         "-O", "qcow2", "guest.img", "guest.qcow2"],
        cwd=folder, check=True, timeout=ANSWER, stdin=subprocess.DEVNULL)
    return ["-drive", "file=guest.qcow2,format=qcow2,if=ide"]


def savevm(vm, _path):
    said = vm.hmp("savevm first").strip()
    if said:
        raise Failed(f"savevm: {said}")
    return os.path.join(vm.folder, "guest.qcow2")


def to_file(vm, path):
    vm.migrate(path, f"file:{path}")


def with_bitmap(vm, path):
    vm.command("block-dirty-bitmap-add", node="disk0", name="changed")
    vm.migrate(path)


class Listener:
    """Takes everything that a source sends, a file a connection in order of
    accept, and never answers."""

    def __init__(self, path, folder):
        os.mkdir(folder)
        self.folder, self.threads, self.failure = folder, [], None
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(path)
        self.socket.listen(300)
        self.socket.settimeout(MIGRATION)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            name = f"conn{len(self.threads):02}.src-to-dst.bin"
            thread = threading.Thread(target=self._read, args=(connection, name), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _read(self, connection, name):
        try:
            connection.settimeout(MIGRATION)
            with open(os.path.join(self.folder, name), "wb") as file:
                while data := connection.recv(1 << 16):
                    file.write(data)
        except OSError as error:
            self.failure = f"{name}: {error}"

    def finish(self):
        for thread in self.threads:
            thread.join(ANSWER)
            if thread.is_alive():
                raise Failed("a connection is not closed")
        self.socket.close()
        if self.failure:
            raise Failed(self.failure)


def over_channels(vm, path):
    listener = Listener(os.path.join(vm.folder, "socket"), path)
    vm.migrate(path, f"unix:{vm.folder}/socket")
    listener.finish()
    return path


def patterned(folder, _launcher):
    """RAM of 4 MiB, all zero but for 4 pages; tests make the same pages. Those with an
    even number have a few words over and over, the others bytes that look random."""
    with open(os.path.join(folder, "ram.img"), "wb") as image:
        image.truncate(4 << 20)
        for number in (5, 260, 514, 769):
            image.seek(4096 * number)
            image.write(page(number))
    return []


def many(folder, launcher):
    """The same, and 200 more pages that compress well, for more than one packet."""
    patterned(folder, launcher)
    with open(os.path.join(folder, "ram.img"), "r+b") as image:
        for number in range(300, 700, 2):
            image.seek(4096 * number)
            image.write(page(number))
    return []


def tiny_bios(folder, _launcher):
    """Firmware that is none: two pages of 16 have something. The CPU never runs."""
    with open(os.path.join(folder, "bios.bin"), "wb") as image:
        image.truncate(64 << 10)
        for number in (4, 14):
            image.seek(4096 * number)
            image.write(page(number))
    with open(os.path.join(folder, "ram.img"), "wb") as image:
        image.truncate(1 << 20)
        for number in (6, 33, 130):
            image.seek(4096 * number)
            image.write(page(number))
    return []


def page(number):
    if number % 2 == 0:
        return b"page%4d" % number * 512
    state, words = number * 0x9e3779b97f4a7c15 & (1 << 64) - 1, []
    for _ in range(512):
        state ^= state << 13 & (1 << 64) - 1
        state ^= state >> 7
        state ^= state << 17 & (1 << 64) - 1
        words.append(state.to_bytes(8, "little"))
    return b"".join(words)


def has_xbzrle(state):
    return state.get("xbzrle-cache", {}).get("pages", 0) > 0


def has_compressed(state):
    return state.get("compression", {}).get("pages", 0) > 0


def has_throttled(state):
    return state["cpu-throttle-percentage"] > 0


# So slow, and so impatient, that a dirtying guest takes several iterations;
# then let it converge.
SLOW = {"max_bandwidth": 8 << 20, "downtime_limit": 1}
CONVERGE = {"max_bandwidth": 1 << 30, "downtime_limit": 5000}

FIXTURES = [
    Story("none-16m", NONE),
    Story("none-validate-uuid",
          NONE + ["-uuid", "6d696777-6972-4500-8000-000000000001"],
          capabilities=["validate-uuid"]),
    Story("none-x-ignore-shared",
          ["-object", "memory-backend-file,id=shared0,mem-path=shared.img,size=16M,share=on",
           "-machine", "none,memory-backend=shared0"],
          capabilities=["x-ignore-shared"]),
    Story("none-dirty-bitmaps",
          NONE + ["-blockdev", "null-co,node-name=disk0,size=1048576,read-zeroes=on"],
          capabilities=["dirty-bitmaps"], make=with_bitmap,
          # QEMU sends empty sections as fast as it may until it has measured
          # its bandwidth, so it may not be fast.
          parameters={"max_bandwidth": 256 << 10}),
    Story("pc-small", ["-M", "pc-i440fx-5.2", "-m", "1M", "-S"] + CLOCK),
    # The last machine types without configuration section and section footers,
    # and without these and the description.
    Story("pc-2.3", ["-M", "pc-i440fx-2.3", "-m", "1M", "-S"] + CLOCK,
          releases=["5.2", "7.2"]),
    Story("pc-2.2", ["-M", "pc-i440fx-2.2", "-m", "1M", "-S"] + CLOCK,
          releases=["5.2", "7.2"]),
    # The smaller of the two builds of SeaBIOS keeps this near 1 MB, and without
    # `vapic` QEMU puts no option ROM of its own (GPL) into the guest's memory.
    Story("pc-xbzrle",
          ["-M", "pc-i440fx-5.2", "-m", "1M", "-bios", "bios.bin",
           "-global", "apic-common.vapic=off"] + CLOCK,
          capabilities=["xbzrle"], releases=["7.2", "11.1"], prepare=boot, passes=1,
          parameters={"max_bandwidth": 1 << 20, "downtime_limit": 1}, iterations=1,
          after=CONVERGE, proof=has_xbzrle),
]

PATTERNED = ["-object", "memory-backend-file,id=ram0,mem-path=ram.img,size=4M",
             "-machine", "none,memory-backend=ram0"]


def multifd(name, parameters=None, releases=RELEASES, args=(), machine=PATTERNED,
            prepare=patterned):
    """A migration over a main channel and two others."""
    return Story(name, machine + list(args), capabilities=["multifd"], releases=releases,
                 prepare=prepare, make=over_channels, suffix="",
                 # Slow enough for more than one PART, so that there is more than one packet.
                 parameters={"multifd_channels": 2, "max_bandwidth": 160 << 10} | (parameters or {}))


MULTIFD = [
    multifd("none"),
    # Several blocks, so that there are packets with different names on a channel.
    multifd("isapc", releases=["5.2", "7.2"], prepare=tiny_bios, machine=[
        "-object", "memory-backend-file,id=ram0,mem-path=ram.img,size=1M",
        "-M", "isapc,memory-backend=ram0", "-m", "1M", "-S", "-bios", "bios.bin"] + CLOCK),
    multifd("zlib", {"multifd_compression": "zlib"}, prepare=many),
    # Debian's 5.2 was built without it.
    multifd("zstd", {"multifd_compression": "zstd"}, releases=["7.2", "10.0", "11.1"]),
    # What machine types up to 8.0 and 8.2 turn on.
    multifd("per-section", releases=["11.1"], args=[
        "-global", "migration.multifd-flush-after-each-section=on",
        "-global", "migration.zero-page-detection=legacy"]),
    multifd("three-channels", {"multifd_channels": 3}, releases=["11.1"],
            args=["-uuid", "6d696777-6972-4500-8000-000000000001"]),
]

STREAMS = [
    Story(machine, ["-M", machine, "-m", "64"] + CLOCK, prepare=devices, passes=2,
          parameters=SLOW, iterations=4, after=CONVERGE)
    for machine in ("pc", "q35", "pc-i440fx-5.2", "pc-q35-5.2")
] + [
    Story("pc-xbzrle", ["-M", "pc", "-m", "64"] + CLOCK, prepare=devices, passes=2,
          capabilities=["xbzrle"], parameters=SLOW, iterations=4, after=CONVERGE,
          proof=has_xbzrle),
    Story("pc-auto-converge", ["-M", "pc", "-m", "64"] + CLOCK, prepare=devices, passes=2,
          capabilities=["auto-converge"], iterations=6, after=CONVERGE,
          parameters=SLOW | {"throttle_trigger_threshold": 10, "cpu_throttle_initial": 30},
          proof=has_throttled),
    Story("pc-compress", ["-M", "pc", "-m", "64"] + CLOCK, prepare=devices, passes=2,
          capabilities=["compress"], releases=["5.2", "7.2"], parameters=SLOW,
          iterations=4, after=CONVERGE, proof=has_compressed),
    Story("pc-block", ["-M", "pc", "-m", "64"] + CLOCK, prepare=devices, passes=2,
          capabilities=["block"], releases=["5.2", "7.2"]),
    Story("pc-background-snapshot", ["-M", "pc", "-m", "64"] + CLOCK, prepare=devices,
          passes=2, capabilities=["background-snapshot"], releases=["7.2", "10.0", "11.1"],
          parameters={"max_bandwidth": 8 << 20}),
    Story("pc-x-ignore-shared",
          ["-object", "memory-backend-file,id=shared0,mem-path=shared.img,size=64M,share=on",
           "-M", "pc,memory-backend=shared0", "-m", "64"] + CLOCK,
          prepare=devices, passes=2, capabilities=["x-ignore-shared"], keep="shared.img"),
    Story("pc-mapped-ram", ["-M", "pc", "-m", "64"] + CLOCK, prepare=devices, passes=2,
          capabilities=["mapped-ram"], releases=["10.0", "11.1"], make=to_file),
    Story("pc-mapped-ram-multifd", ["-M", "pc", "-m", "64"] + CLOCK, prepare=devices,
          passes=2, capabilities=["mapped-ram", "multifd"], releases=["10.0", "11.1"],
          make=to_file),
    Story("none-mapped-ram", NONE, capabilities=["mapped-ram"],
          releases=["10.0", "11.1"], make=to_file),
    # The same as the fixture, with thousands of empty sections.
    Story("none-dirty-bitmaps-unlimited",
          NONE + ["-blockdev", "null-co,node-name=disk0,size=1048576,read-zeroes=on"],
          capabilities=["dirty-bitmaps"], make=with_bitmap),
    Story("savevm", ["-M", "pc", "-m", "64"] + CLOCK, prepare=qcow2_boot, passes=2,
          make=savevm, suffix=".qcow2"),
    Story("q35-savevm", ["-M", "q35", "-m", "64"] + CLOCK, prepare=qcow2_boot, passes=2,
          make=savevm, suffix=".qcow2"),
    Story("none-savevm", NONE, make=savevm, suffix=".qcow2",
          prepare=lambda folder, launcher: [
              word.replace("if=ide", "if=none") for word in qcow2_boot(folder, launcher)]),
]


def main():
    options = argparse.ArgumentParser(prog="record-fixtures.sh")
    options.add_argument("--qemu-dir", default=os.environ.get(
        "MIGWIRE_QEMU_DIR", os.path.join(REPO, "target/qemu")))
    options.add_argument("--out")
    options.add_argument("--set", choices=["fixtures", "multifd", "streams"], default="fixtures")
    options.add_argument("--only", action="append")
    options.add_argument("--check", action="store_true")
    options.add_argument("--vfio")
    options.add_argument("--migwire", default=os.path.join(REPO, "target/release/migwire"))
    options.add_argument("release", nargs="*", metavar="RELEASE")
    given = options.parse_args()
    for release in given.release:
        if release not in RELEASES:
            options.error(f"unknown release {release}; there are: {' '.join(RELEASES)}")
    fixtures = given.set != "streams"
    place = {"fixtures": "fixtures/streams", "multifd": "fixtures/multifd"}.get(given.set)
    out = given.out or (os.path.join(REPO, place) if place else None)
    if out is None:
        options.error("--set streams needs --out")
    if given.check:
        return check(out)
    if given.vfio:
        return cut_vfio(given, given.out or os.path.join(REPO, "fixtures/multifd/vfio"))
    stories = [story for story in {"fixtures": FIXTURES, "multifd": MULTIFD, "streams": STREAMS}[given.set]
               if not given.only or story.name in given.only]
    if not stories:
        options.error(f"no such story: {given.only}")

    exit_code = 0
    for release in given.release or RELEASES:
        launcher = os.path.join(os.path.abspath(given.qemu_dir), release, "qemu-system-x86_64")
        if not os.access(launcher, os.X_OK):
            print(f"record-fixtures: no build {launcher} (scripts/fetch-qemu.sh)", file=sys.stderr)
            exit_code = 3
            continue
        version = subprocess.run([launcher, "--version"], capture_output=True, text=True,
                                 timeout=60, check=True).stdout.splitlines()[0]
        for story in stories:
            name = (f"qemu-{release}/{story.name}" if fixtures else
                    f"{release}-{story.name}") + story.suffix
            if release not in story.releases:
                continue
            target = os.path.join(out, name)
            try:
                args, log = story.record(launcher, target)
            except (Failed, OSError) as error:
                print(f"FAILED {name}: {error}")
                exit_code = exit_code or 1
                continue
            files = sorted(os.listdir(target)) if os.path.isdir(target) else [None]
            for file in files:
                path = os.path.join(target, file) if file else target
                print(f"{os.path.relpath(path, out)}: {os.path.getsize(path)} bytes")
                note(out, os.path.relpath(path, out), version, args, log, path)
    if fixtures:
        write_table(out, given.set)
    return exit_code


def cut_vfio(given, out):
    """Leaves out the pages, the sections of other devices and the description:
    every record that remains is as it was recorded."""
    for story in sorted(os.listdir(given.vfio)):
        source = os.path.join(given.vfio, story)
        if not os.path.exists(os.path.join(source, "conn00.src-to-dst.bin")) or (
                given.only and story not in given.only):
            continue
        for name in sorted(os.listdir(source)):
            path = os.path.join(source, name)
            if not re.fullmatch(r"conn\d+\.[a-z-]+\.bin", name) or not os.path.getsize(path):
                continue
            with open(path, "rb") as file:
                data = file.read()
            if name.endswith("src-to-dst.bin"):
                rows = json.loads(subprocess.run(
                    [given.migwire, "dump", "--json", path], capture_output=True, timeout=60,
                    check=True).stdout)["channels"][0]["rows"]
                data = b"".join(data[row["offset"]:][:row["bytes"]] for row in kept(rows))
            os.makedirs(os.path.join(out, story), exist_ok=True)
            with open(os.path.join(out, story, name), "wb") as file:
                file.write(data)
            print(f"{story}/{name}: {len(data)} bytes")
    return 0


def kept(rows):
    """The rows of a dump that stay."""
    dropping = False
    for row in rows:
        what = row["what"]
        if re.match(r"(START|PART|END|FULL) of section|\d+ times ", what):
            dropping = '"ram"' not in what and '/vfio"' not in what
        elif what.startswith(("VM description", "text of the VM")):
            dropping = True
        elif row["depth"] == 0 and re.match(r"packet \d+,", what):
            dropping = " of \"" in what
        elif row["depth"] == 0:
            dropping = False
        if not dropping:
            yield row


def note(out, name, version, args, log, target):
    """Keeps how a stream was made in DIR/recorded.json."""
    path = os.path.join(out, "recorded.json")
    recorded = {}
    if os.path.exists(path):
        with open(path) as text:
            recorded = json.load(text)
    with open(target, "rb") as data:
        digest = hashlib.sha256(data.read()).hexdigest()
    recorded[name] = {"version": version, "size": os.path.getsize(target),
                      "sha256": digest, "command": shlex.join(["qemu-system-x86_64", *args]),
                      "qmp": log}
    with open(path + ".new", "w") as text:
        json.dump(recorded, text, indent=1, sort_keys=True)
        text.write("\n")
    os.replace(path + ".new", path)


def check(out):
    """Every stream listed is there unchanged, and every stream there is listed."""
    with open(os.path.join(out, "recorded.json")) as text:
        recorded = json.load(text)
    there = {os.path.relpath(os.path.join(folder, name), out)
             for folder, _, names in os.walk(out) for name in names} - {"recorded.json"}
    # What was not recorded here says itself where it comes from.
    there = {name for name in there if not name.startswith("vfio/")}
    wrong = [f"{name}: not in recorded.json" for name in sorted(there - set(recorded))]
    for name, entry in sorted(recorded.items()):
        if name not in there:
            wrong.append(f"{name}: missing")
            continue
        with open(os.path.join(out, name), "rb") as data:
            if hashlib.sha256(data.read()).hexdigest() != entry["sha256"]:
                wrong.append(f"{name}: differs from recorded.json")
    for line in wrong:
        print(f"record-fixtures: {line}", file=sys.stderr)
    print(f"record-fixtures: {len(recorded)} streams checked, {len(wrong)} wrong", file=sys.stderr)
    return 1 if wrong or not recorded else 0


def write_table(out, which):
    """Puts the list of the streams into the README above their folder."""
    readme = os.path.join(out, "..", "README.md")
    mark = "recorded" if which == "fixtures" else which
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
    if not os.path.exists(readme) or not os.path.exists(os.path.join(out, "recorded.json")):
        return
    with open(readme) as text:
        before, _, rest = text.read().partition(begin)
    if end not in rest:
        return
    after = rest.partition(end)[2]
    with open(os.path.join(out, "recorded.json")) as text:
        recorded = json.load(text)
    lines = ["| file | bytes | SHA-256 | made with | command line and QMP commands |\n",
             "|---|---|---|---|---|\n"]
    for name, entry in sorted(recorded.items()):
        steps = "; ".join(
            f"`{step['execute']}`" + (f" `{json.dumps(step['arguments'])}`"
                                      if "arguments" in step else "")
            for step in entry["qmp"])
        lines.append(f"| `{os.path.basename(out)}/{name}` | {entry['size']} | `{entry['sha256']}` | "
                     f"{entry['version']} | `{entry['command']}` — {steps} |\n")
    with open(readme, "w") as text:
        text.write(before + begin + "".join(lines) + end + after)


sys.exit(main())
PYTHON
)
exec python3 -c "$program" "$@"
