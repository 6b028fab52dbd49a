//! The query language: text in, a checked query out.
//!
//! ```text
//! show available
//! show count for CIDR in SERIES {, SERIES} …     or   in union(SERIES {, SERIES}) …
//!   from D to D | on D | since D | last LENGTH      D: 20080423, 2008-04-23T12:00:00+02:00, 2h (before now)
//!   cidrsize N [to N] · exclude CIDR · node NAME · threshold N
//!   aggregate [daily] · trend · order by cidr|count · limit N
//! explain show count …  · cache details · help
//! ```
//!
//! Words are free in case and space; clauses come in any order, each once (`exclude` as often as needed).

mod ast;
mod error;
mod moment;
mod parser;

pub use ast::{Aggregate, CountQuery, DateRange, Moment, Order, Placed, SeriesList, Statement};
pub use error::TextError;
pub(crate) use error::nearest;
pub use parser::{MAX_EXCLUDES, MAX_SERIES, MAX_TEXT_BYTES, parse};

/// What `help` prints.
pub const HELP: &str = "\
show available                              series with their first and last window
show count for CIDR in SERIES [, SERIES]    a column per series
show count for CIDR in union(A, B)          one summed column
  from D to D | on D | since D | last 30m   D: 20080423, 2008-04-23T12:00:00+02:00, 2h (before now)
  cidrsize N [to N]                         rows are blocks of these sizes; without: single addresses
  exclude CIDR                              leave a block out
  node NAME                                 only what this node counted
  threshold N                               rows whose first count is at least N
  aggregate [daily]                         one sum, or one per day
  trend                                     one row per window of the block itself
  order by cidr | count                     by count: highest first
  limit N                                   so many rows
explain show count …                        the same query, and what it touched
cache details                               what is held in memory
help                                        this
";
