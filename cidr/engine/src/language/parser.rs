//! From text to a query. The grammar is flat, so one pass over the words does it, whatever somebody sends.

use std::ops::Range;

use super::ast::{Aggregate, CountQuery, DateRange, Moment, Order, Placed, SeriesList, Statement};
use super::error::{TextError, shortened};
use super::moment::{self, parse_moment};
use crate::address::Block;

/// Longest query text. Longer ones are mistakes or worse.
pub const MAX_TEXT_BYTES: usize = 64 << 10;
/// Most series of a query: each is a column and at least a cursor.
pub const MAX_SERIES: usize = 64;
/// Most excluded blocks: each splits the walk once.
pub const MAX_EXCLUDES: usize = 256;

/// Parses a query.
pub fn parse(text: &str) -> Result<Statement, TextError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(TextError::new(format!("a query has at most {MAX_TEXT_BYTES} bytes"), 0..0));
    }
    Parser { text, words: words(text), at: 0 }.statement()
}

/// Words, brackets and commas with their places.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut open: Option<usize> = None;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        let sign = matches!(c, '(' | ')' | ',');
        if sign || c.is_whitespace() {
            words.extend(open.take().map(|start| start..at));
            words.extend(sign.then(|| at..at + 1));
        } else if open.is_none() {
            open = Some(at);
        }
    }
    // The shell's habit of ending with a semicolon is harmless.
    if let Some(last) = words.last_mut()
        && text[last.clone()].ends_with(';')
    {
        last.end -= 1;
        if last.start == last.end {
            words.pop();
        }
    }
    words
}

struct Parser<'a> {
    text: &'a str,
    words: Vec<Range<usize>>,
    at: usize,
}

type Parsed<T> = Result<T, TextError>;

impl<'a> Parser<'a> {
    /// The current word; empty at the end.
    fn word(&self) -> &'a str {
        &self.text[self.place()]
    }

    fn place(&self) -> Range<usize> {
        let end = self.words.last().map_or(0, |last| last.end);
        self.words.get(self.at).cloned().unwrap_or(end..end)
    }

    fn is(&self, word: &str) -> bool {
        self.word().eq_ignore_ascii_case(word)
    }

    /// Takes a word that may or may not be there.
    fn eat(&mut self, word: &str) -> bool {
        let found = self.at < self.words.len() && self.is(word);
        self.at += usize::from(found);
        found
    }

    fn need(&mut self, word: &str) -> Parsed<()> {
        if self.eat(word) { Ok(()) } else { Err(self.unexpected([word])) }
    }

    fn unexpected(&self, expected: impl IntoIterator<Item = impl Into<String>>) -> TextError {
        TextError::unexpected(self.word(), self.place(), expected.into_iter().map(Into::into).collect())
    }

    fn take(&mut self) -> Placed<&'a str> {
        let taken = Placed::new(self.word(), self.place());
        self.at += 1;
        taken
    }

    fn end(&self) -> Parsed<()> {
        if self.at >= self.words.len() {
            return Ok(());
        }
        Err(TextError::unexpected(self.word(), self.place(), vec!["the end".into()]))
    }

    fn statement(mut self) -> Parsed<Statement> {
        let statement = if self.eat("show") {
            if self.eat("available") {
                Statement::Available
            } else if self.eat("count") {
                Statement::Count(Box::new(self.count()?))
            } else {
                return Err(self.unexpected(["available", "count"]));
            }
        } else if self.eat("explain") {
            self.need("show")?;
            self.need("count")?;
            Statement::Explain(Box::new(self.count()?))
        } else if self.eat("cache") {
            self.need("details")?;
            Statement::CacheDetails
        } else if self.eat("help") {
            Statement::Help
        } else {
            return Err(self.unexpected(["show", "explain", "cache", "help"]));
        };
        self.end()?;
        Ok(statement)
    }

    fn count(&mut self) -> Parsed<CountQuery> {
        self.need("for")?;
        let block = self.block()?;
        self.need("in")?;
        let series = self.series()?;
        let mut query = CountQuery {
            block,
            series,
            range: None,
            sizes: None,
            exclude: Vec::new(),
            node: None,
            threshold: None,
            aggregate: None,
            order: None,
            limit: None,
        };
        while self.at < self.words.len() {
            self.clause(&mut query)?;
        }
        Ok(query)
    }

    fn block(&mut self) -> Parsed<Placed<Block>> {
        if matches!(self.word(), "" | "(" | ")" | ",") {
            return Err(self.unexpected(["a block such as 10.0.0.0/8 or 2001:db8::/32"]));
        }
        let word = self.take();
        match word.value.parse() {
            Ok(block) => Ok(Placed::new(block, word.at)),
            Err(error) => {
                let error: crate::address::BlockError = error;
                Err(TextError::new(error.to_string(), word.at)
                    .expecting(["a block such as 10.0.0.0/8 or 2001:db8::/32"]))
            }
        }
    }

    fn series(&mut self) -> Parsed<SeriesList> {
        let union = self.is("union") && self.words.get(self.at + 1).is_some_and(|next| &self.text[next.clone()] == "(");
        if !union {
            return Ok(SeriesList::List(self.names()?));
        }
        self.at += 2;
        let names = self.names()?;
        if !self.eat(")") {
            return Err(self.unexpected([",", ")"]));
        }
        Ok(SeriesList::Union(names))
    }

    fn names(&mut self) -> Parsed<Vec<Placed<String>>> {
        let mut names: Vec<Placed<String>> = Vec::new();
        loop {
            let name = self.name("a series")?;
            if names.iter().any(|known| known.value == name.value) {
                return Err(TextError::new(format!("the series {} is named twice", name.value), name.at));
            }
            if names.len() == MAX_SERIES {
                return Err(TextError::new(format!("a query has at most {MAX_SERIES} series"), name.at));
            }
            names.push(name);
            if !self.eat(",") {
                return Ok(names);
            }
        }
    }

    fn name(&mut self, what: &str) -> Parsed<Placed<String>> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let word = self.word();
        if word.is_empty() || word.len() > 63 || !word.bytes().all(good) {
            return Err(self.unexpected([what]));
        }
        let word = self.take();
        Ok(Placed::new(word.value.to_owned(), word.at))
    }

    fn clause(&mut self, query: &mut CountQuery) -> Parsed<()> {
        let place = self.place();
        let once = |given: bool, what: &str| {
            if given { Err(TextError::new(format!("{what} is given twice"), place.clone())) } else { Ok(()) }
        };
        if self.is("from") || self.is("on") || self.is("since") || self.is("last") {
            once(query.range.is_some(), "the time")?;
            query.range = Some(self.range()?);
        } else if self.eat("cidrsize") {
            once(query.sizes.is_some(), "cidrsize")?;
            query.sizes = Some(self.sizes(query.block.value)?);
        } else if self.eat("order") {
            once(query.order.is_some(), "the order")?;
            self.need("by")?;
            query.order = Some(match () {
                () if self.eat("cidr") => Order::Cidr,
                () if self.eat("count") => Order::Count,
                () => return Err(self.unexpected(["cidr", "count"])),
            });
        } else if self.eat("aggregate") {
            once(query.aggregate.is_some(), "what is summed")?;
            query.aggregate = Some(if self.eat("daily") { Aggregate::Daily } else { Aggregate::Whole });
        } else if self.eat("trend") {
            once(query.aggregate.is_some(), "what is summed")?;
            query.aggregate = Some(Aggregate::Trend);
        } else if self.eat("limit") {
            once(query.limit.is_some(), "the limit")?;
            query.limit = Some(self.number("a number of rows", 0, i64::MAX)? as u64);
        } else if self.eat("threshold") {
            once(query.threshold.is_some(), "the threshold")?;
            query.threshold = Some(self.number("a count", i64::MIN, i64::MAX)?);
        } else if self.eat("node") {
            once(query.node.is_some(), "the node")?;
            query.node = Some(self.name("a node")?);
        } else if self.eat("exclude") {
            self.exclude(query)?;
        } else {
            return Err(self.unexpected(self.possible(query)));
        }
        check_trend(query, place)
    }

    /// The clauses that are not there yet.
    fn possible(&self, query: &CountQuery) -> Vec<String> {
        let mut words: Vec<&str> = Vec::new();
        let mut offer = |free: bool, some: &[&'static str]| {
            if free {
                words.extend(some);
            }
        };
        offer(query.aggregate.is_none(), &["aggregate"]);
        offer(query.sizes.is_none(), &["cidrsize"]);
        offer(true, &["exclude"]);
        offer(query.range.is_none(), &["from", "last"]);
        offer(query.limit.is_none(), &["limit"]);
        offer(query.node.is_none(), &["node"]);
        offer(query.range.is_none(), &["on"]);
        offer(query.order.is_none(), &["order by"]);
        offer(query.range.is_none(), &["since"]);
        offer(query.threshold.is_none(), &["threshold"]);
        offer(query.aggregate.is_none(), &["trend"]);
        if self.at > 0 && self.text[self.words[self.at - 1].clone()].eq_ignore_ascii_case("aggregate") {
            words.push("daily");
        }
        words.into_iter().map(str::to_owned).collect()
    }

    fn range(&mut self) -> Parsed<DateRange> {
        let keyword = self.take().value;
        if keyword.eq_ignore_ascii_case("on") {
            let place = self.place();
            return match self.moment()? {
                Moment::Ago(_) => {
                    Err(TextError::new("\"on\" takes a day", place).expecting(["a date such as 20080423"]))
                }
                moment => Ok(DateRange::On(moment)),
            };
        }
        if keyword.eq_ignore_ascii_case("last") {
            let place = self.place();
            return match self.moment()? {
                moment @ Moment::Ago(_) => Ok(DateRange::Since(moment)),
                _ => Err(TextError::new("\"last\" takes a length of time", place).expecting(["a length such as 30m"])),
            };
        }
        let from = self.moment()?;
        if keyword.eq_ignore_ascii_case("since") {
            return Ok(DateRange::Since(from));
        }
        self.need("to")?;
        let place = self.place();
        let to = self.moment()?;
        let backwards = match (from, to) {
            (Moment::Ago(from), Moment::Ago(to)) => to > from,
            (Moment::Ago(_), _) | (_, Moment::Ago(_)) => false,
            // A day has windows after its start, a second is one itself.
            (from, Moment::Day(to)) => start_of(from) >= to.end(),
            (from, to) => start_of(from) > start_of(to),
        };
        if backwards {
            return Err(TextError::new("the time ends before it begins", place));
        }
        Ok(DateRange::FromTo(from, to))
    }

    fn moment(&mut self) -> Parsed<Moment> {
        if matches!(self.word(), "" | "(" | ")" | ",") {
            return Err(self.unexpected([moment::EXPECTED]));
        }
        let word = self.take();
        parse_moment(word.value).map_err(|what| {
            let message = format!("\"{}\": {what}", shortened(word.value));
            TextError::new(message, word.at).expecting([moment::EXPECTED])
        })
    }

    fn sizes(&mut self, block: Block) -> Parsed<(u8, u8)> {
        let from = self.size(block, block.length())?;
        let to = if self.eat("to") { self.size(block, from)? } else { from };
        Ok((from, to))
    }

    fn size(&mut self, block: Block, lowest: u8) -> Parsed<u8> {
        let place = self.place();
        let bits = block.family().bits();
        let number = self.number("a prefix length", i64::MIN, i64::MAX)?;
        let expected = format!("{lowest} to {bits}");
        if number < i64::from(block.length()) {
            let message = format!("cidrsize {number} is shorter than the asked block {block}");
            return Err(TextError::new(message, place).expecting([expected]));
        }
        if number < i64::from(lowest) || number > i64::from(bits) {
            let what = if number > i64::from(bits) { "longer than an address" } else { "shorter than the first" };
            return Err(TextError::new(format!("cidrsize {number} is {what}"), place).expecting([expected]));
        }
        Ok(number as u8)
    }

    fn number(&mut self, what: &str, lowest: i64, highest: i64) -> Parsed<i64> {
        let word = self.word();
        let digits = word.strip_prefix('-').unwrap_or(word);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(self.unexpected([what]));
        }
        let word = self.take();
        let number = word.value.parse::<i64>().ok().filter(|number| (lowest..=highest).contains(number));
        number.ok_or_else(|| {
            TextError::new(format!("\"{}\" is out of range", shortened(word.value)), word.at).expecting([what])
        })
    }

    fn exclude(&mut self, query: &mut CountQuery) -> Parsed<()> {
        let excluded = self.block()?;
        let asked = query.block.value;
        if excluded.value.family() != asked.family() {
            let message = format!("{} is {}, but {asked} is not", excluded.value, excluded.value.family());
            return Err(TextError::new(message, excluded.at));
        }
        if query.exclude.len() == MAX_EXCLUDES {
            return Err(TextError::new(format!("a query excludes at most {MAX_EXCLUDES} blocks"), excluded.at));
        }
        query.exclude.push(excluded.value);
        Ok(())
    }
}

fn start_of(moment: Moment) -> i64 {
    match moment {
        Moment::Day(day) => day.start(),
        Moment::At(stamp) | Moment::Ago(stamp) => stamp,
    }
}

/// A trend is about one block, in the order of time.
fn check_trend(query: &CountQuery, place: Range<usize>) -> Parsed<()> {
    if query.aggregate != Some(Aggregate::Trend) {
        return Ok(());
    }
    let other = match () {
        () if query.sizes.is_some() => "cidrsize",
        () if query.order.is_some() => "order by",
        () => return Ok(()),
    };
    let hint = "ask for the block itself: its windows come in the order of time";
    Err(TextError::new(format!("trend and {other} do not go together"), place).hinting(hint))
}
