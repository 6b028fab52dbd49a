//! A document into a type, by serde, with the place and a hint for every mistake.
//!
//! Serde stops at the first mistake. Here each mistake names the value it is about, so that this value can be taken out
//! and the rest read again: one run reports them all. That works because the raw form of every document has nothing
//! but optional keys.

use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};

use super::finding::{Finding, Findings};
use super::hint;
use super::place::{KeyPath, Place, Segment, shortened};
use super::tree::{Item, Table, Value};

/// Mistakes reported per document: each costs one more reading.
const MAX_MISTAKES: usize = 20;

/// Reads a table into a type. `anchor` is the place of mistakes that belong to the document as a whole.
pub fn decode<T: DeserializeOwned>(root: &Table, anchor: &Place) -> Result<T, Findings> {
    let first = match T::deserialize(TableDeserializer { table: root }) {
        Ok(value) => return Ok(value),
        Err(mistake) => mistake,
    };
    let mut findings = Findings::new();
    let mut rest = root.clone();
    let mut mistake = first;
    loop {
        let path = mistake.path();
        let about_absent = matches!(root.get(&path), Some(Item { value: Value::Absent, .. }));
        if mistake.in_key || !about_absent {
            findings.push(mistake.finding(anchor));
        }
        if findings.len() >= MAX_MISTAKES || !rest.remove(&path) {
            break;
        }
        match T::deserialize(TableDeserializer { table: &rest }) {
            Ok(value) => return findings.or(value),
            Err(next) => mistake = next,
        }
    }
    if findings.is_empty() {
        // Only mistakes about absent values, and the last of them could not be taken out.
        findings.push(mistake.finding(anchor));
    }
    Err(findings.sorted())
}

/// Checks one layer against a raw form: keys and types must be right, nothing needs to be complete, and the keys that
/// `unset` names must exist in the form.
pub fn check_layer<T: DeserializeOwned>(root: &Table, anchor: &Place) -> Findings {
    let with_unset = mark_absent(root);
    match decode::<T>(&with_unset, anchor) {
        Ok(_) => Findings::new(),
        Err(findings) => findings,
    }
}

/// The table with an absent value for each key that `unset` names and the same table does not set.
fn mark_absent(table: &Table) -> Table {
    let mut marked = Table::default();
    for (key, item) in &table.entries {
        let mut item = item.clone();
        if let Value::Table(inner) = &item.value {
            item.value = Value::Table(mark_absent(inner));
        }
        marked.entries.insert(key.clone(), item);
    }
    for (key, place) in &table.unset {
        marked.entries.entry(key.clone()).or_insert_with(|| Item {
            file: place.file.clone(),
            key_at: place.at,
            at: place.at,
            value: Value::Absent,
        });
    }
    marked
}

/// A mistake on its way out of the document: each level adds its key.
#[derive(Debug)]
struct Mistake {
    message: String,
    hint: Option<String>,
    place: Option<Place>,
    /// Innermost first.
    path: Vec<Segment>,
    /// About the key itself, not about its value.
    in_key: bool,
}

impl Mistake {
    fn new(message: impl Into<String>, hint: Option<String>) -> Self {
        Self { message: message.into(), hint, place: None, path: Vec::new(), in_key: false }
    }

    fn inside(mut self, segment: Segment, place: Place) -> Self {
        self.place.get_or_insert(place);
        self.path.push(segment);
        self
    }

    fn of_key(mut self, key: &str, place: Place) -> Self {
        self.in_key = true;
        self.inside(Segment::Key(key.to_owned()), place)
    }

    fn path(&self) -> KeyPath {
        self.path.iter().rev().cloned().collect::<Vec<_>>().into()
    }

    fn finding(&self, anchor: &Place) -> Finding {
        let finding =
            Finding::at_place(self.place.as_ref().unwrap_or(anchor), self.message.clone()).with_key(&self.path());
        Finding { hint: self.hint.clone(), ..finding }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string(), None)
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {}, found {}", in_toml_words(&expected.to_string()), describe(found)), None)
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        let names: Vec<String> = expected.iter().map(|name| format!("\"{name}\"")).collect();
        let hint = hint::nearest(found, expected.iter().copied()).map(|name| format!("did you mean \"{name}\"?"));
        Self::new(format!("\"{}\" is not one of {}", shortened(found), names.join(", ")), hint)
    }

    fn unknown_field(found: &str, expected: &'static [&'static str]) -> Self {
        if found == "unset" {
            return Self::new("\"unset\" must be a list of the keys to take away", None);
        }
        let message = format!("unknown key \"{}\"", shortened(found));
        Self::new(message, hint::for_unknown(found, expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("the key \"{field}\" is missing"), None)
    }
}

/// Serde speaks Rust; whoever writes a document does not.
fn in_toml_words(expected: &str) -> String {
    let number = |most: u64| format!("a whole number from 0 to {most}");
    match expected {
        "a sequence" => "an array".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "path string" => "a path".to_owned(),
        "u8" => number(u8::MAX.into()),
        "u16" => number(u16::MAX.into()),
        "u32" => number(u32::MAX.into()),
        "u64" => "a whole number that is not negative".to_owned(),
        _ if expected.starts_with("struct ") || expected == "a map" => "a table".to_owned(),
        _ => expected.to_owned(),
    }
}

fn describe(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Str(text) => format!("the string \"{}\"", shortened(text)),
        de::Unexpected::Bool(boolean) => format!("{boolean}"),
        de::Unexpected::Unsigned(number) => format!("the number {number}"),
        de::Unexpected::Signed(number) => format!("the number {number}"),
        de::Unexpected::Float(number) => format!("the number {number}"),
        de::Unexpected::Seq => "an array".to_owned(),
        de::Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

struct TableDeserializer<'a> {
    table: &'a Table,
}

impl<'de> de::Deserializer<'de> for TableDeserializer<'_> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_map(Entries { entries: self.table.entries.iter(), current: None })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Entries<'a> {
    entries: indexmap::map::Iter<'a, String, Item>,
    current: Option<(&'a String, &'a Item)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mistake> {
        self.current = self.entries.next();
        let Some((key, item)) = self.current else { return Ok(None) };
        let deserializer: de::value::StrDeserializer<'_, Mistake> = key.as_str().into_deserializer();
        seed.deserialize(deserializer).map(Some).map_err(|mistake| mistake.of_key(key, item.place()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let (key, item) = self.current.take().expect("serde asks for a value after its key");
        seed.deserialize(ItemDeserializer { item })
            .map_err(|mistake| mistake.inside(Segment::Key(key.clone()), item.value_place()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

struct Elements<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Item>>,
}

impl<'de> de::SeqAccess<'de> for Elements<'_> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mistake> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        seed.deserialize(ItemDeserializer { item })
            .map(Some)
            .map_err(|mistake| mistake.inside(Segment::Index(index), item.value_place()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct ItemDeserializer<'a> {
    item: &'a Item,
}

impl<'de> de::Deserializer<'de> for ItemDeserializer<'_> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.item.value {
            Value::String(text) | Value::Datetime(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(boolean) => visitor.visit_bool(*boolean),
            Value::Array(items) => visitor.visit_seq(Elements { items: items.iter().enumerate() }),
            Value::Table(table) => TableDeserializer { table }.deserialize_any(visitor),
            Value::Absent => TableDeserializer { table: &Table::default() }.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.item.value {
            Value::Absent => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match &self.item.value {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            other => Err(Mistake::new(format!("expected a string, found {}", article(other.type_name())), None)),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

fn article(noun: &str) -> String {
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}
