#!/usr/bin/env python3
"""What a client sees when an owner of virtual addresses ends: duravip beside keepalived, in the same namespaces, one after the other.

    apt-get install keepalived
    cargo build --release
    benches/vip/bench.py [--full] [--rounds N] [--sizes 1,250,2000] [--bin target/release/eccluster]

Two machines that may own addresses and a witness, each a network namespace on one bridge, and a client there that asks with ARP for
sixteen of the addresses every 2 ms. All addresses are on the first machine and go to the second, so that both programs have the same
to do. Both are told to notice a death after 300 ms: `dead_after = "300ms"` with `heartbeat = "40ms"`, and `advert_int 0.1`.

    crash      the first machine's cable is cut and its daemon killed
    return     it comes back, and so do the addresses
    stop       SIGTERM
    kill -9    the daemon dies, the machine goes on

Outage: from the old owner's last answer (the cut, for a crash) to the new owner's first; of the sixteen, the first and the last to
come back. Double: for how long two machines answered for an address; with kill -9 until the bench cleans up after KILLED_S seconds.
The default is small; `--full` has 10,240 addresses and twenty rounds. Needs root. Nothing outside its own namespaces is touched.
"""
import argparse, atexit, ctypes, os, select, shutil, signal, socket, statistics, struct, subprocess, sys, tempfile, threading, time

ROUND_S = 0.002
SAMPLES = 16
KILLED_S = 3.0
PATIENCE_S = 120
OWN_MAC = bytes([2, 0x77, 0, 0, 0, 1])
ID = f"bv{os.getpid()}"
HERE = os.path.dirname(os.path.abspath(__file__))


def run(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def vip(number):
    return f"10.77.{1 + number // 250}.{1 + number % 250}"


class Machine:
    def __init__(self, number):
        self.number, self.name = number, f"n{number}"
        self.ns, self.port = f"{ID}-{number}", f"p{number}"
        self.mac = bytes([2, 0x77, 0, 0, 0, 10 + number])
        self.process = None

    def spawn(self, *words, env=None):
        log = open(os.path.join(DIR, f"{self.name}.log"), "a")
        self.process = subprocess.Popen(["ip", "netns", "exec", self.ns, *words], stdout=log, stderr=log, env=env)

    def cable(self, plugged):
        run("ip", "-n", f"{ID}-sw", "link", "set", self.port, "up" if plugged else "down")

    def kill(self, number):
        """The daemon and whatever it is made of; never a guard, who has to outlive it."""
        for pid in self.daemons():
            os.kill(pid, number)
        self.process.wait()

    def daemons(self):
        found = [self.process.pid]
        for pid in run("ip", "netns", "pids", self.ns).split():
            try:
                words = open(f"/proc/{pid}/cmdline").read()
            except OSError:
                continue
            if "keepalived" in words and int(pid) not in found:
                found.append(int(pid))
        return found


class Client:
    """Asks for some of the addresses, and keeps when whose answer came."""

    def __init__(self, ns, addresses):
        self.answers, self.stopping = [[] for _ in addresses], False
        self.index = {socket.inet_aton(address): number for number, address in enumerate(addresses)}
        head = b"\xff" * 6 + OWN_MAC + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x800, 6, 4, 1)
        ask = OWN_MAC + socket.inet_aton("10.77.0.1") + bytes(6)
        self.questions = [head + ask + socket.inet_aton(address) for address in addresses]
        ready = threading.Event()
        self.thread = threading.Thread(target=self.work, args=(ns, ready), daemon=True)
        self.thread.start()
        ready.wait()

    def work(self, ns, ready):
        # A namespace is a thread's: only this one moves.
        with open(f"/var/run/netns/{ns}") as place:
            if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), 0x40000000):
                sys.exit("setns failed")
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
        wire.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
        wire.bind(("eth0", 0x0806))
        wire.setblocking(False)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
        ready.set()
        due = time.monotonic()
        while not self.stopping:
            now = time.monotonic()
            if now >= due:
                due = max(due + ROUND_S, now)
                for question in self.questions:
                    try:
                        wire.send(question)
                    except BlockingIOError:
                        break
            select.select([wire], [], [], max(0, due - time.monotonic()))
            try:
                while True:
                    frame = wire.recv(64)
                    if frame[20:22] == b"\0\2" and frame[32:38] == OWN_MAC:
                        number = self.index.get(frame[28:32])
                        if number is not None:
                            self.answers[number].append((time.monotonic(), frame[22:28]))
            except BlockingIOError:
                pass

    def wait_for(self, machine, what):
        """Until for a whole second this machine, and nobody else, answered for every address."""
        begun = time.monotonic()
        while time.monotonic() < begun + PATIENCE_S:
            since = time.monotonic() - 1
            recent = [[mac for at, mac in reversed(answers[-2000:]) if at > since] for answers in self.answers]
            if all(len(macs) > 20 and set(macs) == {machine.mac} for macs in recent) and time.monotonic() > begun + 1:
                return
            time.sleep(0.1)
        sys.exit(f"{what}: {machine.name} does not answer alone; logs are in {DIR}")

    def seen(self, begun, old, new):
        """Outages and double ownership since then, per address."""
        outages, doubles = [], []
        for answers in self.answers:
            olds = [at for at, mac in answers if mac == old.mac and at > begun - 1]
            news = [at for at, mac in answers if mac == new.mac and at > begun]
            if not olds or not news:
                sys.exit(f"the client saw no change; logs are in {DIR}")
            last, first = max(at for at in olds), min(news)
            gone = max((at for at in olds if at <= first), default=begun)
            outages.append(max(0.0, first - gone))
            doubles.append(max(0.0, last - first))
        return min(outages) * 1e3, max(outages) * 1e3, max(doubles) * 1e3

    def end(self):
        self.stopping = True
        self.thread.join()


class Duravip:
    name = "duravip"

    def __init__(self, machines, size):
        self.machines = machines
        conf = os.path.join(DIR, "conf")
        os.makedirs(f"{conf}/global"), os.makedirs(f"{conf}/default")
        with open(f"{conf}/global/cluster.toml", "w") as file:
            for machine in machines:
                witness = str(machine.number == 3).lower()
                file.write(f'[node.{machine.name}]\naddress = "10.77.0.{10 + machine.number}"\nwitness = {witness}\n')
        with open(f"{conf}/default/duravip.toml", "w") as file:
            file.write('dead_after = "300ms"\nheartbeat = "40ms"\nmature = "20ms"\n[topology."10.77.0.0/16"]\ninterface = "eth0"\n')
            for number in range(size):
                file.write(f'[vip."{vip(number)}"]\npreference = "n1"\n')
        with open(os.path.join(DIR, "key"), "w") as file:
            file.write("5a" * 32)
        for machine in machines:
            self.start(machine)

    def start(self, machine):
        place = os.path.join(DIR, machine.name)
        os.makedirs(f"{place}/run", exist_ok=True)
        words = ["--conf", f"{DIR}/conf", "--data", f"{place}/data", "--identity", "/nonexistent", "--cluster-key", f"{DIR}/key"]
        machine.spawn(BIN, "duravip", "run", "--node", machine.name, *words, env={**os.environ, "ECCLUSTER_RUN": f"{place}/run"})

    def ask(self, machine, *words):
        env = {**os.environ, "ECCLUSTER_RUN": os.path.join(DIR, machine.name, "run")}
        return subprocess.run([BIN, "duravip", *words], capture_output=True, text=True, env=env).stdout

    def leads(self, machine):
        return f"leader {machine.name}" in self.ask(machine, "members").split("\n")[0]

    def lapses(self):
        lines = [line for machine in self.machines[1:2] for line in self.ask(machine, "metrics").split("\n")]
        return sum(int(line.split()[-1]) for line in lines if line.startswith("duravip_lapses_total"))

    def clean(self, machine):
        pass


class Keepalived:
    name = "keepalived"

    def __init__(self, machines, size):
        self.machines = machines[:2]
        for machine in self.machines:
            first = machine.number == 1
            # One address in the packet, as many as there are beside it: no datagram names 10,240.
            others = "\n".join(f"    {vip(number)}/32" for number in range(1, size))
            excluded = f"  virtual_ipaddress_excluded {{\n{others}\n  }}\n" if size > 1 else ""
            with open(os.path.join(DIR, f"{machine.name}.conf"), "w") as file:
                file.write(
                    "global_defs {\n  vrrp_version 3\n  vrrp_rt_priority 50\n  vrrp_rlimit_rttime 5000000\n  vrrp_no_swap\n}\n"
                    f"vrrp_instance bench {{\n  state {'MASTER' if first else 'BACKUP'}\n  interface eth0\n  virtual_router_id 7\n"
                    f"  priority {200 if first else 100}\n  advert_int 0.1\n  virtual_ipaddress {{\n    {vip(0)}/32\n  }}\n{excluded}}}\n"
                )
            self.start(machine)

    def start(self, machine):
        place = os.path.join(DIR, f"{machine.name}")
        # It takes the files of one that was killed for a daemon that runs while nobody has waited for the process.
        for left in (f"{place}.pid", f"{place}.vrrp.pid"):
            if os.path.exists(left):
                os.remove(left)
        machine.spawn(
            "keepalived", "-n", "-P", "-l", "-f", f"{place}.conf", "-p", f"{place}.pid", "-r", f"{place}.vrrp.pid"
        )

    def leads(self, machine):
        return False

    def lapses(self):
        return None

    def clean(self, machine):
        """What a kill leaves: somebody has to take it off."""
        kept = f"10.77.0.{10 + machine.number}/16"
        run("ip", "-n", machine.ns, "addr", "flush", "dev", "eth0", "scope", "global", check=False)
        run("ip", "-n", machine.ns, "addr", "add", kept, "dev", "eth0", check=False)


def build():
    switch = f"{ID}-sw"
    atexit.register(tear_down)
    run("ip", "netns", "add", switch)
    run("ip", "-n", switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
    run("ip", "-n", switch, "link", "set", "br0", "up")
    machines = [Machine(number) for number in (1, 2, 3)]
    for ns, port, mac, address in [
        (f"{ID}-client", "client", OWN_MAC, 1), *((m.ns, m.port, m.mac, 10 + m.number) for m in machines)
    ]:
        run("ip", "netns", "add", ns)
        run("ip", "-n", ns, "link", "set", "lo", "up")
        run("ip", "-n", ns, "link", "add", "eth0", "address", mac.hex(":"), "type", "veth", "peer", "name", port, "netns", switch)
        run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", ns, "addr", "add", f"10.77.0.{address}/16", "dev", "eth0")
        run("ip", "-n", ns, "link", "set", "eth0", "up")
    return machines


MACHINES = []


def tear_down():
    for machine in MACHINES:
        if machine.process and machine.process.poll() is None:
            machine.kill(signal.SIGKILL)
    for ns in [f"{ID}-client", *(machine.ns for machine in MACHINES), f"{ID}-sw"]:
        run("ip", "netns", "del", ns, check=False)


def measure(program_of, size, rounds):
    """One program with so many addresses: what was seen, by event."""
    global DIR
    # Removed when all went well: what failed has its logs there.
    DIR = tempfile.mkdtemp(prefix="vipbench")
    MACHINES[:] = build()
    one, two = MACHINES[0], MACHINES[1]
    sample = sorted({round(number * (size - 1) / max(1, SAMPLES - 1)) for number in range(min(SAMPLES, size))})
    seen = {"crash": [], "return": [], "stop": [], "kill -9": []}
    program = program_of(MACHINES, size)
    client = Client(f"{ID}-client", [vip(number) for number in sample])
    client.wait_for(one, "the start")
    led = 0
    for _ in range(rounds):
        for event in ("crash", "stop", "kill -9"):
            led += event == "crash" and program.leads(one)
            begun = time.monotonic()
            if event == "crash":
                one.cable(False)
            one.kill(signal.SIGTERM if event == "stop" else signal.SIGKILL)
            if event == "kill -9":
                time.sleep(KILLED_S)
                program.clean(one)
            client.wait_for(two, event)
            seen[event].append(client.seen(begun, one, two))
            if event == "crash":
                program.clean(one)
                one.cable(True)
                time.sleep(0.5)
            begun = time.monotonic()
            program.start(one)
            client.wait_for(one, "return")
            seen["return"].append(client.seen(begun, two, one))
    lapses = program.lapses()
    client.end()
    for machine in MACHINES:
        if machine.process and machine.process.poll() is None:
            machine.kill(signal.SIGKILL)
    time.sleep(0.5)
    tear_down()
    shutil.rmtree(DIR)
    MACHINES.clear()
    return seen, led, lapses


def main():
    global BIN
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="10,240 addresses too, and twenty rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sizes")
    parser.add_argument("--bin", default=os.path.join(HERE, "../../target/release/eccluster"))
    options = parser.parse_args()
    BIN = os.path.abspath(options.bin)
    rounds = options.rounds or (20 if options.full else 3)
    sizes = options.sizes or ("1,250,2000,10240" if options.full else "1,250,2000")
    if os.geteuid():
        sys.exit("network namespaces need root")
    with open("/proc/loadavg") as load:
        print(f"{rounds} rounds, load {load.read().split()[0]} before\nmilliseconds: median (worst)", flush=True)
    print(f"{'addresses':>9} {'event':<8} {'program':<11} {'first back':>16} {'last back':>18} {'double':>18}", flush=True)
    for size in map(int, sizes.split(",")):
        both = {}
        for program in (Duravip, Keepalived):
            both[program.name], led, lapses = measure(program, size, rounds)
            if lapses is not None:
                print(f"{size:>9} {lapses} leases of the second machine lapsed; the first led in {led} of its {rounds} crashes", flush=True)
        for event in ("crash", "return", "stop", "kill -9"):
            medians = {}
            for name, seen in both.items():
                columns = list(zip(*seen[event]))
                medians[name] = [statistics.median(column) for column in columns]
                cells = [f"{middle:.0f} ({max(column):.0f})" for middle, column in zip(medians[name], columns)]
                print(f"{size:>9} {event:<8} {name:<11} {cells[0]:>16} {cells[1]:>18} {cells[2]:>18}", flush=True)
            ratios = [
                f"{ours / theirs:.2f}" if theirs >= 1 else "-"
                for ours, theirs in zip(medians["duravip"], medians["keepalived"])
            ]
            if event == "kill -9":
                # Two that both answer leave no gap: how long they do is what there is to compare.
                ratios[:2] = "-", "-"
            print(f"{size:>9} {event:<8} {'ratio':<11} {ratios[0]:>16} {ratios[1]:>18} {ratios[2]:>18}", flush=True)


main()
