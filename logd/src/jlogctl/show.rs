//! What only looks.

use std::collections::VecDeque;
use std::path::PathBuf;

use clap::Args;
use logd_journal::{Gap, Item, Lost, Reader, Record, View};
use serde_json::json;

use super::{Failure, Ui, time_text, view};

/// Show the newest records, one per line
#[derive(Debug, Args)]
pub(super) struct Tail {
    /// Go on with what comes
    #[arg(short)]
    follow: bool,
    /// How many of those that are there
    #[arg(short = 'n', default_value_t = 10, value_name = "RECORDS")]
    lines: usize,
    /// End after this many records in all
    #[arg(long, value_name = "RECORDS")]
    count: Option<u64>,
    /// The journal
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Print records with number and time
#[derive(Debug, Args)]
pub(super) struct Dump {
    /// From this number on
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    from: u64,
    /// Up to this number
    #[arg(long, value_name = "NUMBER")]
    to: Option<u64>,
    /// What this subscriber has not read
    #[arg(long, value_name = "SUBSCRIBER", conflicts_with = "from")]
    unread: Option<String>,
    /// The journal
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn tail(tail: &Tail, ui: &mut Ui<'_>) -> Result<(), Failure> {
    let mut view = view(&tail.dir)?;
    let start = tail_start(&mut view, tail.lines as u64)?;
    let mut reader = view.reader(start)?;
    let mut newest: VecDeque<Vec<u8>> = VecDeque::new();
    while let Some(item) = reader.next_item()? {
        newest.push_back(rendered(&item, ui.json, false));
        if newest.len() > tail.lines {
            newest.pop_front();
        }
    }
    let mut left = tail.count.unwrap_or(u64::MAX);
    for line in newest.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        ui.out.write_all(&line)?;
        left -= 1;
    }
    while tail.follow && left > 0 {
        ui.out.flush()?;
        reader.wait(None)?;
        while left > 0
            && let Some(item) = reader.next_item()?
        {
            ui.out.write_all(&rendered(&item, ui.json, false))?;
            left -= 1;
        }
    }
    Ok(())
}

/// Where reading begins so that the newest records are surely among what is read: only whole segments are passed over.
fn tail_start(view: &mut View, lines: u64) -> Result<u64, Failure> {
    let mut records = 0;
    for segment in view.status()?.segments.iter().rev() {
        records += segment.end - segment.first;
        if records >= lines {
            return Ok(segment.first);
        }
    }
    Ok(0)
}

pub(super) fn dump(dump: &Dump, ui: &mut Ui<'_>) -> Result<(), Failure> {
    let view = view(&dump.dir)?;
    let from = match &dump.unread {
        Some(name) => view.subscriber(name)?.next,
        None => dump.from,
    };
    let mut reader: Reader = view.reader(from)?;
    while let Some(item) = reader.next_item()? {
        let number = match &item {
            Item::Record(record) => record.sequence,
            Item::Gap(gap) => gap.from,
        };
        if dump.to.is_some_and(|to| number > to) {
            break;
        }
        ui.out.write_all(&rendered(&item, ui.json, true))?;
    }
    Ok(())
}

/// One line for a record or a gap. A record's bytes stay as they are, unless JSON is wanted.
fn rendered(item: &Item<'_>, as_json: bool, numbered: bool) -> Vec<u8> {
    match item {
        Item::Record(record) if as_json => (record_json(record).to_string() + "\n").into_bytes(),
        Item::Gap(gap) if as_json => {
            let lost = if gap.lost == Lost::Damaged { "damaged" } else { "removed" };
            format!("{}\n", json!({ "missing": { "from": gap.from, "to": gap.to - 1 }, "lost": lost })).into_bytes()
        }
        Item::Record(record) => {
            let mut line = Vec::with_capacity(record.payload.len() + 64);
            if numbered {
                line.extend_from_slice(format!("{}\t{}\t", record.sequence, time_text(record.time_us)).as_bytes());
            }
            line.extend_from_slice(record.payload);
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            line
        }
        Item::Gap(gap) => format!("-- {gap}\n").into_bytes(),
    }
}

fn record_json(record: &Record<'_>) -> serde_json::Value {
    let mut value = json!({ "sequence": record.sequence, "time": time_text(record.time_us) });
    match std::str::from_utf8(record.payload) {
        Ok(text) => value["text"] = text.into(),
        Err(_) => value["hex"] = record.payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
    }
    value
}

pub(super) fn check(dirs: &[PathBuf], ui: &mut Ui<'_>) -> Result<(), Failure> {
    let mut damaged = 0;
    for dir in dirs {
        let check = view(dir)?.check(&mut |_| {})?;
        let lost: Vec<&Gap> = check.gaps.iter().filter(|gap| gap.lost == Lost::Damaged).collect();
        let sound = check.gaps.is_empty() && check.damaged_subscribers.is_empty();
        damaged += usize::from(!sound);
        let mut text = format!("{}: {} records, {} bytes", dir.display(), check.records, check.payload_bytes);
        text += if sound { ", sound\n" } else { "\n" };
        check.gaps.iter().for_each(|gap| match gap.from == gap.to {
            true => text += &format!("  the header of {} is damaged; no record is lost by that\n", gap.path.display()),
            false => text += &format!("  {gap}\n"),
        });
        check.damaged_subscribers.iter().for_each(|name| {
            text += &format!("  the position of subscriber {name} is damaged; it will be given everything\n");
        });
        let missing: u64 = lost.iter().map(|gap| gap.to - gap.from).sum();
        let value = || {
            json!({ "dir": dir, "records": check.records, "payload_bytes": check.payload_bytes, "sound": sound,
                "records_damaged": missing, "subscribers_damaged": check.damaged_subscribers })
        };
        ui.print(value, text)?;
    }
    if damaged > 0 {
        return Err(Failure::Damaged { damaged, journals: dirs.len() });
    }
    Ok(())
}

pub(super) fn meta(view: &mut View, ui: &mut Ui<'_>) -> Result<(), Failure> {
    let status = view.status()?;
    let records: u64 = status.segments.iter().map(|segment| segment.end - segment.first).sum();
    let (segments, bytes, first, next) = (status.segments.len(), status.bytes(), status.first, status.next);
    let value = || {
        json!({ "uuid": status.uuid.to_string(), "segments": segments, "bytes": bytes, "records": records,
            "first": first, "next": next, "subscribers": status.subscribers.len() })
    };
    let text = format!(
        "journal {}\n{segments} segments, {bytes} bytes, {records} records from {first} to before {next}, {} subscribers\n",
        status.uuid,
        status.subscribers.len()
    );
    ui.print(value, text)
}

pub(super) fn subscribers(view: &mut View, ui: &mut Ui<'_>) -> Result<(), Failure> {
    for lag in view.status()?.subscribers {
        let one = &lag.subscriber;
        let (name, next, dropped) = (&one.name, one.next, one.dropped_records);
        let oldest = lag.oldest_us.map(time_text);
        let mut text = format!("{name}\tat {next}, {} records, {} bytes behind", lag.records, lag.bytes);
        text += &oldest.as_ref().map_or(String::new(), |oldest| format!(", the oldest of {oldest}"));
        text += &if dropped > 0 { format!(", {dropped} records dropped unread") } else { String::new() };
        text += if one.sound { "\n" } else { ", its file is damaged\n" };
        let value = || {
            json!({ "name": name, "next": next, "records_behind": lag.records, "bytes_behind": lag.bytes,
                "oldest": oldest, "records_dropped": dropped, "sound": one.sound })
        };
        ui.print(value, &text)?;
    }
    Ok(())
}

pub(super) fn segments(view: &mut View, numbers: bool, ui: &mut Ui<'_>) -> Result<(), Failure> {
    let status = view.status()?;
    for segment in &status.segments {
        let (first, end, bytes) = (segment.first, segment.end, segment.bytes);
        let readers: Vec<&str> = status
            .subscribers
            .iter()
            .filter(|lag| lag.subscriber.next < end)
            .map(|lag| lag.subscriber.name.as_str())
            .collect();
        let mut text = format!("{first:016x}.seg\t{bytes} bytes\t{} pending readers", readers.len());
        if numbers {
            text += &format!("\t{} records from {first} to before {end}\t{}", end - first, readers.join(" "));
        }
        let value = || json!({ "first": first, "end": end, "bytes": bytes, "pending": readers });
        ui.print(value, text + "\n")?;
    }
    Ok(())
}

pub(super) fn positions(view: &mut View, name: &str, ui: &mut Ui<'_>) -> Result<(), Failure> {
    let next = view.subscriber(name)?.next;
    let end = view.synced()?;
    let value = || json!({ "subscriber": name, "next": next, "end": end });
    let unread = if next < end { format!("next {next} to before {end}") } else { "nothing is unread".into() };
    ui.print(value, format!("checkpoint: before {next}\nlast write: {}\n{unread}\n", end.saturating_sub(1)))
}

pub(super) fn data(view: &mut View, ui: &mut Ui<'_>) -> Result<(), Failure> {
    let (mut records, mut bytes, mut longest, mut missing) = (0u64, 0u64, 0usize, 0u64);
    let (mut oldest_us, mut newest_us) = (u64::MAX, 0);
    let mut gaps = String::new();
    let mut reader = view.reader(0)?;
    while let Some(item) = reader.next_item()? {
        match item {
            Item::Record(record) => {
                records += 1;
                bytes += record.payload.len() as u64;
                longest = longest.max(record.payload.len());
                oldest_us = oldest_us.min(record.time_us);
                newest_us = newest_us.max(record.time_us);
            }
            Item::Gap(gap) => {
                missing += gap.to - gap.from;
                gaps += &format!("{gap}\n");
            }
        }
    }
    let span = (records > 0).then(|| (time_text(oldest_us), time_text(newest_us)));
    let value = || {
        json!({ "records": records, "payload_bytes": bytes, "longest_bytes": longest, "records_missing": missing,
            "oldest": span.as_ref().map(|span| &span.0), "newest": span.as_ref().map(|span| &span.1) })
    };
    let mut text = format!("{records} records, {bytes} bytes, the longest {longest}\n");
    if let Some((oldest, newest)) = &span {
        text += &format!("of {oldest} to {newest}\n");
    }
    ui.print(value, text + &gaps)
}
