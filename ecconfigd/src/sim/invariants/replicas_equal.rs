//! Nodes that have applied the same index have the same state: the same running hash at all times, and the same bytes at the end.

use super::super::oracle::Moment;
use crate::state::{State, View};

/// The node's hash is the one that others have at this index.
pub(crate) fn check(node: u64, view: &View, moment: &Moment) -> Result<(), String> {
    let (first, hash) = moment.hash.get_or_init(|| (node, view.hash));
    if *hash == view.hash {
        return Ok(());
    }
    let (index, ours, theirs) = (moment.id.index, hex::encode(view.hash), hex::encode(hash));
    Err(format!("n{node} and n{first} differ at index {index}: {ours} and {theirs}"))
}

/// Two nodes at the same index have the same table.
pub(crate) fn check_tables(a: (u64, &State), b: (u64, &State)) -> Result<(), String> {
    let (ours, theirs) = (a.1.dump(), b.1.dump());
    if ours == theirs {
        return Ok(());
    }
    let differs = |(key, value): &&(Vec<u8>, Vec<u8>)| !theirs.iter().any(|(k, v)| k == key && v == value);
    let first = ours.iter().find(differs).or_else(|| theirs.iter().find(|pair| !ours.contains(pair)));
    let key = first.map(|(key, _)| key.escape_ascii().to_string()).unwrap_or_default();
    Err(format!("n{} and n{} have the same hash and another table, at key {key}", a.0, b.0))
}
