//! Every example of the reference, literally.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use cidr_engine::{Address, Day, Format, QueryOptions, Store, Window};
use common::open;

fn add(store: &Store, series: &str, end: i64, rows: &[(&str, i64)]) {
    let counts = rows.iter().map(|(address, count)| (address.parse::<Address>().unwrap(), *count)).collect();
    let window = Window { series: series.into(), node: "n1".into(), start: end - 900, end, counts };
    store.commit(None, &[window]).unwrap();
}

fn at(date: (i64, i64, i64), hour: i64, minute: i64) -> i64 {
    Day::from_date(date.0, date.1, date.2).unwrap().start() + hour * 3_600 + minute * 60
}

fn ask_as(store: &Store, text: &str, format: Format) -> String {
    let mut out = Vec::new();
    let options = QueryOptions { format, ..QueryOptions::at(at((2008, 6, 10), 21, 0)) };
    store.query(text, &options, &mut out).unwrap_or_else(|error| panic!("{text}: {error}"));
    String::from_utf8(out).unwrap()
}

fn ask(store: &Store, text: &str) -> String {
    ask_as(store, text, Format::Text)
}

/// The store behind the examples.
fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add(&store, "spam", at((2008, 4, 23), 12, 30), &[("10.79.18.1", 35_000), ("10.79.18.2", 7), ("10.80.0.1", 50)]);
    add(&store, "spam", at((2008, 4, 24), 0, 0), &[("10.79.18.1", 217), ("2001:db8::1", 3), ("::ffff:10.79.18.2", 1)]);
    add(&store, "spam", at((2008, 4, 24), 0, 15), &[("10.79.18.2", 100)]);
    add(&store, "spam", at((2008, 6, 10), 20, 15), &[("10.79.18.3", 5), ("10.79.18.2", -8)]);
    add(&store, "virus", at((2008, 4, 23), 12, 30), &[("10.79.18.1", 1_264), ("10.79.18.9", 2)]);
    (dir, store)
}

#[test]
fn show_available() {
    let (_dir, store) = store();
    assert_eq!(
        ask(&store, "show available"),
        "spam : 20080423T123000 => 20080610T201500\nvirus : 20080423T123000 => 20080423T123000\n"
    );
}

#[test]
fn results_look_as_they_did() {
    let (_dir, store) = store();
    // One series, and single addresses without cidrsize.
    let one = ask(&store, "show count for 10.79.18.1 in spam");
    assert_eq!(one, "10.79.18.1/32      :     35217\n");
    // One count per series, comma-separated.
    let two = ask(&store, "show count for 10.79.18.1/32 in spam, virus");
    assert_eq!(two, "10.79.18.1/32 : 35217,1264\n");
    // A union gives one summed column.
    let union = ask(&store, "show count for 10.79.18.1/32 in union(spam,virus)");
    assert_eq!(union, "10.79.18.1/32      :     36481\n");
    let six = ask(&store, "show count for 2001:db8::/32 in spam");
    assert_eq!(six, "2001:db8::1/128    :         3\n");
}

#[test]
fn order_by_count_with_several_series_orders_by_the_first() {
    let (_dir, store) = store();
    let rows = ask(&store, "show count for 10.79.18.0/24 in virus, spam order by count");
    assert_eq!(rows, "10.79.18.1/32 : 1264,35217\n10.79.18.9/32 : 2,0\n10.79.18.2/32 : 0,100\n10.79.18.3/32 : 0,5\n");
}

#[test]
fn threshold_keeps_rows_by_their_first_count() {
    let (_dir, store) = store();
    let rows = ask(&store, "show count for 10.0.0.0/8 in spam, virus threshold 50");
    assert_eq!(rows, "10.79.18.1/32 : 35217,1264\n10.79.18.2/32 : 100,0\n10.80.0.1/32 : 50,0\n");
}

#[test]
fn a_window_belongs_to_the_day_in_which_it_ends_midnight_included() {
    let (_dir, store) = store();
    let on = ask(&store, "show count for 10.79.18.0/24 in spam on 20080423");
    assert_eq!(on, "10.79.18.1/32      :     35217\n10.79.18.2/32      :         8\n");
    let next = ask(&store, "show count for 10.79.18.0/24 in spam on 2008-04-24");
    assert_eq!(next, "10.79.18.2/32      :       100\n");
    for same in [
        "from 20080424 to 20080424",
        "from 20080424T000000 to 20080425T000000",
        "from 20080424T02:00+02:00 to 20080424",
    ] {
        assert_eq!(ask(&store, &format!("show count for 10.79.18.0/24 in spam {same}")), next, "{same}");
    }
}

#[test]
fn dates_with_and_without_dashes_time_and_zone() {
    let (_dir, store) = store();
    let expected = "10.79.18.2/32      :       100\n";
    for range in [
        "from 20080424T000000 to 20080424T120000",
        "from 2008-04-24T00:00:00Z to 2008-04-24T12:00:00Z",
        "from 2008-04-24T02:00:00+02:00 to 2008-04-24T14:00:00+02:00",
        "since 20080424 threshold 1 exclude 10.79.18.3 exclude 10.79.18.1 on-is-not-a-clause",
    ] {
        let text = format!("show count for 10.79.18.0/24 in spam {range}");
        match range.contains("on-is-not") {
            false => assert_eq!(ask(&store, &text), expected, "{range}"),
            true => assert!(store.query(&text, &QueryOptions::at(0), &mut Vec::new()).is_err()),
        }
    }
}

#[test]
fn cidrsize_a_to_b_is_every_length_from_a_to_b() {
    let (_dir, store) = store();
    let rows = ask(&store, "show count for 10.0.0.0/8 in spam cidrsize 8 to 10 on 20080423");
    assert_eq!(
        rows,
        "10.0.0.0/8         :     35275\n10.0.0.0/9         :     35275\n10.64.0.0/10       :     35275\n"
    );
    let rows = ask(&store, "show count for 10.0.0.0/8 in spam cidrsize 15 to 16 on 20080423");
    assert_eq!(
        rows,
        "10.78.0.0/15       :     35225\n10.79.0.0/16       :     35225\n10.80.0.0/15       :        50\n10.80.0.0/16       :        50\n"
    );
}

#[test]
fn cidrsize_shorter_than_the_asked_block_is_an_error_that_says_so() {
    let (_dir, store) = store();
    let text = "show count for 10.0.0.0/8 in spam cidrsize 7";
    let error = store.query(text, &QueryOptions::at(0), &mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "cidrsize 7 is shorter than the asked block 10.0.0.0/8; here could stand: 8 to 32");
}

#[test]
fn aggregate_daily_gives_a_row_per_day_and_block() {
    let (_dir, store) = store();
    let rows = ask(&store, "show count for 10.79.0.0/16 in spam, virus cidrsize 16 aggregate daily");
    assert_eq!(
        rows,
        "20080423 10.79.0.0/16 : 35225,1266\n20080424 10.79.0.0/16 : 100,0\n20080610 10.79.0.0/16 : -3,0\n"
    );
    let whole = ask(&store, "show count for 10.79.0.0/16 in spam, virus cidrsize 16 aggregate");
    assert_eq!(whole, "10.79.0.0/16 : 35322,1266\n");
}

#[test]
fn counts_may_be_lowered() {
    let (_dir, store) = store();
    let rows = ask(&store, "show count for 10.79.18.2/31 in spam since 20080501 order by count");
    assert_eq!(rows, "10.79.18.3/32      :         5\n10.79.18.2/32      :        -8\n");
}

#[test]
fn words_are_free_in_case_and_space() {
    let (_dir, store) = store();
    let expected = ask(&store, "show count for 10.79.18.0/24 in union(spam,virus) order by count limit 2");
    assert_eq!(expected.lines().count(), 2);
    let text = " SHOW\tCount  For 10.79.18.0/24\nIN Union ( Spam ,virus )LIMIT 2 Order BY COUNT ; ";
    assert_eq!(ask(&store, text), expected);
}

#[test]
fn trend_json_and_csv() {
    let (_dir, store) = store();
    let text = "show count for 10.79.0.0/16 in spam, virus trend from 20080423 to 20080424";
    assert_eq!(
        ask(&store, text),
        "20080423T123000 10.79.0.0/16 : 35007,1266\n20080424T000000 10.79.0.0/16 : 218,0\n20080424T001500 10.79.0.0/16 : 100,0\n"
    );
    assert_eq!(
        ask_as(&store, text, Format::Csv).lines().take(2).collect::<Vec<_>>(),
        ["start,end,block,spam,virus", "2008-04-23T12:15:00Z,2008-04-23T12:30:00Z,10.79.0.0/16,35007,1266"]
    );
    let json: serde_json::Value = serde_json::from_str(&ask_as(&store, text, Format::Json)).unwrap();
    assert_eq!(json["columns"], serde_json::json!(["spam", "virus"]));
    assert_eq!(json["rows"][1]["counts"], serde_json::json!([218, 0]));
    let daily = "show count for 10.79.18.1 in union(spam, virus) aggregate daily";
    assert_eq!(ask_as(&store, daily, Format::Csv), "day,block,\"union(spam,virus)\"\n2008-04-23,10.79.18.1/32,36481\n");
    let json: serde_json::Value = serde_json::from_str(&ask_as(&store, daily, Format::Json)).unwrap();
    assert_eq!(json["rows"][0]["day"], "2008-04-23");
    let empty: serde_json::Value =
        serde_json::from_str(&ask_as(&store, "show count for 9.9.9.9 in spam", Format::Json)).unwrap();
    assert_eq!(empty["rows"], serde_json::json!([]));
    let available: serde_json::Value = serde_json::from_str(&ask_as(&store, "show available", Format::Json)).unwrap();
    assert_eq!(available[0]["first"], "2008-04-23T12:30:00Z");
}

#[test]
fn explain_says_what_was_touched() {
    let (_dir, store) = store();
    store.maintain(at((2008, 6, 11), 0, 0), |_| cidr_engine::Care::default(), &|| false).unwrap();
    let text = ask(&store, "explain show count for 10.79.18.1 in spam from 20080423 to 20080424");
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        "query   show count for 10.79.18.1/32 in spam from 20080423 to 20080424",
        "windows ending after 20080423T000000, until 20080425T000000",
        // The two days are all of the series in these eight.
        "8 days  condensed/spam.20080423.8d.",
        "read    1 blocks in 1 files",
        "gave    1 rows",
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{text}");
    }
    let json = ask_as(&store, "cache details", Format::Json);
    assert!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["open_files"].as_u64().unwrap() > 0);
    assert!(ask(&store, "HELP").contains("show available"));
}
