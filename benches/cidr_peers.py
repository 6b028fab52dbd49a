#!/usr/bin/env python3
"""Asks DuckDB, chDB and SQLite the questions of `cidr/engine/benches/engine.rs`, on the rows that it wrote.

    cargo bench -p cidr-engine --bench engine -- 1 /tmp/counts /tmp/rows.csv
    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install duckdb chdb
    /tmp/peers/bin/python benches/cidr_peers.py /tmp/rows.csv /tmp/peers-data [duckdb] [chdb] [sqlite]

Addresses are numbers in all of them, days are integers, tables are sorted by (series, address, time) and by (series, day, address): the better of
the two counts for each question. Times are the median of five runs after one that warms up (of one, when that took more than five seconds), in the
process, results fetched. What was loaded stays in the directory for the next run. At full size SQLite takes some ten minutes to load and 3 GB of disk.
"""
import csv, os, sqlite3, statistics, sys, time

DAY = 1_775_001_600 // 86_400      # 2026-04-01
ROWS, DIR = sys.argv[1], sys.argv[2]
WHICH = sys.argv[3:] or ["duckdb", "chdb", "sqlite"]
os.makedirs(DIR, exist_ok=True)


def median(run):
    began = time.perf_counter()
    rows = run()
    times = []
    for _ in range(5 if time.perf_counter() - began < 5 else 1):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3, rows


def report(peer, name, times):
    best = min(times, key=lambda t: t[0])
    print(f"{peer:<8} {name:<46} {best[0]:>9.2f} ms  {best[1]} rows", flush=True)


def subjects(query):
    """The /8 and /16 with most rows, a frequent and a rare address of the first series."""
    top = query("select (ip // 16777216) t, count(*) c from T where s = 0 group by 1 order by c desc limit 1")[0][0]
    frequent = query("select ip from T where s = 0 group by 1 order by sum(n) desc limit 4")[3][0]
    rare = query("select ip from T where s = 0 group by 1 having count(*) = 1 order by 1 limit 1")[0][0]
    return int(top), int(frequent), int(rare)


def questions(top, frequent, rare, div):
    net = frequent - frequent % 65536
    levels = " union all ".join(
        f"select {l}, {div('ip', 2 ** (32 - l))}, sum(n) from T where s = 0 and d between {DAY + 5} and {DAY + 11}"
        f" and ip between {top * 16777216} and {top * 16777216 + 16777215} group by 1, 2" for l in range(8, 25))
    return {
        "top-10 addresses, one series, 30 days":
            "select ip, sum(n) c from T where s = 0 group by ip order by c desc, ip limit 10",
        "top-10 /24 of a union, one day":
            f"select {div('ip', 256)} b, sum(n) c from T where d = {DAY + 14} group by b order by c desc, b limit 10",
        "all levels /8 to /24 of one /8, 7 days": levels,
        "daily sums of one /16, 30 days":
            f"select d, sum(n) from T where s = 0 and ip between {net} and {net + 65535} group by d order by d",
        "one frequent address, 30 days": f"select sum(n) from T where s = 0 and ip = {frequent}",
        "one rare address, 30 days": f"select sum(n) from T where s = 0 and ip = {rare}",
    }


def duckdb_peer():
    import duckdb
    path = os.path.join(DIR, "peers.duckdb")
    fresh = not os.path.exists(path)
    db = duckdb.connect(path)
    if fresh:
        db.execute(f"create table raw as select c0::utinyint s, c1::uinteger t, ((c1 - 1) // 86400)::usmallint d, c3::uinteger ip, c4::uinteger n"
                   f" from read_csv('{ROWS}', header=false, columns={{'c0':'utinyint','c1':'uinteger','c2':'utinyint','c3':'varchar','c4':'uinteger'}})"
                   f" where c2 = 4")
        db.execute("create table by_ip as select * from raw order by s, ip, t")
        db.execute("create table by_day as select * from raw order by s, d, ip")
        db.execute("drop table raw")
        for table in ("by_ip", "by_day"):
            db.execute(f"copy {table} to '{DIR}/{table}.parquet' (format parquet)")
    fetch = lambda sql: db.execute(sql).fetchall()
    subject = subjects(lambda sql: fetch(sql.replace("T", "by_ip")))
    sources = ["by_ip", "by_day", f"'{DIR}/by_ip.parquet'", f"'{DIR}/by_day.parquet'"]
    for name, sql in questions(*subject, lambda a, b: f"({a} // {b})").items():
        times = []
        for source in sources:
            ms, rows = median(lambda: fetch(sql.replace("T", source)))
            times.append((ms, len(rows)))
        report("duckdb", name, times)
    csv = os.path.join(DIR, "all.csv")
    everything = f"copy (select ip // 16777216 || '.' || ip // 65536 % 256 || '.' || ip // 256 % 256 || '.' || ip % 256, sum(n) from by_ip group by ip order by ip) to '{csv}'"
    report("duckdb", "all addresses as text, union, 30 days", [(median(lambda: fetch(everything))[0], 0)])


def chdb_peer():
    from chdb import session
    db = session.Session(os.path.join(DIR, "chdb"))
    fetch = lambda sql: [line for line in str(db.query(sql + " settings use_query_condition_cache = 0", "CSV")).splitlines()]
    db.query("create database if not exists p engine = Atomic")
    if not fetch("select 1 from system.tables where database = 'p' and name = 'by_day'"):
        columns = "s UInt8, t UInt32, d UInt16, ip UInt32, n UInt32"
        for table, order in (("by_ip", "s, ip, t"), ("by_day", "s, d, ip")):
            db.query(f"create table p.{table} ({columns}) engine = MergeTree order by ({order})")
            db.query(f"insert into p.{table} select c1, c2, intDiv(c2 - 1, 86400), toUInt32(c4), c5 from"
                     f" file('{ROWS}', 'CSV', 'c1 UInt8, c2 UInt32, c3 UInt8, c4 String, c5 UInt32') where c3 = 4")
            db.query(f"optimize table p.{table} final")
    subject = subjects(lambda sql: [[int(v) for v in line.split(",")] for line in
                                    fetch(sql.replace("T", "p.by_ip").replace("(ip // 16777216)", "intDiv(ip, 16777216)"))])
    for name, sql in questions(*subject, lambda a, b: f"intDiv({a}, {b})").items():
        times = []
        for source in ("p.by_ip", "p.by_day"):
            ms, rows = median(lambda: fetch(sql.replace("T", source)))
            times.append((ms, len(rows)))
        report("chdb", name, times)


def sqlite_load(path):
    """Rows go in as they come, and are then sorted by SQLite's own sorter: inserting in random order would take hours."""
    part = path + ".part"
    for leftover in (part, path + ".raw"):
        if os.path.exists(leftover):
            os.remove(leftover)
    db = sqlite3.connect(part, isolation_level=None)
    db.execute(f"attach '{path}.raw' as r")
    for pragma in ("page_size = 16384", "r.page_size = 16384", "journal_mode = off", "r.journal_mode = off",
                   "synchronous = off", "r.synchronous = off", "cache_size = -400000", "threads = 2"):
        db.execute("pragma " + pragma)
    began = time.perf_counter()
    note = lambda what: print(f"sqlite   {what:<46} {time.perf_counter() - began:>9.0f} s", flush=True)
    db.execute("create table r.raw (s int, t int, f int, ip int, n int)")
    db.execute("begin")
    with open(ROWS, newline="") as file:
        db.executemany("insert into r.raw values (?, ?, ?, ?, ?)", csv.reader(file))
    db.execute("commit")
    note("rows read after")
    for table, order in (("by_ip", "s, ip, t"), ("by_day", "s, d, ip, t")):
        db.execute(f"create table {table} (s int, d int, ip int, t int, n int, primary key ({order})) without rowid")
        db.execute(f"insert into {table} select s, (t - 1) / 86400 d, ip, t, n from r.raw where f = 4 order by {order}")
        note(f"{table} sorted after")
    db.execute("detach r")
    db.close()
    os.remove(path + ".raw")
    os.rename(part, path)


def sqlite_peer():
    path = os.path.join(DIR, "peers.sqlite")
    if not os.path.exists(path):
        sqlite_load(path)
    db = sqlite3.connect(path)
    db.execute("pragma cache_size = -400000")
    db.execute("pragma mmap_size = 4000000000")
    fetch = lambda sql: db.execute(sql).fetchall()
    subject = subjects(lambda sql: fetch(sql.replace("//", "/").replace("T", "by_ip")))
    for name, sql in questions(*subject, lambda a, b: f"({a} / {b})").items():
        times = []
        for source in ("by_ip", "by_day"):
            ms, rows = median(lambda: fetch(sql.replace("T", source)))
            times.append((ms, len(rows)))
        report("sqlite", name, times)


for peer in WHICH:
    {"duckdb": duckdb_peer, "chdb": chdb_peer, "sqlite": sqlite_peer}[peer]()
