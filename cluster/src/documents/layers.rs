//! Several layers into one value: tables merge, arrays and scalars replace, `unset` removes.
//!
//! Merging is associative: whoever merges the upper layers first gets the same result as whoever starts at the bottom.
//! For this a merged layer keeps what it takes away from those below it, also where a table took the place of a
//! scalar.

use super::parse::Document;
use super::tree::{Item, Table, Value};

/// One file of a search path.
pub type Layer = Document;

/// Lays a more specific table over a less specific one.
pub fn merge(below: &mut Table, above: &Table) {
    for (key, place) in &above.unset {
        below.entries.shift_remove(key);
        below.unset.push((key.clone(), place.clone()));
    }
    for (key, item) in &above.entries {
        match below.entries.get_mut(key) {
            Some(existing) => merge_item(existing, item, key, &mut below.unset),
            None => {
                below.entries.insert(key.clone(), item.clone());
            }
        }
    }
}

fn merge_item(existing: &mut Item, item: &Item, key: &str, unset: &mut Vec<(String, super::place::Place)>) {
    match (&mut existing.value, &item.value) {
        (Value::Table(inner), Value::Table(above)) => {
            merge(inner, above);
            // A table has many homes; the most specific header is the one to show.
            existing.file = item.file.clone();
            existing.key_at = item.key_at;
            existing.at = item.at;
        }
        (_, Value::Table(_)) => {
            unset.push((key.to_owned(), item.place()));
            *existing = item.clone();
        }
        _ => *existing = item.clone(),
    }
}

/// Forgets what the layers took away: there is nothing below any more.
pub(crate) fn settle(table: &mut Table) {
    table.unset = Vec::new();
    for item in table.entries.values_mut() {
        if let Value::Table(inner) = &mut item.value {
            settle(inner);
        }
    }
}

/// The merged value of layers, the least specific first.
pub fn merged<'a>(layers: impl IntoIterator<Item = &'a Table>) -> Table {
    let mut layers = layers.into_iter();
    let mut result = layers.next().cloned().unwrap_or_default();
    for layer in layers {
        merge(&mut result, layer);
    }
    settle(&mut result);
    result
}
