//! Answers of the daemon as people read them.

use std::fmt::Write as _;

use serde_json::Value;

/// Columns as wide as what is in them.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|title| title.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", padded.join("  ").trim_end());
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn head(answer: &Value) -> String {
    let mut lines = format!(
        "{}: leader {}, term {}, version {}, stable for {} s\n",
        text(&answer["node"]),
        text(&answer["leader"]),
        text(&answer["term"]),
        text(&answer["version"]),
        text(&answer["stable_s"]["owners"]),
    );
    if answer["leader"].is_null() {
        lines.push_str("no majority is heard\n");
    }
    if answer["at_rest"] == false {
        lines.push_str("addresses are on their way, or will be given back soon\n");
    }
    if answer["two_owners_possible"] == true {
        let _ = writeln!(
            lines,
            "two owners possible: serving without a majority, with {}",
            text(&answer["serves_apart_with"])
        );
    }
    for (check, well) in answer["checks"].as_object().into_iter().flatten().filter(|(_, well)| **well == false) {
        let _ = writeln!(lines, "check {check}: {}", if *well == true { "passes" } else { "fails" });
    }
    for warning in list(&answer["warnings"]) {
        let _ = writeln!(lines, "warning: {}", text(warning));
    }
    lines
}

/// `show`.
pub fn show(answer: &Value) -> String {
    let row = |vip: &Value| {
        let here = if vip["here"] == true { " (here)" } else { "" };
        vec![text(&vip["address"]), text(&vip["name"]), format!("{}{here}", text(&vip["owner"])), text(&vip["state"])]
    };
    let rows: Vec<_> = list(&answer["vips"]).iter().map(row).collect();
    format!("{}{}", head(answer), table(&["ADDRESS", "NAME", "OWNER", "STATE"], &rows))
}

/// `show tables`.
pub fn tables(answer: &Value) -> String {
    let row = |vip: &Value| {
        let owner = text(&vip["owner"]);
        let starred = |name: &Value| if text(name) == owner { format!("{}*", text(name)) } else { text(name) };
        let candidates: Vec<String> = list(&vip["candidates"]).iter().map(starred).collect();
        vec![
            text(&vip["address"]),
            text(&vip["name"]),
            owner.clone(),
            text(&vip["state"]),
            text(&vip["since"]),
            candidates.join(","),
            text(&vip["why"]),
        ]
    };
    let rows: Vec<_> = list(&answer["vips"]).iter().map(row).collect();
    let columns = ["ADDRESS", "NAME", "OWNER", "STATE", "SINCE", "CANDIDATES", "WHY"];
    format!("{}\n{}", members(answer), table(&columns, &rows))
}

/// `members`.
pub fn members(answer: &Value) -> String {
    let row = |member: &Value| {
        let words = [("leader", "leads"), ("witness", "witness"), ("drained", "drained")];
        let notes: Vec<&str> = words.iter().filter(|(key, _)| member[*key] == true).map(|(_, word)| *word).collect();
        let state = if member["present"] == true { "here" } else { "gone" };
        vec![text(&member["name"]), state.into(), text(&member["addresses"]), text(&member["weight"]), notes.join(",")]
    };
    let rows: Vec<_> = list(&answer["members"]).iter().map(row).collect();
    format!("{}{}", head(answer), table(&["NODE", "STATE", "ADDRESSES", "WEIGHT", ""], &rows))
}

/// `arp show`.
pub fn arp(answer: &Value) -> String {
    let row = |host: &Value| {
        vec![text(&host["node"]), text(&host["interface"]), text(&host["mac"]), text(&host["addresses"])]
    };
    let rows: Vec<_> = list(&answer["hosts"]).iter().map(row).collect();
    table(&["NODE", "INTERFACE", "HARDWARE ADDRESS", "ADDRESSES"], &rows)
}

/// `explain`.
pub fn explain(answer: &Value) -> String {
    let mut lines = format!(
        "{}: owner {}, belongs to {}: {}\n",
        text(&answer["address"]),
        text(&answer["owner"]),
        text(&answer["target"]),
        text(&answer["why"]),
    );
    if answer["lead"] != answer["address"] {
        let _ = writeln!(lines, "it follows {}", text(&answer["lead"]));
    }
    if !answer["difference"].is_null() {
        let _ = writeln!(lines, "{}", text(&answer["difference"]));
    }
    for (node, verdict) in answer["members"].as_object().into_iter().flatten() {
        let _ = writeln!(lines, "  {node}: {}", text(verdict));
    }
    lines
}

/// `simulate`.
pub fn moves(answer: &Value) -> String {
    let row = |change: &Value| {
        vec![text(&change["address"]), text(&change["from"]), text(&change["to"]), text(&change["why"])]
    };
    let rows: Vec<_> = list(&answer["moves"]).iter().map(row).collect();
    let summary = format!("without {}: {} addresses move\n", text(&answer["without"]), rows.len());
    if rows.is_empty() { summary } else { summary + &table(&["ADDRESS", "FROM", "TO", "WHY"], &rows) }
}

/// `history`.
pub fn history(answer: &Value) -> String {
    let line =
        |entry: &Value| format!("{}  {:10}  {}\n", text(&entry["time"]), text(&entry["what"]), text(&entry["detail"]));
    list(&answer["entries"]).iter().map(line).collect()
}
