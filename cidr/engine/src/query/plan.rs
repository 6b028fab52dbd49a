//! Which files answer a question: as few as possible, each window exactly once.
//!
//! A day that lies wholly in the asked time is its node and the windows that came after the node was built; runs of days are larger nodes
//! where those fit. "Wholly" is judged by the windows that are really there, so a question about today takes today's merged windows.

use std::sync::Arc;

use super::QueryError;
use crate::language::{CountQuery, DateRange, Moment, Placed, SeriesList, TextError, nearest};
use crate::segment::{Kind, Part};
use crate::store::catalog::{Catalog, DayFiles, DayNode, FileEntry, SeriesFiles};
use crate::time::{Day, LAST_STAMP, Stamp};

/// Windows whose end is after `after` and not after `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Period {
    pub(crate) after: Stamp,
    pub(crate) until: Stamp,
}

impl Period {
    pub(crate) fn of(range: Option<&DateRange>, now: Stamp) -> Self {
        let start = |moment: &Moment| match *moment {
            Moment::Day(day) => day.start(),
            Moment::At(stamp) => stamp,
            Moment::Ago(seconds) => now.saturating_sub(seconds),
        };
        let end = |moment: &Moment| match *moment {
            Moment::Day(day) => day.end(),
            _ => start(moment),
        };
        match range {
            None => Self { after: -1, until: LAST_STAMP },
            Some(DateRange::Since(from)) => Self { after: start(from), until: LAST_STAMP },
            Some(DateRange::FromTo(from, to)) => Self { after: start(from), until: end(to) },
            Some(DateRange::On(moment)) => {
                let day = Day::of_moment(start(moment));
                Self { after: day.start(), until: day.end() }
            }
        }
    }

    pub(crate) fn holds(self, end: Stamp) -> bool {
        self.after < end && end <= self.until
    }

    /// True when all windows from a first to a last end are inside.
    fn holds_all(self, first_end: Stamp, last_end: Stamp) -> bool {
        self.after < first_end && last_end <= self.until
    }

    /// True when none is.
    fn holds_none(self, first_end: Stamp, last_end: Stamp) -> bool {
        last_end <= self.after || self.until < first_end
    }

    /// True when windows of a node may be inside.
    pub(crate) fn touches(self, node: &DayNode) -> bool {
        !self.holds_none(node.ends.first, node.ends.last)
    }

    /// True when all of them are.
    pub(crate) fn holds_node(self, node: &DayNode) -> bool {
        self.holds_all(node.ends.first, node.ends.last)
    }

    /// The part of it that lies on a day.
    pub(crate) fn on(self, day: Day) -> Self {
        Self { after: self.after.max(day.start()), until: self.until.min(day.end()) }
    }

    /// The days that it touches, among those of a series.
    pub(crate) fn days(self) -> std::ops::RangeInclusive<Day> {
        // An empty period must not turn the range around.
        let first = Day::of_moment(self.after.max(0));
        first..=Day::of_end(self.until).max(first)
    }
}

/// A part of the answer.
pub(crate) enum Source {
    /// A file; only the parts of one node when that was asked.
    File(Arc<FileEntry>),
    /// One part of a file: the sum of a packed one, a day of a month.
    Part(Arc<FileEntry>, u16),
    /// The windows in a packed day that are inside the period, of one node when that was asked.
    Inside(Arc<FileEntry>),
    /// Windows of a day, merged in memory.
    Merged(Day, Vec<Arc<FileEntry>>),
}

/// True for the windows of a packed day that count.
pub(crate) fn wanted(window: &Part, period: Period, query: &CountQuery) -> bool {
    period.holds(window.end) && query.node.as_ref().is_none_or(|node| node.value == window.node)
}

/// The files of one series, as the query found them.
pub(crate) struct SeriesPlan {
    pub(crate) name: String,
    pub(crate) files: Arc<SeriesFiles>,
    /// The column that it is counted in.
    pub(crate) column: usize,
}

/// The series of a query, and their columns.
pub(crate) struct Columns {
    pub(crate) names: Vec<String>,
    pub(crate) series: Vec<SeriesPlan>,
}

impl Columns {
    pub(crate) fn resolve(catalog: &Catalog, list: &SeriesList) -> Result<Self, QueryError> {
        let union = matches!(list, SeriesList::Union(_));
        let mut series = Vec::new();
        for (index, name) in list.names().iter().enumerate() {
            let (name, files) = find_series(catalog, name)?;
            series.push(SeriesPlan { name, files, column: if union { 0 } else { index } });
        }
        let names: Vec<String> = series.iter().map(|series| series.name.clone()).collect();
        let names = if union { vec![format!("union({})", names.join(","))] } else { names };
        Ok(Self { names, series })
    }
}

/// A series by its name, or by the only one that differs in case.
fn find_series(catalog: &Catalog, name: &Placed<String>) -> Result<(String, Arc<SeriesFiles>), QueryError> {
    if let Some(files) = catalog.series.get(&name.value) {
        return Ok((name.value.clone(), Arc::clone(files)));
    }
    let mut similar = catalog.series.iter().filter(|(known, _)| known.eq_ignore_ascii_case(&name.value));
    if let (Some((known, files)), None) = (similar.next(), similar.next()) {
        return Ok((known.clone(), Arc::clone(files)));
    }
    let known = || catalog.series.keys().map(String::as_str);
    let mut error =
        TextError::new(format!("there is no series \"{}\"", name.value), name.at.clone()).expecting(known());
    error.hint = nearest(&name.value, known()).map(|word| format!("did you mean \"{word}\"?"));
    Err(QueryError::Text(error))
}

/// The sources of one series for a period.
pub(crate) fn sources(series: &SeriesPlan, period: Period, query: &CountQuery) -> Result<Vec<Source>, QueryError> {
    if period.after >= period.until {
        return Ok(Vec::new());
    }
    let days: Vec<(Day, &Arc<DayFiles>)> =
        series.files.days.range(period.days()).map(|(day, files)| (*day, files)).collect();
    let mut sources = Vec::new();
    if let Some(node) = &query.node {
        for (day, files) in days {
            if node_is_gone(files, period) {
                return Err(condensed(&series.name, day, "counts of single nodes"));
            }
            let has = |packed: &&DayNode| packed.file.record.nodes.contains(&node.value);
            let packed = files.packed().filter(|packed| period.touches(packed)).filter(has);
            sources.extend(packed.map(|packed| Source::Inside(Arc::clone(&packed.file))));
            let windows = files.windows.iter().map(|window| &window.file);
            let wanted =
                windows.filter(|file| period.holds(file.record.end) && file.record.nodes.contains(&node.value));
            sources.extend(wanted.map(|file| Source::File(Arc::clone(file))));
        }
        return Ok(sources);
    }
    for step in cover(&series.files, &days, period) {
        match step {
            Step::Span(file) => sources.push(Source::Part(file, 0)),
            Step::Day(at) => day_detail(series, days[at].0, days[at].1, period, &mut sources)?,
        }
    }
    for (day, files) in days {
        let fresh: Vec<_> = files.uncovered().filter(|file| period.holds(file.record.end)).cloned().collect();
        push_windows(day, files.uncovered().count(), fresh, &mut sources);
    }
    Ok(sources)
}

/// True when windows inside the period were given up.
fn node_is_gone(files: &DayFiles, period: Period) -> bool {
    files.condensed && files.node.as_ref().is_some_and(|node| period.touches(node))
}

/// Windows as they are, or merged when they are all that the day has.
fn push_windows(day: Day, of: usize, windows: Vec<Arc<FileEntry>>, sources: &mut Vec<Source>) {
    if windows.len() > 1 && windows.len() == of {
        sources.push(Source::Merged(day, windows));
    } else {
        sources.extend(windows.into_iter().map(Source::File));
    }
}

/// What the node of a day holds: the node itself, or the windows in it when only some of them are asked.
fn day_detail(
    series: &SeriesPlan,
    day: Day,
    files: &DayFiles,
    period: Period,
    sources: &mut Vec<Source>,
) -> Result<(), QueryError> {
    let Some(node) = &files.node else { return Ok(()) };
    if period.holds_node(node) {
        sources.push(Source::Part(Arc::clone(&node.file), node.part));
    } else if period.touches(node) {
        if files.condensed {
            return Err(condensed(&series.name, day, "parts of a day"));
        }
        sources.extend(files.packed().map(|packed| Source::Inside(Arc::clone(&packed.file))));
        let covered = files.windows.iter().filter(|window| window.covered);
        let inside = covered.filter(|window| period.holds(window.file.record.end));
        sources.extend(inside.map(|window| Source::File(Arc::clone(&window.file))));
    }
    Ok(())
}

pub(crate) fn condensed(series: &str, day: Day, what: &str) -> QueryError {
    QueryError::Condensed { series: series.to_owned(), day, what: what.to_owned() }
}

enum Step {
    Span(Arc<FileEntry>),
    Day(usize),
}

/// The fewest nodes that cover the days: a shortest path from the first day to the last, where a node is a step.
fn cover(files: &SeriesFiles, days: &[(Day, &Arc<DayFiles>)], period: Period) -> Vec<Step> {
    let mut cost: Vec<(u32, Option<Step>, usize)> = (0..=days.len()).map(|_| (u32::MAX, None, 0)).collect();
    cost[0].0 = 0;
    for at in 0..days.len() {
        let (day, next) = (days[at].0, cost[at].0 + 1);
        if next < cost[at + 1].0 {
            cost[at + 1] = (next, Some(Step::Day(at)), at);
        }
        let spans =
            [Kind::Span8, Kind::Month].into_iter().filter_map(|kind| files.spans.get(&(span_start(kind, day), kind)));
        for span in spans.chain(files.months.get(&day.first_of_month())) {
            let (first, last) = span.days();
            let from_first = at == 0 || days[at - 1].0 < first;
            let to = days.partition_point(|(day, _)| *day <= last);
            let asked = period.holds_all(span.record.first_end, span.record.last_end);
            if from_first && asked && is_sum_of(span, &days[at..to]) && next < cost[to].0 {
                cost[to] = (next, Some(Step::Span(Arc::clone(span))), at);
            }
        }
    }
    let (mut steps, mut at) = (Vec::new(), days.len());
    while at > 0 {
        let (_, step, before) = std::mem::take(&mut cost[at]);
        steps.extend(step);
        at = before;
    }
    steps.reverse();
    steps
}

/// True for spans, which go when one of their days changes. A packed month stays when a day that it lacks comes late.
fn is_sum_of(span: &FileEntry, days: &[(Day, &Arc<DayFiles>)]) -> bool {
    let inside = |files: &DayFiles| files.in_month().is_some_and(|node| node.file.record.id == span.record.id);
    span.record.kind != Kind::PackedMonth || days.iter().all(|(_, files)| files.node.is_none() || inside(files))
}

fn span_start(kind: Kind, day: Day) -> Day {
    match kind {
        Kind::Month => day.first_of_month(),
        _ => Day(day.0 - day.0.rem_euclid(8)),
    }
}
