//! The value of a document, each part with the place where it was written.

use std::sync::Arc;

use indexmap::IndexMap;

use super::place::{KeyPath, Place, Position, Segment};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The file it was written in.
    pub file: Arc<str>,
    /// Where its key stands; for an array's element, where the element stands.
    pub key_at: Position,
    /// Where the value itself stands.
    pub at: Position,
    /// The value.
    pub value: Value,
}

/// A TOML value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string.
    String(String),
    /// A whole number.
    Integer(i64),
    /// A floating point number.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// A date, a time or both, as it was written.
    Datetime(String),
    /// An array.
    Array(Vec<Item>),
    /// A table.
    Table(Table),
    /// Named by `unset` and given by nobody. Only the check of a single layer sees this: a key that is taken away must
    /// be one that exists, but needs no value.
    Absent,
}

/// A table: its entries in the order of the file, and what it takes away from less specific layers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// The entries.
    pub entries: IndexMap<String, Item>,
    /// The keys of `unset`, each with its place.
    pub unset: Vec<(String, Place)>,
}

impl Item {
    /// The place of the key, which is what people look for.
    pub fn place(&self) -> Place {
        Place { file: self.file.clone(), at: self.key_at }
    }

    /// The place of the value.
    pub fn value_place(&self) -> Place {
        Place { file: self.file.clone(), at: self.at }
    }

    /// The value one step further in.
    pub fn step(&self, segment: &Segment) -> Option<&Item> {
        match (segment, &self.value) {
            (Segment::Key(key), Value::Table(table)) => table.entries.get(key),
            (Segment::Index(index), Value::Array(items)) => items.get(*index),
            _ => None,
        }
    }
}

impl Value {
    /// What TOML calls this kind of value.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::String(_) => "string",
            Value::Integer(_) => "integer",
            Value::Float(_) => "float",
            Value::Boolean(_) => "boolean",
            Value::Datetime(_) => "datetime",
            Value::Array(_) => "array",
            Value::Table(_) => "table",
            Value::Absent => "nothing",
        }
    }
}

impl Table {
    /// The value at a path.
    pub fn get(&self, path: &KeyPath) -> Option<&Item> {
        let (first, rest) = path.segments().split_first()?;
        let Segment::Key(key) = first else { return None };
        rest.iter().try_fold(self.entries.get(key)?, |item, segment| item.step(segment))
    }

    /// The place of a path, or of the nearest table around it that exists.
    pub fn nearest_place(&self, path: &KeyPath) -> Option<Place> {
        let (first, rest) = path.segments().split_first()?;
        let Segment::Key(key) = first else { return None };
        let mut item = self.entries.get(key)?;
        for segment in rest {
            match item.step(segment) {
                Some(inner) => item = inner,
                None => break,
            }
        }
        Some(item.place())
    }

    /// Removes the value at a path; an element of an array goes with the whole array. True when something went.
    pub(crate) fn remove(&mut self, path: &KeyPath) -> bool {
        let is_key = |segment: &Segment| matches!(segment, Segment::Key(_));
        let Some(last) = path.segments().iter().rposition(is_key) else {
            return false;
        };
        let (outer, Segment::Key(key)) = (&path.segments()[..last], &path.segments()[last]) else {
            return false;
        };
        match self.table_at(outer) {
            Some(table) => table.entries.shift_remove(key).is_some(),
            None => false,
        }
    }

    fn table_at(&mut self, path: &[Segment]) -> Option<&mut Table> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self);
        };
        let Segment::Key(key) = first else { return None };
        let mut item = self.entries.get_mut(key)?;
        for segment in rest {
            item = match (segment, &mut item.value) {
                (Segment::Key(key), Value::Table(table)) => table.entries.get_mut(key)?,
                (Segment::Index(index), Value::Array(items)) => items.get_mut(*index)?,
                _ => return None,
            };
        }
        match &mut item.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Calls for every leaf (a value that is not a table, or an empty table), in order.
    pub fn leaves<'a>(&'a self, visit: &mut dyn FnMut(KeyPath, &'a Item)) {
        fn walk<'a>(table: &'a Table, path: &KeyPath, visit: &mut dyn FnMut(KeyPath, &'a Item)) {
            for (key, item) in &table.entries {
                let path = path.key(key);
                match &item.value {
                    Value::Table(inner) if !inner.entries.is_empty() => walk(inner, &path, visit),
                    _ => visit(path, item),
                }
            }
        }
        walk(self, &KeyPath::ROOT, visit);
    }
}
