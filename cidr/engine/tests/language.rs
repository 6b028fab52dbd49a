//! The query language: what is printed parses to the same, and whatever is wrong is pointed at.
#![allow(clippy::unwrap_used, missing_docs)]

use cidr_engine::language::{Aggregate, CountQuery, DateRange, Moment, Order, Placed, SeriesList, Statement, parse};
use cidr_engine::{Block, Day, Family, LAST_STAMP};
use proptest::prelude::*;

fn block() -> impl Strategy<Value = Block> {
    let v4 = (any::<u32>(), 0_u8..=32).prop_map(|(bits, length)| Block::new(Family::V4, bits.into(), length));
    let v6 = (any::<u128>(), 0_u8..=128).prop_map(|(bits, length)| Block::new(Family::V6, bits, length));
    // What is mapped into IPv6 prints as IPv6 only above /96, where it is not mapped.
    let is_itself = |block: &Block| block.to_string().parse() == Ok(*block);
    prop_oneof![v4, v6].prop_filter("mapped", is_itself)
}

fn name() -> impl Strategy<Value = Placed<String>> {
    "[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}".prop_map(|name| Placed::new(name, 0..0))
}

fn names() -> impl Strategy<Value = Vec<Placed<String>>> {
    proptest::collection::vec(name(), 1..4)
        .prop_filter("twice", |names| (1..names.len()).all(|at| !names[..at].contains(&names[at])))
}

fn moment() -> impl Strategy<Value = Moment> {
    prop_oneof![(0_i64..2_932_896).prop_map(|day| Moment::Day(Day(day))), (0_i64..=LAST_STAMP).prop_map(Moment::At),]
}

fn ago() -> impl Strategy<Value = Moment> {
    prop_oneof![0_i64..200, 0_i64..10_000_000, (0_i64..5_000).prop_map(|hours| hours * 3_600)].prop_map(Moment::Ago)
}

fn range() -> impl Strategy<Value = DateRange> {
    let since = prop_oneof![moment(), ago()];
    let from_to = (moment(), moment()).prop_map(|(a, b)| {
        let key = |moment: &Moment| match moment {
            Moment::Day(day) => day.start(),
            Moment::At(stamp) | Moment::Ago(stamp) => *stamp,
        };
        if key(&a) <= key(&b) { DateRange::FromTo(a, b) } else { DateRange::FromTo(b, a) }
    });
    prop_oneof![moment().prop_map(DateRange::On), since.prop_map(DateRange::Since), from_to]
}

prop_compose! {
    fn query()(
        block in block(),
        names in names(),
        union in any::<bool>(),
        range in proptest::option::of(range()),
        sizes in proptest::option::of((0_u8..=128, 0_u8..=128)),
        holes in proptest::collection::vec((any::<u128>(), 0_u8..=128), 0..3),
        node in proptest::option::of(name()),
        threshold in proptest::option::of(any::<i64>()),
        aggregate in prop_oneof![Just(None), Just(Some(Aggregate::Whole)), Just(Some(Aggregate::Daily)), Just(Some(Aggregate::Trend))],
        order in prop_oneof![Just(None), Just(Some(Order::Cidr)), Just(Some(Order::Count))],
        limit in proptest::option::of(0_u64..=i64::MAX as u64),
    ) -> CountQuery {
        let bits = block.family().bits();
        let sizes = sizes.map(|(a, b)| {
            let fit = |length: u8| block.length() + length % (bits - block.length() + 1);
            (fit(a).min(fit(b)), fit(a).max(fit(b)))
        });
        let trend = aggregate == Some(Aggregate::Trend);
        let exclude = holes.into_iter().map(|(bits, length)| Block::new(block.family(), bits, length));
        let exclude = exclude.filter(|block| block.to_string().parse() == Ok(*block)).collect();
        CountQuery {
            block: Placed::new(block, 0..0),
            series: if union { SeriesList::Union(names) } else { SeriesList::List(names) },
            range,
            sizes: sizes.filter(|_| !trend),
            exclude,
            node,
            threshold,
            aggregate,
            order: order.filter(|_| !trend),
            limit,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_printed_parses_to_the_same(query in query(), explain in any::<bool>(), upper in any::<bool>()) {
        let query = Box::new(query);
        let statement = if explain { Statement::Explain(query) } else { Statement::Count(query) };
        let text = statement.to_string();
        let parsed = parse(&text);
        prop_assert_eq!(parsed.as_ref(), Ok(&statement), "{}", text);
        if upper {
            // Names keep their case: only words are free.
            let spaced = text.replace(' ', " \t ").replace("show count", "SHOW COUNT").replace(" in ", " IN ");
            prop_assert_eq!(parse(&spaced), Ok(statement), "{}", spaced);
        }
    }

    #[test]
    fn any_text_is_answered_and_pointed_at(text in any_text()) {
        if let Err(error) = parse(&text) {
            prop_assert!(error.at.start <= error.at.end && error.at.end <= text.len());
            prop_assert!(text.get(error.at.clone()).is_some(), "the place lies between characters");
            let shown = error.render(&text);
            prop_assert!(shown.starts_with("error: ") && shown.len() < 4_000, "{}", shown);
        }
    }
}

/// Words of the language in any order, with noise.
fn any_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("show count for"),
        Just("10.0.0.0/8"),
        Just("in"),
        Just("spam"),
        Just("union("),
        Just(")"),
        Just(","),
        Just("from"),
        Just("to"),
        Just("20080423"),
        Just("2h"),
        Just("cidrsize"),
        Just("order by"),
        Just("aggregate"),
        Just("limit"),
        Just("-1"),
        Just("99999999999999999999"),
        Just("é("),
        Just("::1"),
        Just("trend"),
        Just("\u{0}"),
    ];
    let words = proptest::collection::vec(word.prop_map(str::to_owned), 0..14).prop_map(|words| words.join(" "));
    prop_oneof![words, ".{0,60}", "show count for 10.0.0.0/8 in spam .{0,40}"]
}

fn rendered(text: &str) -> String {
    parse(text).unwrap_err().render(text)
}

#[test]
fn errors_point_at_the_word_and_list_what_could_stand_there() {
    assert_eq!(
        rendered("show count for 10.0.0.0/8 in spam form 20080423"),
        "error: \"form\" cannot stand here
  show count for 10.0.0.0/8 in spam form 20080423
                                    ^^^^
  here could stand: aggregate, cidrsize, exclude, from, last, limit, node, on, order by, since, threshold, trend
hint: did you mean \"from\"?
"
    );
    assert_eq!(
        rendered("show cuont for 10.0.0.0/8"),
        "error: \"cuont\" cannot stand here
  show cuont for 10.0.0.0/8
       ^^^^^
  here could stand: available, count
hint: did you mean \"count\"?
"
    );
    assert_eq!(
        rendered("show count for 10.0.0.0/8 in union(spam virus)"),
        "error: \"virus\" cannot stand here
  show count for 10.0.0.0/8 in union(spam virus)
                                          ^^^^^
  here could stand: ,, )
"
    );
    assert_eq!(
        rendered("show count for 10.0.0.0/8 in"),
        "error: the query ends here, but it is not complete
  show count for 10.0.0.0/8 in
                              ^
  here could stand: a series
"
    );
    assert_eq!(
        rendered("show count for 10.0.0.0/33 in spam"),
        "error: a prefix of IPv4 has 0 to 32 bits, not \"33\"
  show count for 10.0.0.0/33 in spam
                 ^^^^^^^^^^^
  here could stand: a block such as 10.0.0.0/8 or 2001:db8::/32
"
    );
    for (text, part) in [
        ("", "here could stand: show, explain, cache, help"),
        ("show available now", "here could stand: the end"),
        ("show count for 10.0.0.0/8 in spam limit 1 limit 2", "the limit is given twice"),
        ("show count for 10.0.0.0/8 in spam on 20080423 since 2h", "the time is given twice"),
        ("show count for 10.0.0.0/8 in spam, spam", "the series spam is named twice"),
        ("show count for 10.0.0.0/8 in spam from 20080424 to 20080423", "the time ends before it begins"),
        ("show count for 10.0.0.0/8 in spam from 1h to 2h", "the time ends before it begins"),
        ("show count for 10.0.0.0/8 in spam on 2h", "\"on\" takes a day"),
        ("show count for 10.0.0.0/8 in spam last 20080423", "\"last\" takes a length of time"),
        ("show count for 10.0.0.0/8 in spam on 20080230", "there is no 2008-02-30"),
        ("show count for 10.0.0.0/8 in spam cidrsize 33", "cidrsize 33 is longer than an address"),
        ("show count for 10.0.0.0/8 in spam cidrsize 16 to 9", "cidrsize 9 is shorter than the first"),
        ("show count for 10.0.0.0/8 in spam limit 99999999999999999999", "is out of range"),
        ("show count for 10.0.0.0/8 in spam limit -1", "is out of range"),
        ("show count for 10.0.0.0/8 in spam exclude 2001:db8::/32", "is IPv6, but 10.0.0.0/8 is not"),
        ("show count for 10.0.0.0/8 in spam cidrsize 9 trend", "trend and cidrsize do not go together"),
        ("show count for 10.0.0.0/8 in spam order by coutn", "did you mean \"count\"?"),
        ("show count for 10.0.0.0/8 in spam aggregate dayly", "did you mean \"daily\"?"),
        ("show count for spam in spam", "\"spam\" is not an IPv4 or IPv6 address"),
    ] {
        let shown = rendered(text);
        assert!(shown.contains(part), "{text}:\n{shown}");
    }
}

#[test]
fn hostile_texts_end_quickly_and_shortly() {
    let deep = format!("show count for 10.0.0.0/8 in {}", "union(".repeat(10_000));
    let wide = format!("show count for 10.0.0.0/8 in {}", vec!["a"; 30_000].join(","));
    let many: Vec<String> = (0..100).map(|n| format!("s{n}")).collect();
    let many = format!("show count for 10.0.0.0/8 in {}", many.join(","));
    let holes = format!("show count for 10.0.0.0/8 in spam {}", "exclude 10.0.0.1 ".repeat(1_000));
    let long = "x".repeat(60_000);
    let huge = "show ".repeat(1 << 20);
    for text in [deep, wide, many, holes, long, huge] {
        let error = parse(&text).unwrap_err();
        assert!(error.render(&text).len() < 2_000, "{}", error.render(&text).len());
        assert!(error.to_string().len() < 1_000);
    }
}

#[test]
fn the_grammar_of_the_reference_is_accepted_whole() {
    for text in [
        "show available",
        "show count for 10.0.0.0/8 in spam",
        "show count for 10.0.0.0/8 in spam,virus",
        "show count for 10.0.0.0/8 in union(spam,virus)",
        "show count for 10.0.0.0/8 in spam from 20080423 to 20080424T120000",
        "show count for 10.0.0.0/8 in spam on 2008-04-23",
        "show count for 10.0.0.0/8 in spam since 2008-04-23T12:00:00Z",
        "show count for 10.0.0.0/8 in spam cidrsize 24",
        "show count for 10.0.0.0/8 in spam cidrsize 8 to 24",
        "show count for 10.0.0.0/8 in spam order by cidr",
        "show count for 10.0.0.0/8 in spam limit 10 order by count aggregate daily threshold 5 cidrsize 24 on 20080423",
        "show count for 10.0.0.0/8 in spam aggregate",
        "show count for 10.0.0.0/8 in union",
        "show count for 10.0.0.0/8 in from from 20080423 to 20080424",
        "cache details",
        "help",
        "explain show count for ::/0 in spam since 2h node n1 exclude 2001:db8::/32",
        "show count for 10.1.0.0/16 in spam trend last 30m",
    ] {
        assert!(parse(text).is_ok(), "{}", rendered(text));
    }
}
