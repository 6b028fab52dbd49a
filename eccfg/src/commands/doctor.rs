//! `eccfg doctor`.

use cluster::api::{DoctorLine, Level};

use crate::commands::{Context, Need};
use crate::error::CommandError;
use crate::output::Style;

/// Examine the cluster
///
/// Asks every server whether it serves, follows a leader, has the right time and room on its disk; compares what they hold; and looks at every node's certificate and how far its programs got. With --deep every server also reads every object and every row and compares them, at a rate that leaves room for work. A server that finds damage takes itself out and rebuilds itself from the others.
///
/// Exits with 0 when nothing is bad, with 1 otherwise.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Read and verify every object on every server
    #[arg(long)]
    deep: bool,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy_if_any()?;
    let server = cx.server(wc.as_ref(), Need::Person).await?;
    let mut reply = server.doctor(args.deep).await?;
    let (mut rest, mut end) = (Vec::new(), None);
    while let Some(piece) = reply.chunk().await? {
        rest.extend_from_slice(&piece);
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=at).collect();
            let line: DoctorLine = serde_json::from_slice(&line)
                .map_err(|error| CommandError::because("the server's answer cannot be read", error))?;
            show(&line, cx)?;
            if let DoctorLine::End { bad, warned } = line {
                end = Some((bad, warned));
            }
        }
    }
    match end {
        Some((0, _)) => Ok(0),
        Some(_) => Ok(1),
        None => Err(CommandError::because("the examination was cut off", std::io::Error::other("it has no end"))),
    }
}

fn show(line: &DoctorLine, cx: &mut Context<'_>) -> Result<(), CommandError> {
    if cx.ui.json() {
        cx.ui.json_line(line)?;
        return Ok(cx.ui.flush()?);
    }
    match line {
        DoctorLine::Progress { node, repo, objects, .. } => {
            cx.ui.progress(format!("      {node}: {objects} objects read, now {repo}"))?;
        }
        DoctorLine::Finding { node, check, level, words } => {
            let (label, style) = match level {
                Level::Ok => ("ok  ", Style::Green),
                Level::Warn => ("warn", Style::Yellow),
                Level::Bad => ("BAD ", Style::Red),
            };
            let label = cx.ui.styled(style, label);
            cx.ui.line(format!("{label}  {node}  {check}: {words}"))?;
        }
        DoctorLine::End { bad: 0, warned: 0 } => cx.ui.line("Nothing is wrong")?,
        DoctorLine::End { bad, warned } => cx.ui.line(format!("{bad} bad, {warned} to look at"))?,
    }
    Ok(cx.ui.flush()?)
}
