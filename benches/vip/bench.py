#!/usr/bin/env python3
"""What a client sees when an owner of virtual addresses ends: duravip beside keepalived, in the same namespaces, one after the other.

    apt-get install keepalived
    cargo build --release
    benches/vip/bench.py                              quick: 1, 250 and 2,000 addresses, 3 rounds                     8 minutes
    benches/vip/bench.py --full                       1, 250, 2,000 and 10,240 addresses, 20 rounds              at most 60 minutes
    benches/vip/bench.py --sizes 2000 --rounds 20     one size alone                                             at most 15 minutes
    benches/vip/bench.py --sizes 2000 --rounds 20 --programs duravip --events crash,leader                        4 minutes
    benches/vip/bench.py soak [--minutes 10]          dead_after = "80ms" on an idle machine: its false alarms       11 minutes

`--minutes` ends the rounds of each size and program after so long (10 unless said otherwise); what was seen until then is printed.

Two machines that may own addresses and a witness, each a network namespace on one bridge, and a client there that asks with ARP for
sixteen of the addresses every 2 ms. All addresses are on the first machine and go to the second, so that both programs have the same
to do. Both are told to notice a death after 300 ms: `dead_after = "300ms"` with `heartbeat = "40ms"`, and `advert_int 0.1`.

    crash      the first machine's cable is cut and its daemon killed; the second or the witness leads
    leader     the same while the first machine leads
    stop       SIGTERM
    drain      `duravip drain`: a planned move of everything
    freeze     SIGSTOP
    kill -9    the daemon dies, the machine goes on
    return     it comes back, or is drained no more, and so do the addresses

Outage: from the old owner's last answer (the cut, for a crash) to the new owner's first; of the sixteen, the first and the last to
come back. Double: for how long two machines answered for an address; after kill -9 of keepalived until the bench cleans up, KILLED_S
seconds later. Beside it, on each processor, a process with real-time priority only looks at the clock: where it finds that the
processor stood still for longer than STALL_S (a hypervisor's doing, or that of work with more right to it) the events that this
fell into are counted, and reported without it once more. Needs root. Nothing outside its own namespaces is touched.
"""
import argparse, atexit, ctypes, os, select, shutil, signal, socket, statistics, struct, subprocess, sys, tempfile, threading, time

ROUND_S = 0.002
SAMPLES = 16
KILLED_S = 3.0
STALL_S = 0.008
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

    def kill(self, number, wait=True):
        """The daemon and whatever it is made of; never a guard, who has to outlive it."""
        for pid in self.daemons():
            os.kill(pid, number)
        if wait:
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

    def forget(self):
        """What was seen so far, but for a moment."""
        for answers in self.answers:
            del answers[:-2000]

    def seen(self, begun, old, new):
        """Outages and double ownership since then, per address."""
        outages, doubles, begins = [], [], []
        for answers in self.answers:
            olds = [at for at, mac in answers if mac == old.mac and at > begun - 1]
            news = [at for at, mac in answers if mac == new.mac and at > begun]
            if not olds or not news:
                sys.exit(f"the client saw no change; logs are in {DIR}")
            last, first = max(at for at in olds), min(news)
            gone = max((at for at in olds if at <= first), default=begun)
            outages.append(max(0.0, first - gone))
            begins.append(gone)
            doubles.append(max(0.0, last - first))
        # When the longest of them began.
        self.last_change = begins[outages.index(max(outages))]
        return min(outages) * 1e3, max(outages) * 1e3, max(doubles) * 1e3

    def end(self):
        self.stopping = True
        self.thread.join()


class Stalls:
    """When processors stood still. A process each: threads of this one would wait for its other threads."""

    def __init__(self):
        self.children = []
        for cpu in os.sched_getaffinity(0):
            child = os.fork()
            if child == 0:
                # Whatever happens: what the parent does at its end is not this one's to do.
                try:
                    self.watch(cpu)
                finally:
                    os._exit(1)
            self.children.append(child)

    def watch(self, cpu):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        os.sched_setaffinity(0, {cpu})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
        with open(os.path.join(DIR, f"stalls.{cpu}"), "w", buffering=1) as file:
            last = time.monotonic()
            while True:
                time.sleep(0.004)
                now = time.monotonic()
                if now - last > 0.004 + STALL_S:
                    file.write(f"{last} {now}\n")
                last = now

    def within(self, begun, ended):
        """How long the longest was that fell into this time, in milliseconds."""
        longest = 0.0
        for name in os.listdir(DIR):
            if name.startswith("stalls."):
                with open(os.path.join(DIR, name)) as file:
                    for line in file:
                        since, until = map(float, line.split())
                        if until > begun and since < ended:
                            longest = max(longest, (until - since) * 1e3)
        return longest

    def end(self):
        for child in self.children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self.children = []


def steal_s():
    """What the hypervisor took from this machine so far."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


class Duravip:
    name = "duravip"
    events = ["crash", "leader", "stop", "drain", "freeze", "kill -9"]
    killed_s = 0.5

    def __init__(self, machines, size, times='dead_after = "300ms"\nheartbeat = "40ms"', spread=False):
        self.machines = machines
        conf = os.path.join(DIR, "conf")
        os.makedirs(f"{conf}/global"), os.makedirs(f"{conf}/default")
        with open(f"{conf}/global/cluster.toml", "w") as file:
            for machine in machines:
                witness = str(machine.number == 3 and not spread).lower()
                file.write(f'[node.{machine.name}]\naddress = "10.77.0.{10 + machine.number}"\nwitness = {witness}\n')
        with open(f"{conf}/default/duravip.toml", "w") as file:
            # The rounds look like flapping: what is doubled with every departure has to begin small.
            file.write(f'{times}\nmature = "1ms"\n[topology."10.77.0.0/16"]\ninterface = "eth0"\n')
            for number in range(size):
                file.write(f'[vip."{vip(number)}"]\n' + ("" if spread else 'preference = "n1"\n'))
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

    def leader(self, asked):
        words = self.ask(asked, "members").split("\n")[0].split("leader ")
        return words[1].split(",")[0] if len(words) > 1 else None

    def make_lead(self, wanted):
        """Whoever else leads is restarted; a witness stands last."""
        for _ in range(20):
            leader = self.leader(wanted)
            if leader == wanted.name:
                return
            for machine in self.machines:
                if machine.name == leader:
                    machine.kill(signal.SIGTERM)
                    self.start(machine)
            time.sleep(1)
        sys.exit(f"{wanted.name} does not become the leader; logs are in {DIR}")

    def metric(self, machine, name):
        lines = self.ask(machine, "metrics").split("\n")
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def late(self, machine):
        """The longest that the loop was late, as its histogram has it."""
        lines = [line for line in self.ask(machine, "metrics").split("\n") if line.startswith("duravip_loop_lateness_seconds_bucket")]
        steps = [(line.split('le="')[1].split('"')[0], int(line.split()[-1])) for line in lines]
        return next((step for step, count in steps if count == steps[-1][1]), "?") if steps else "?"

    def notes(self, rounds):
        second = self.machines[1]
        # Its history outlives its restarts, of which there are some for who leads.
        lines = self.ask(second, "history", "-n", "4096").split("\n")
        lapses = sum(line.split()[1:2] == ["lapse"] for line in lines)
        return f"{lapses} leases of the second machine lapsed in {rounds} rounds"

    def clean(self, machine):
        pass


class Keepalived:
    name = "keepalived"
    events = ["crash", "stop", "kill -9"]
    killed_s = KILLED_S

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

    def notes(self, rounds):
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


def settle():
    """Leave nothing running or waiting before the next program has its turn."""
    for machine in MACHINES:
        if machine.process and machine.process.poll() is None:
            machine.kill(signal.SIGKILL)
    time.sleep(0.5)
    tear_down()
    shutil.rmtree(DIR)
    MACHINES.clear()


def happen(program, client, stalls, event, one, two):
    """One event with its end: what the client saw of both, and how long a processor stood still meanwhile."""
    if event == "leader":
        program.make_lead(one)
        client.wait_for(one, "the leader")
    client.forget()
    begun = time.monotonic()
    if event in ("crash", "leader"):
        one.cable(False)
    if event == "drain":
        program.ask(two, "drain", one.name)
    else:
        one.kill({"stop": signal.SIGTERM, "freeze": signal.SIGSTOP}.get(event, signal.SIGKILL), wait=event != "freeze")
    if event == "kill -9":
        time.sleep(program.killed_s)
        program.clean(one)
    client.wait_for(two, event)
    away = client.seen(begun, one, two)
    away += (stalls.within(client.last_change, client.last_change + away[1] / 1e3),)
    if event == "freeze":
        one.kill(signal.SIGCONT, wait=False)
    if event in ("crash", "leader"):
        program.clean(one)
        one.cable(True)
        time.sleep(0.5)
    client.forget()
    begun = time.monotonic()
    if event == "drain":
        program.ask(two, "undrain", one.name)
    elif event != "freeze":
        program.start(one)
    client.wait_for(one, "return")
    back = client.seen(begun, two, one)
    return away, back + (stalls.within(client.last_change, client.last_change + back[1] / 1e3),)


def measure(program_of, size, rounds, events, minutes):
    """One program with so many addresses: what was seen, by event."""
    global DIR
    # Removed when all went well: what failed has its logs there.
    DIR = tempfile.mkdtemp(prefix="vipbench")
    MACHINES[:] = build()
    one, two = MACHINES[0], MACHINES[1]
    sample = sorted({round(number * (size - 1) / max(1, SAMPLES - 1)) for number in range(min(SAMPLES, size))})
    begun = time.monotonic()
    program = program_of(MACHINES, size)
    client = Client(f"{ID}-client", [vip(number) for number in sample])
    client.wait_for(one, "the start")
    stalls = Stalls()
    seen = {event: [] for event in EVENTS}
    done = 0
    while done < rounds and time.monotonic() < begun + minutes * 60:
        for event in [event for event in program.events if event in events]:
            away, back = happen(program, client, stalls, event, one, two)
            seen[event].append(away)
            seen["return"].append(back)
        done += 1
    notes = program.notes(done)
    client.end()
    stalls.end()
    settle()
    return seen, done, notes


def soak(minutes):
    """Three members that have nothing to do, with leases that the scheduler's noise alone could end."""
    global DIR
    DIR = tempfile.mkdtemp(prefix="vipbench")
    MACHINES[:] = build()
    program = Duravip(MACHINES, 250, 'dead_after = "80ms"\nheartbeat = "10ms"', spread=True)
    names = ["duravip_lapses_total", "duravip_leader_changes_total", "duravip_acquired_total", "duravip_released_total"]
    counts = lambda: {(machine.name, name): program.metric(machine, name) for machine in MACHINES for name in names}
    deadline, before = time.monotonic() + PATIENCE_S, None
    # At rest: everything is on, and nothing changed for five seconds.
    while True:
        now = counts()
        held = sum(program.metric(machine, "duravip_held") for machine in MACHINES)
        if now == before and held == 250:
            break
        if time.monotonic() > deadline:
            sys.exit(f"not at rest; logs are in {DIR}")
        before = now
        time.sleep(5)
    begun, lost = time.monotonic(), 0
    stalls, stolen = Stalls(), steal_s()
    while time.monotonic() < begun + minutes * 60:
        time.sleep(min(15, max(0.1, begun + minutes * 60 - time.monotonic())))
        lost = sum(counts()[key] - before[key] for key in before if "lapses" in key[1])
        print(f"after {(time.monotonic() - begun) / 60:.1f} minutes: {lost:.0f} leases lapsed", flush=True)
    after = counts()
    for name in names:
        changes = ", ".join(f"{machine.name} {after[machine.name, name] - before[machine.name, name]:.0f}" for machine in MACHINES)
        print(f"{name}: {changes}")
    for machine in MACHINES:
        print(f"{machine.name}: its loop was at most {program.late(machine)} s late")
    print(f"the hypervisor took {steal_s() - stolen:.1f} s; a processor stood still for at most {stalls.within(begun, time.monotonic()):.0f} ms")
    stalls.end()
    settle()


EVENTS = ["crash", "leader", "stop", "drain", "freeze", "kill -9", "return"]


def line(head, seen, tail=""):
    """Medians and worst of some events, in a line; the medians."""
    columns = list(zip(*seen))[:3]
    medians = [statistics.median(column) for column in columns]
    cells = [f"{middle:.0f} ({max(column):.0f})" for middle, column in zip(medians, columns)]
    print(f"{head} {cells[0]:>16} {cells[1]:>18} {cells[2]:>18}{tail}", flush=True)
    return medians


def report(size, both):
    """The table's lines of one size."""
    for event in EVENTS:
        medians = {}
        for name, seen in both.items():
            if not seen[event]:
                continue
            medians[name] = line(f"{size:>9} {event:<8} {name:<11}", seen[event])
            calm = [times for times in seen[event] if times[3] == 0]
            if calm and len(calm) < len(seen[event]):
                longest = max(times[3] for times in seen[event])
                line(f"{size:>9} {event:<8} {'':<11}", calm, f"   without {len(seen[event]) - len(calm)} of {len(seen[event])}: stalls of up to {longest:.0f}")
        if len(medians) < 2:
            continue
        ratios = [
            f"{ours / theirs:.2f}" if theirs >= 1 else "-"
            for ours, theirs in zip(medians["duravip"], medians["keepalived"])
        ]
        if event == "kill -9":
            # Two that both answer leave no gap: how long they do is what there is to compare.
            ratios[:2] = "-", "-"
        print(f"{size:>9} {event:<8} {'ratio':<11} {ratios[0]:>16} {ratios[1]:>18} {ratios[2]:>18}", flush=True)


def main():
    global BIN
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="?", choices=["soak"], help="ten minutes with short leases, instead of the events")
    parser.add_argument("--full", action="store_true", help="10,240 addresses too, and twenty rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sizes")
    parser.add_argument("--programs", default="duravip,keepalived")
    parser.add_argument("--events", default=",".join(EVENTS))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--bin", default=os.path.join(HERE, "../../target/release/eccluster"))
    options = parser.parse_args()
    BIN = os.path.abspath(options.bin)
    if not os.access(BIN, os.X_OK):
        sys.exit(f"{BIN} cannot be run: cargo build --release, or --bin")
    # What was made is taken away also when somebody ends this early.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended early"))
    rounds = options.rounds or (20 if options.full else 3)
    sizes = options.sizes or ("1,250,2000,10240" if options.full else "1,250,2000")
    if os.geteuid():
        sys.exit("network namespaces need root")
    with open("/proc/loadavg") as load:
        print(f"load {load.read().split()[0]} before", flush=True)
    if options.part == "soak":
        return soak(options.minutes)
    print(f"at most {rounds} rounds\nmilliseconds: median (worst)", flush=True)
    print(f"{'addresses':>9} {'event':<8} {'program':<11} {'first back':>16} {'last back':>18} {'double':>18}", flush=True)
    programs = [program for program in (Duravip, Keepalived) if program.name in options.programs.split(",")]
    for size in map(int, sizes.split(",")):
        both = {}
        for program in programs:
            both[program.name], done, notes = measure(program, size, rounds, options.events.split(","), options.minutes)
            if notes:
                print(f"{size:>9} {notes}", flush=True)
            if done < rounds:
                print(f"{size:>9} {program.name}: {done} rounds, then the time was up", flush=True)
        report(size, both)


main()
