//! Answering questions: plan, walk, print. A query sees the files that there were when it began, whatever is written meanwhile.

mod explain;
mod output;
mod plan;
mod rows;
mod run;

use std::io::{self, Write};
use std::sync::Arc;

use crate::address::{Block, Family};
use crate::error::Error;
use crate::language::{Aggregate, CountQuery, HELP, Order, Statement, TextError, parse};
use crate::merge::Summer;
use crate::segment::{Segment, TableKey};
use crate::store::Store;
use crate::store::catalog::FileEntry;
use crate::time::{Day, Stamp, compact_stamp};
use crate::work::Work;

use explain::{Touched, WindowPart};
pub use output::Format;
use output::Output;
use plan::{Columns, Period, Source, wanted};
pub(crate) use rows::merge_all;
use rows::{Part, Sources};
use run::{Ask, Candidate, Top};

/// Memory of a query unless told otherwise.
pub const DEFAULT_MEMORY_BYTES: usize = 64 << 20;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Detail was asked that was given up for sums over days.
    #[error("{what} of {series} on {day} are gone: the day was condensed; ask for whole days and all nodes")]
    Condensed {
        /// The series.
        series: String,
        /// The day.
        day: Day,
        /// What was asked.
        what: String,
    },
    /// More would be needed than a query may use.
    #[error("this needs more than {} MiB of memory; ask for less time, fewer series or a smaller block", limit_bytes >> 20)]
    Memory {
        /// The limit.
        limit_bytes: usize,
    },
    /// More rows than the caller takes.
    #[error("the answer has more than {limit} rows; ask for a smaller block, larger cidrsizes or a limit")]
    Rows {
        /// The limit.
        limit: u64,
    },
    /// A file.
    #[error(transparent)]
    Store(#[from] Error),
    /// Whoever reads the answer has gone.
    #[error("cannot write the answer")]
    Output(#[source] io::Error),
    /// As many rows as were asked.
    #[doc(hidden)]
    #[error("enough")]
    Enough,
}

impl QueryError {
    /// True when the caller asked to stop.
    pub const fn is_cancelled(&self) -> bool {
        matches!(self, Self::Store(Error::Cancelled))
    }
}

/// How a question is answered.
pub struct QueryOptions<'a> {
    /// What `2h` is counted back from.
    pub now: Stamp,
    /// Memory that the query may use.
    pub memory_bytes: usize,
    /// Most rows of an answer; more end it with an error. What the query itself limits ends quietly.
    pub max_rows: u64,
    /// How rows are printed.
    pub format: Format,
    /// Asked about every microsecond; true ends the query.
    pub stop: &'a dyn Fn() -> bool,
}

impl QueryOptions<'_> {
    /// Text, 64 MiB, never stopped.
    pub fn at(now: Stamp) -> Self {
        Self { now, memory_bytes: DEFAULT_MEMORY_BYTES, max_rows: u64::MAX, format: Format::Text, stop: &|| false }
    }
}

/// What answering took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Rows given out.
    pub rows: u64,
    /// Blocks read.
    pub blocks: u64,
    /// The most memory that was in use at a time.
    pub memory_bytes: usize,
}

/// What a row is about, beside its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// All of the asked time.
    Range,
    /// A day of it.
    Day(Day),
    /// A window, or a day whose windows are gone.
    Window {
        /// Its end.
        end: Stamp,
        /// Its start.
        start: Stamp,
    },
}

/// A row of an answer.
#[derive(Debug)]
pub struct Row<'a> {
    /// When.
    pub when: When,
    /// The block.
    pub block: Block,
    /// A count per column.
    pub counts: &'a [i64],
}

/// Takes rows until there are enough.
pub(crate) struct RowSink<'a> {
    each: &'a mut dyn FnMut(&Row<'_>) -> Result<(), QueryError>,
    left: u64,
    /// Rows after which the answer is too long, whatever the query says.
    max_rows: u64,
    work: &'a Work<'a>,
}

impl RowSink<'_> {
    fn row(&mut self, row: &Row<'_>) -> Result<(), QueryError> {
        if self.left == 0 {
            return Err(QueryError::Enough);
        }
        self.left -= 1;
        if self.work.rows() >= self.max_rows {
            return Err(QueryError::Rows { limit: self.max_rows });
        }
        self.work.row();
        (self.each)(row)
    }
}

impl Store {
    /// Parses and answers a question.
    pub fn query(&self, text: &str, options: &QueryOptions<'_>, out: &mut dyn Write) -> Result<Outcome, QueryError> {
        match parse(text)? {
            Statement::Count(query) => {
                let columns = Columns::resolve(&self.catalog(), &query.series)?;
                let mut output = Output::begin(options.format, &columns.names, query.aggregate, out)?;
                let outcome = self.run(&query, &columns, options, None, &mut |row| output.row(row))?;
                output.end()?;
                Ok(outcome)
            }
            Statement::Explain(query) => {
                let columns = Columns::resolve(&self.catalog(), &query.series)?;
                let touched = Touched::default();
                let outcome = self.run(&query, &columns, options, Some(&touched), &mut |_| Ok(()))?;
                let period = Period::of(query.range.as_ref(), options.now);
                touched.print(&query, period, outcome, out).map_err(QueryError::Output)?;
                Ok(outcome)
            }
            Statement::Available => output::available(&self.available(), options.format, out),
            Statement::CacheDetails => output::cache(self.files().usage(), self.merged().usage(), options.format, out),
            Statement::Help => {
                out.write_all(HELP.as_bytes()).map_err(QueryError::Output)?;
                Ok(Outcome::default())
            }
        }
    }

    /// Answers a parsed question row by row; `each` may end it with an error.
    pub fn rows(
        &self,
        query: &CountQuery,
        options: &QueryOptions<'_>,
        each: &mut dyn FnMut(&Row<'_>) -> Result<(), QueryError>,
    ) -> Result<Outcome, QueryError> {
        let columns = Columns::resolve(&self.catalog(), &query.series)?;
        self.run(query, &columns, options, None, each)
    }

    fn run(
        &self,
        query: &CountQuery,
        columns: &Columns,
        options: &QueryOptions<'_>,
        touched: Option<&Touched>,
        each: &mut dyn FnMut(&Row<'_>) -> Result<(), QueryError>,
    ) -> Result<Outcome, QueryError> {
        let work = Work::new(options.stop, options.memory_bytes);
        let period = Period::of(query.range.as_ref(), options.now);
        let left = query.limit.unwrap_or(u64::MAX);
        let mut sink = RowSink { each, left, max_rows: options.max_rows, work: &work };
        let question = Question { store: self, query, columns, period, work: &work, touched };
        let answered = match query.block.value.family() {
            Family::V4 => question.answer::<u32>(&mut sink),
            Family::V6 => question.answer::<u128>(&mut sink),
        };
        match answered {
            Ok(()) | Err(QueryError::Enough) => {}
            Err(error) => return Err(error),
        }
        if let Some(touched) = touched {
            touched.take_tally(&work);
        }
        Ok(Outcome { rows: work.rows(), blocks: work.blocks(), memory_bytes: work.memory_peak() })
    }
}

/// A question on its way to an answer.
struct Question<'a> {
    store: &'a Store,
    query: &'a CountQuery,
    columns: &'a Columns,
    period: Period,
    work: &'a Work<'a>,
    touched: Option<&'a Touched>,
}

impl<'a> Question<'a> {
    fn answer<K: TableKey>(&self, sink: &mut RowSink<'_>) -> Result<(), QueryError> {
        if let Some(touched) = self.touched {
            self.work.tally();
            touched.begin();
        }
        match (self.query.aggregate, self.query.order) {
            (Some(Aggregate::Trend), _) => self.trend::<K>(sink),
            (_, Some(Order::Count)) => self.by_count::<K>(sink),
            _ => self.by_block::<K>(sink),
        }
    }

    fn ask(&self, when: When) -> Ask {
        let bits = self.query.block.value.family().bits();
        let sizes = self.query.sizes.unwrap_or((bits, bits));
        Ask { block: self.query.block.value, sizes, threshold: self.query.threshold, when }
    }

    /// The periods that rows are about: the whole, or its days.
    fn periods(&self) -> Vec<(When, Period)> {
        if self.query.aggregate != Some(Aggregate::Daily) {
            return vec![(When::Range, self.period)];
        }
        let mut days: Vec<Day> = Vec::new();
        for series in &self.columns.series {
            days.extend(series.files.days.range(self.period.days()).map(|(day, _)| *day));
        }
        days.sort_unstable();
        days.dedup();
        days.into_iter().map(|day| (When::Day(day), self.period.on(day))).collect()
    }

    fn by_block<K: TableKey>(&self, sink: &mut RowSink<'_>) -> Result<(), QueryError> {
        let mut summer = Summer::new(self.work);
        for (when, period) in self.periods() {
            let mut sources = self.sources::<K>(period)?;
            run::by_block(&self.ask(when), &mut sources, &mut summer, sink)?;
        }
        Ok(())
    }

    /// In passes, when not all rows fit: each pass gives out the best of those that are left.
    fn by_count<K: TableKey>(&self, sink: &mut RowSink<'_>) -> Result<(), QueryError> {
        let columns = self.columns.names.len();
        let mut below: Option<Candidate> = None;
        let mut counts = Vec::new();
        loop {
            let fitting = self.work.left() / 2 / Top::row_bytes(columns);
            let most = usize::try_from(sink.left).unwrap_or(usize::MAX).min(fitting);
            let mut top = Top::new(most, below.take());
            let mut summer = Summer::new(self.work);
            for (when, period) in self.periods() {
                let mut sources = self.sources::<K>(period)?;
                run::by_count(&self.ask(when), &mut sources, &mut summer, &mut top)?;
            }
            let rows = top.into_rows();
            let held = rows.len() * Top::row_bytes(columns);
            self.work.take(held).map_err(|_| QueryError::Memory { limit_bytes: self.work.limit() })?;
            for row in &rows {
                row.emit(&mut counts, sink)?;
            }
            self.work.give_back(held);
            if rows.len() < most || sink.left == 0 {
                return Ok(());
            }
            below = rows.into_iter().next_back();
        }
    }

    fn trend<K: TableKey>(&self, sink: &mut RowSink<'_>) -> Result<(), QueryError> {
        let windows = explain::windows(self.columns, self.period, self.query, self.store.files())?;
        let mut counts = vec![0; self.columns.names.len()];
        let mut summer = Summer::new(self.work);
        for ((end, start), files) in windows {
            let mut parts = self.no_parts();
            for WindowPart { column, file, part } in files {
                match part {
                    None => self.open_file(&file, &mut parts[column])?,
                    Some(part) => parts[column].push((self.open(&file)?, part)),
                }
            }
            let sources = Sources::<K>::new(parts, self.query.block.value, &self.query.exclude, self.work);
            run::sum_of(&sources, &mut summer, &mut counts)?;
            if self.query.threshold.is_none_or(|threshold| counts[0] >= threshold) {
                let block = self.query.block.value;
                sink.row(&Row { when: When::Window { end, start }, block, counts: &counts })?;
            }
        }
        Ok(())
    }

    fn no_parts(&self) -> Vec<Vec<Part>> {
        vec![Vec::new(); self.columns.names.len()]
    }

    /// Opens what a period needs.
    fn sources<K: TableKey>(&self, period: Period) -> Result<Sources<'a, K>, QueryError> {
        let mut parts = self.no_parts();
        for series in &self.columns.series {
            for source in plan::sources(series, period, self.query)? {
                match source {
                    Source::File(file) => self.open_file(&file, &mut parts[series.column])?,
                    Source::Part(file, part) => parts[series.column].push((self.open(&file)?, part)),
                    Source::Inside(file) => {
                        let segment = self.open(&file)?;
                        let windows = segment.meta().windows().filter(|(_, window)| wanted(window, period, self.query));
                        parts[series.column].extend(windows.map(|(part, _)| (Arc::clone(&segment), part)));
                    }
                    Source::Merged(day, files) => {
                        let merged =
                            self.store.merged().get(&series.name, day, &files, self.store.files(), self.work)?;
                        if let Some(touched) = self.touched {
                            touched.merged(&series.name, day, files.len(), &merged);
                        }
                        parts[series.column].push((merged, 0));
                    }
                }
            }
        }
        Ok(Sources::new(parts, self.query.block.value, &self.query.exclude, self.work))
    }

    fn open(&self, file: &FileEntry) -> Result<Arc<Segment>, QueryError> {
        let segment = file.open(self.store.files())?;
        if let Some(touched) = self.touched {
            touched.file(file, &segment);
        }
        Ok(segment)
    }

    fn open_file(&self, file: &FileEntry, parts: &mut Vec<Part>) -> Result<(), QueryError> {
        let segment = self.open(file)?;
        for (index, part) in segment.meta().parts.iter().enumerate() {
            if self.query.node.as_ref().is_none_or(|node| node.value == part.node) {
                parts.push((Arc::clone(&segment), index as u16));
            }
        }
        Ok(())
    }
}

/// `2008-04-23T12:30:00Z`.
pub(crate) fn iso_stamp(stamp: Stamp) -> String {
    let text = compact_stamp(stamp);
    let (day, time) = (Day::of_moment(stamp), &text[9..]);
    format!("{day}T{}:{}:{}Z", &time[..2], &time[2..4], &time[4..])
}
