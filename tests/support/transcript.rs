//! Golden transcripts: what a person would have seen, without what changes from run to run.
#![allow(dead_code, missing_docs)]

use std::fmt::Write as _;
use std::process::Output;

/// Writes a command and everything it said into a transcript. Standard error's lines begin with `! `.
pub fn record(transcript: &mut String, prompt: &str, args: &[&str], output: &Output) {
    let words: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
    let _ = writeln!(transcript, "{}", format!("{prompt} {}", words.join(" ")).trim_end());
    for (mark, bytes) in [("", &output.stdout), ("! ", &output.stderr)] {
        for line in String::from_utf8_lossy(bytes).lines() {
            let _ = writeln!(transcript, "{mark}{line}");
        }
    }
    let status = output.status.code().map_or_else(|| output.status.to_string(), |code| code.to_string());
    let _ = writeln!(transcript, "[{status}]\n");
}

/// A word as a shell would want it.
pub fn quoted(arg: &str) -> String {
    if arg.is_empty() || arg.contains([' ', '*', '$', '"', ';']) { format!("'{arg}'") } else { arg.to_owned() }
}

/// Ids (seven and more hex digits; no English word in here is one) and times become placeholders.
pub fn redacted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word: &str = &rest[..rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())];
        if word.is_empty() {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        out.push_str(&placeholder(word));
        rest = &rest[word.len()..];
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '+' | '/')
}

fn placeholder(word: &str) -> String {
    let is_time =
        word.len() >= 19 && word.as_bytes()[4] == b'-' && word.as_bytes()[10] == b'T' && word.as_bytes()[13] == b':';
    if is_time {
        return "[TIME]".to_owned();
    }
    // `a..b` of a patch's index line is two ids.
    let pieces: Vec<String> =
        word.split("..").map(|piece| if is_id(piece) { "[ID]".to_owned() } else { piece.to_owned() }).collect();
    pieces.join("..")
}

fn is_id(word: &str) -> bool {
    word.len() >= 7 && word.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
