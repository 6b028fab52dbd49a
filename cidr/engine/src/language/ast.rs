//! A query as it was meant, and how it is written back: printing and parsing again gives the same query.

use std::fmt;
use std::ops::Range;

use crate::address::Block;
use crate::time::{Day, Stamp, compact_stamp};

/// A word of the query and where it stood. Two are equal when they say the same, wherever that was.
#[derive(Debug, Clone)]
pub struct Placed<T> {
    /// What was said.
    pub value: T,
    /// Bytes of the query text.
    pub at: Range<usize>,
}

impl<T: PartialEq> PartialEq for Placed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T> Placed<T> {
    /// Something said at a place.
    pub const fn new(value: T, at: Range<usize>) -> Self {
        Self { value, at }
    }
}

/// One thing that can be asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// `show available`
    Available,
    /// `show count for …`
    Count(Box<CountQuery>),
    /// `explain show count for …`: runs the query and says what it touched.
    Explain(Box<CountQuery>),
    /// `cache details`
    CacheDetails,
    /// `help`
    Help,
}

/// `show count for BLOCK in SERIES …`
#[derive(Debug, Clone, PartialEq)]
pub struct CountQuery {
    /// The asked block.
    pub block: Placed<Block>,
    /// Where it is looked up.
    pub series: SeriesList,
    /// When; none: always.
    pub range: Option<DateRange>,
    /// Prefix lengths of the rows; none: single addresses.
    pub sizes: Option<(u8, u8)>,
    /// Blocks that are not counted.
    pub exclude: Vec<Block>,
    /// Only what this node counted.
    pub node: Option<Placed<String>>,
    /// Rows whose first count is lower are left out.
    pub threshold: Option<i64>,
    /// What is summed.
    pub aggregate: Option<Aggregate>,
    /// The order of rows; none: by block.
    pub order: Option<Order>,
    /// Most rows.
    pub limit: Option<u64>,
}

/// Series as one column or as several.
#[derive(Debug, Clone, PartialEq)]
pub enum SeriesList {
    /// `union(a, b)`: one summed column.
    Union(Vec<Placed<String>>),
    /// `a, b`: a column each.
    List(Vec<Placed<String>>),
}

impl SeriesList {
    /// The names in their order.
    pub fn names(&self) -> &[Placed<String>] {
        match self {
            Self::Union(names) | Self::List(names) => names,
        }
    }
}

/// When.
#[derive(Debug, Clone, PartialEq)]
pub enum DateRange {
    /// `from D to D`
    FromTo(Moment, Moment),
    /// `on D`
    On(Moment),
    /// `since D`
    Since(Moment),
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A whole UTC day: its start after `from` and `since`, its end after `to`.
    Day(Day),
    /// A second.
    At(Stamp),
    /// Seconds before now.
    Ago(i64),
}

/// What is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    /// `aggregate`: the whole range.
    Whole,
    /// `aggregate daily`: a row per day and block.
    Daily,
    /// `trend`: a row per window of the asked block.
    Trend,
}

/// The order of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `order by cidr`
    Cidr,
    /// `order by count`: the first column, highest first.
    Count,
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available => f.write_str("show available"),
            Self::Count(query) => write!(f, "{query}"),
            Self::Explain(query) => write!(f, "explain {query}"),
            Self::CacheDetails => f.write_str("cache details"),
            Self::Help => f.write_str("help"),
        }
    }
}

impl fmt::Display for CountQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "show count for {} in {}", self.block.value, self.series)?;
        if let Some(range) = &self.range {
            write!(f, " {range}")?;
        }
        match self.sizes {
            Some((from, to)) if from == to => write!(f, " cidrsize {from}")?,
            Some((from, to)) => write!(f, " cidrsize {from} to {to}")?,
            None => {}
        }
        self.exclude.iter().try_for_each(|block| write!(f, " exclude {block}"))?;
        if let Some(node) = &self.node {
            write!(f, " node {}", node.value)?;
        }
        if let Some(threshold) = self.threshold {
            write!(f, " threshold {threshold}")?;
        }
        f.write_str(match self.aggregate {
            None => "",
            Some(Aggregate::Whole) => " aggregate",
            Some(Aggregate::Daily) => " aggregate daily",
            Some(Aggregate::Trend) => " trend",
        })?;
        f.write_str(match self.order {
            None => "",
            Some(Order::Cidr) => " order by cidr",
            Some(Order::Count) => " order by count",
        })?;
        self.limit.map_or(Ok(()), |limit| write!(f, " limit {limit}"))
    }
}

impl fmt::Display for SeriesList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.names().iter().map(|name| name.value.as_str()).collect();
        match self {
            Self::Union(_) => write!(f, "union({})", names.join(", ")),
            Self::List(_) => f.write_str(&names.join(", ")),
        }
    }
}

impl fmt::Display for DateRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromTo(from, to) => write!(f, "from {from} to {to}"),
            Self::On(day) => write!(f, "on {day}"),
            Self::Since(from) => write!(f, "since {from}"),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day(day) => f.write_str(&day.compact()),
            Self::At(stamp) => f.write_str(&compact_stamp(*stamp)),
            Self::Ago(seconds) => {
                let units = [(604_800, 'w'), (86_400, 'd'), (3_600, 'h'), (60, 'm')];
                let fits = |unit: &&(i64, char)| *seconds != 0 && seconds % unit.0 == 0;
                let (length, letter) = units.iter().find(fits).copied().unwrap_or((1, 's'));
                write!(f, "{}{letter}", seconds / length)
            }
        }
    }
}
