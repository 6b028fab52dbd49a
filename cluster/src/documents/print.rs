//! A document as TOML, with the origin of each value beside it, and as JSON.

use std::fmt::Write;

use super::place::quoted_key;
use super::tree::{Item, Table, Value};

/// A document as TOML text. `origins`: append `# file:line` to each value.
pub fn toml(table: &Table, origins: bool) -> String {
    let mut printer = Printer { text: String::new(), origins };
    printer.body(table, &mut Vec::new());
    printer.text
}

/// A document as JSON; dates become strings, as do the numbers that JSON does not know.
pub fn json(table: &Table) -> serde_json::Value {
    let entries = table.entries.iter().filter(|(_, item)| item.value != Value::Absent);
    serde_json::Value::Object(entries.map(|(key, item)| (key.clone(), json_value(&item.value))).collect())
}

fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::String(text) | Value::Datetime(text) => text.clone().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) => {
            serde_json::Number::from_f64(*number).map_or_else(|| number.to_string().into(), serde_json::Value::Number)
        }
        Value::Boolean(boolean) => (*boolean).into(),
        Value::Array(items) => items.iter().map(|item| json_value(&item.value)).collect(),
        Value::Table(table) => json(table),
        Value::Absent => serde_json::Value::Null,
    }
}

/// A string as TOML writes it, on one line.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

struct Printer {
    text: String,
    origins: bool,
}

impl Printer {
    fn body(&mut self, table: &Table, path: &mut Vec<String>) {
        for (key, item) in &table.entries {
            if !is_section(item) {
                let line = format!("{} = {}", quoted_key(key), inline(&item.value));
                self.line(&line, item);
            }
        }
        for (key, item) in &table.entries {
            path.push(quoted_key(key));
            match &item.value {
                Value::Table(inner) => self.section(inner, item, path),
                Value::Array(items) if is_section(item) => self.sections(items, path),
                _ => {}
            }
            path.pop();
        }
    }

    /// A header is left out where its table holds nothing but further tables.
    fn section(&mut self, table: &Table, item: &Item, path: &mut Vec<String>) {
        let needed = table.entries.is_empty() || table.entries.values().any(|item| !is_section(item));
        if needed {
            self.header(&format!("[{}]", path.join(".")), item);
        }
        self.body(table, path);
    }

    fn sections(&mut self, items: &[Item], path: &mut Vec<String>) {
        for item in items {
            self.header(&format!("[[{}]]", path.join(".")), item);
            if let Value::Table(table) = &item.value {
                self.body(table, path);
            }
        }
    }

    fn header(&mut self, header: &str, item: &Item) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        // Only an empty table has no line of its own to carry the origin.
        if matches!(&item.value, Value::Table(table) if table.entries.is_empty()) {
            self.line(header, item);
        } else {
            self.text.push_str(header);
            self.text.push('\n');
        }
    }

    fn line(&mut self, line: &str, item: &Item) {
        const COLUMN: usize = 40;
        if self.origins {
            let _ = writeln!(self.text, "{line:<COLUMN$} # {}", comment(&item.place().to_string()));
        } else {
            self.text.push_str(line);
            self.text.push('\n');
        }
    }
}

/// A file's name must not end the comment that holds it.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// True for what gets a header of its own: tables, and arrays of nothing but tables.
fn is_section(item: &Item) -> bool {
    match &item.value {
        Value::Table(_) => true,
        Value::Array(items) => !items.is_empty() && items.iter().all(|item| matches!(item.value, Value::Table(_))),
        _ => false,
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => float(*number),
        Value::Boolean(boolean) => boolean.to_string(),
        Value::Datetime(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| inline(&item.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) => {
            let entries: Vec<String> = table
                .entries
                .iter()
                .map(|(key, item)| format!("{} = {}", quoted_key(key), inline(&item.value)))
                .collect();
            if entries.is_empty() { "{}".into() } else { format!("{{ {} }}", entries.join(", ")) }
        }
        Value::Absent => "\"\"".into(),
    }
}

fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let text = format!("{number:?}");
    if text.contains(['.', 'e']) { text } else { format!("{text}.0") }
}
