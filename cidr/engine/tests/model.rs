//! The store against the naive model: random windows of several nodes, late data, clock jumps, maintenance at random moments, and
//! questions of every kind. The seed of a failure is in its message.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use cidr_engine::language::{Statement, parse};
use cidr_engine::{Care, DAY_S, QueryError, QueryOptions, Store};
use common::{Model, NODES, Random, SERIES, first_day, open, question, window};

/// Asks the store and the model, and compares.
fn compare(store: &Store, model: &Model, text: &str, now: i64, memory_bytes: usize, seed: u64) -> bool {
    let Statement::Count(query) = parse(text).unwrap_or_else(|e| panic!("seed {seed}: {}", e.render(text))) else {
        panic!("{text}")
    };
    let mut out = Vec::new();
    let options = QueryOptions { memory_bytes, ..QueryOptions::at(now) };
    match store.query(text, &options, &mut out) {
        Ok(outcome) => {
            let (found, expected) = (String::from_utf8(out).unwrap(), model.answer(&query, now));
            assert_eq!(found, expected, "seed {seed}, asked: {text}");
            assert!(outcome.memory_bytes <= memory_bytes, "seed {seed}: {text} took {outcome:?}");
            true
        }
        Err(QueryError::Condensed { .. }) => false,
        Err(error) => panic!("seed {seed}: {text}: {error}"),
    }
}

/// Fills store and model with windows of `days`, in the order in which a cluster would hand them in, more or less.
fn fill(store: &Store, model: &mut Model, random: &mut Random, days: i64, windows: u64) {
    for _ in 0..windows {
        let series = *random.pick(&SERIES);
        let node = *random.pick(&NODES);
        let length = *random.pick(&[900, 900, 900, 60, 3_600]);
        let start = first_day().start() + random.below((days * DAY_S / length) as u64) as i64 * length;
        // Ends at midnight are the interesting ones.
        let start = if random.one_in(10) { start - start.rem_euclid(DAY_S) - length } else { start };
        let rows = *random.pick(&[0, 1, 3, 40, 400]);
        let window = window(random, series, node, start, start + length, rows);
        store.commit(None, std::slice::from_ref(&window)).unwrap();
        model.add(&window);
    }
}

fn story(seed: u64, days: i64, rounds: u64, questions: u64) {
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut model = Model::default();
    // Every series exists, so that any may be asked.
    for series in SERIES {
        let window = window(&mut random, series, "n1", first_day().start(), first_day().start() + 900, 50);
        store.commit(None, std::slice::from_ref(&window)).unwrap();
        model.add(&window);
    }
    let mut condensed = false;
    for round in 0..rounds {
        fill(&store, &mut model, &mut random, days, 20);
        // Most of the time the clock is where the data is; sometimes it jumped back, and maintenance has nothing to do.
        let passed = if random.one_in(5) { 0 } else { random.below(days as u64 + 2) as i64 };
        let now = first_day().start() + passed * DAY_S + random.below(DAY_S as u64) as i64;
        let condense_days = random.one_in(3).then_some(2);
        if random.one_in(2) {
            let done = store.maintain(now, |_| Care { retention_days: None, condense_days }, &|| false).unwrap();
            condensed |= done.condensed > 0;
        }
        if random.one_in(4) {
            drop(store);
            store = open(dir.path());
        }
        let mut answered = 0;
        for _ in 0..questions {
            let text = question(&mut random, days, true);
            // A trend shows what was given up as days: that has a test of its own.
            if condensed && text.contains(" trend") {
                answered += 1;
                continue;
            }
            let memory = *random.pick(&[1 << 26, 1 << 26, 1 << 26, 600 << 10]);
            answered += u64::from(compare(&store, &model, &text, now, memory, seed));
        }
        assert!(answered > questions / 4, "seed {seed}, round {round}: most questions were refused");
        let verified = store.verify(&|| false).unwrap();
        assert!(verified.damage.is_empty(), "seed {seed}: {:?}", verified.damage);
    }
}

#[test]
fn answers_are_those_of_the_model() {
    for seed in 0..12 {
        story(seed, 40, 4, 40);
    }
}

#[test]
fn one_crowded_day() {
    for seed in 100..104 {
        story(seed, 1, 4, 40);
    }
}

/// A month of windows from three nodes.
#[test]
fn whole_days_stay_the_same_whatever_maintenance_does() {
    let seed = 4_711;
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut model = Model::default();
    for series in SERIES {
        let window = window(&mut random, series, "n1", first_day().start(), first_day().start() + 900, 50);
        store.commit(None, std::slice::from_ref(&window)).unwrap();
        model.add(&window);
    }
    fill(&store, &mut model, &mut random, 40, 300);
    let now = first_day().start() + 60 * DAY_S;
    let questions: Vec<String> = (0..60).map(|_| question(&mut random, 40, false)).collect();
    let care = [Care::default(), Care { retention_days: None, condense_days: Some(1) }];
    for care in care {
        for _ in 0..2 {
            for text in &questions {
                assert!(compare(&store, &model, text, now, 1 << 26, seed), "{text} was refused");
            }
            store.maintain(now, |_| care, &|| false).unwrap();
        }
    }
    // All windows are gone now; what comes late is counted all the same.
    fill(&store, &mut model, &mut random, 40, 50);
    for text in &questions {
        assert!(compare(&store, &model, text, now, 1 << 26, seed), "{text} was refused");
    }
    let again = store.maintain(now, |_| Care::default(), &|| false).unwrap();
    assert!(again.days > 0 && again.months > 0, "{again:?}");
    assert_eq!(store.maintain(now, |_| Care::default(), &|| false).unwrap(), cidr_engine::Maintained::default());
    for text in &questions {
        assert!(compare(&store, &model, text, now, 1 << 26, seed), "{text} was refused");
    }
}

/// Days go into their month's file as they are condensed, late windows follow them there, old days leave it.
#[test]
fn a_month_takes_its_condensed_days_and_what_comes_late_for_them() {
    for seed in 500..503 {
        let mut random = Random(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let mut model = Model::default();
        for series in SERIES {
            let window = window(&mut random, series, "n1", first_day().start(), first_day().start() + 900, 50);
            store.commit(None, std::slice::from_ref(&window)).unwrap();
            model.add(&window);
        }
        let (mut months, mut late, mut expired) = (0, 0, 0);
        for passed in 1..70 {
            let today = first_day().start() + passed * DAY_S;
            for series in SERIES {
                let start = today - DAY_S + random.below(96) as i64 * 900;
                let node = *random.pick(&NODES);
                let of_day = window(&mut random, series, node, start, start + 900, 30);
                store.commit(None, std::slice::from_ref(&of_day)).unwrap();
                model.add(&of_day);
            }
            if random.one_in(4) {
                fill(&store, &mut model, &mut random, passed, 3);
                late += 1;
            }
            // From the fiftieth day on, a month is kept.
            let retention_days = (passed > 50).then_some(30);
            let care = |_: &str| Care { retention_days, condense_days: Some(1) };
            let done = store.maintain(today + 3_600, care, &|| false).unwrap();
            (months, expired) = (months + done.months, expired + done.expired);
            if retention_days.is_some() {
                let newest = model.windows.iter().map(|window| window.end).max().unwrap();
                let clock = cidr_engine::Day::of_moment((today + 3_600).min(newest + DAY_S)).0;
                model.windows.retain(|window| clock - cidr_engine::Day::of_end(window.end).0 <= 30);
            }
            if random.one_in(8) {
                drop(store);
                if random.one_in(2) {
                    std::fs::remove_file(dir.path().join("manifest")).unwrap();
                    let repaired = Store::repair(dir.path(), &common::QuickDisk, &common::options().owner).unwrap();
                    assert!(repaired.damaged.is_empty(), "seed {seed}: {repaired:?}");
                }
                store = open(dir.path());
            }
            for _ in 0..3 {
                let text = question(&mut random, passed, false);
                assert!(compare(&store, &model, &text, today, 1 << 26, seed), "seed {seed}, day {passed}: {text}");
            }
        }
        let verified = store.verify(&|| false).unwrap();
        assert!(verified.damage.is_empty(), "seed {seed}: {:?}", verified.damage);
        assert!(months > 30 && late > 5 && expired > 30, "seed {seed}: {months} {late} {expired}");
        let kept = std::fs::read_dir(dir.path().join("condensed")).unwrap().count();
        assert!(kept < 3 * 16, "{kept} files of at most 30 days each");
    }
}

#[test]
fn rows_that_do_not_fit_come_in_passes() {
    let seed = 99;
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut model = Model::default();
    let rows = (0..30_000).map(|_| {
        let bits = 10 << 24 | random.below(1 << 18) as u32;
        (cidr_engine::Address::V4(bits), 1 + random.below(50) as i64)
    });
    let rows: Vec<_> = rows.collect();
    let start = first_day().start();
    let counts = rows.into_iter().collect();
    let window = cidr_engine::Window { series: "spam".into(), node: "n1".into(), start, end: start + 900, counts };
    store.commit(None, std::slice::from_ref(&window)).unwrap();
    model.add(&window);
    for text in [
        "show count for 10.0.0.0/8 in spam order by count",
        "show count for 10.0.0.0/8 in spam cidrsize 8 to 32",
        "show count for 10.0.0.0/8 in spam cidrsize 20 to 32 order by count",
        "show count for 10.0.0.0/8 in spam cidrsize 8 to 32 exclude 10.0.17.3/32 exclude 10.2.0.0/16",
    ] {
        compare(&store, &model, text, start, 200 << 10, seed);
    }
}

#[test]
fn a_trend_over_condensed_days_has_a_row_per_day() {
    let mut random = Random(5);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, &mut Model::default(), &mut random, 6, 120);
    let now = first_day().start() + 30 * DAY_S;
    store.maintain(now, |_| Care { retention_days: None, condense_days: Some(1) }, &|| false).unwrap();
    let ask = |text: &str| {
        let mut out = Vec::new();
        store.query(text, &QueryOptions::at(now), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let trend = ask("show count for 10.0.0.0/8 in union(spam, virus) trend threshold 1");
    let daily = ask("show count for 10.0.0.0/8 in union(spam, virus) cidrsize 8 aggregate daily threshold 1");
    assert!(daily.lines().count() >= 6, "{daily}");
    let counts = |text: &str| text.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(counts(&trend), counts(&daily));
    assert!(trend.starts_with("2026"), "{trend}");
    let refused = store.query(
        "show count for 10.0.0.0/8 in spam node n1 since 20260101",
        &QueryOptions::at(now),
        &mut Vec::new(),
    );
    assert!(refused.unwrap_err().to_string().contains("the day was condensed"));
}

#[test]
fn retention_keeps_whole_days_and_a_jumping_clock_takes_nothing() {
    let mut random = Random(6);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut model = Model::default();
    fill(&store, &mut model, &mut random, 40, 400);
    let care = |_: &str| Care { retention_days: Some(10), condense_days: Some(3) };
    // The newest window is of day 39 or the midnight before; the clock says the year 2040.
    let newest = model.windows.iter().map(|window| window.end).max().unwrap();
    store.maintain(first_day().start() + 5_000 * DAY_S, care, &|| false).unwrap();
    let oldest_kept = cidr_engine::Day::of_moment(newest + DAY_S).0 - 10;
    model.windows.retain(|window| cidr_engine::Day::of_end(window.end).0 >= oldest_kept);
    assert!(!model.windows.is_empty());
    for text in [
        "show count for 0.0.0.0/0 in union(spam, virus, invalid_recipients) cidrsize 8 aggregate daily",
        "show count for ::/0 in spam, virus order by count limit 20",
    ] {
        assert!(compare(&store, &model, text, newest, 1 << 26, 6));
    }
}
