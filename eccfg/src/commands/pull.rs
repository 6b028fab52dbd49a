//! `eccfg pull`.

use repos::worktree::{OnOverlap, SavedEdit, StageOptions, WorkingCopy};

use crate::commands::{Context, Need};
use crate::error::CommandError;
use crate::output::Style;
use crate::update::{self, Follow, Letter, Pulled};
use crate::{local_agent, place};

/// Update the working copy
///
/// All or nothing: the new tree is built beside the old one and put in its place in one instant. Local edits stay; where they
/// overlap with the update nothing is changed and the status is 3, unless --mine, --theirs or --manual says what to do.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Act as this node: its own identity instead of a login, and its target instead of the newest revision
    #[arg(long)]
    auto: bool,
    /// Where both sides changed the same lines, keep the local ones
    #[arg(long, group = "overlap")]
    mine: bool,
    /// Where both sides changed the same lines, take the repository's
    #[arg(long, group = "overlap")]
    theirs: bool,
    /// Where both sides changed the same lines, write both into the file, to be edited and resolved
    #[arg(long, group = "overlap")]
    manual: bool,
}

impl Args {
    fn on_overlap(&self) -> OnOverlap {
        match (self.mine, self.theirs, self.manual) {
            (true, _, _) => OnOverlap::Mine,
            (_, true, _) => OnOverlap::Theirs,
            (_, _, true) => OnOverlap::Manual,
            _ => OnOverlap::Refuse,
        }
    }
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy()?;
    let need = if args.auto { Need::Node } else { Need::Reader };
    let server = cx.server(Some(&wc), need).await?;
    let follow = if args.auto { Follow::Node(cx.node(Some(&wc))?) } else { Follow::Heads };
    let options = StageOptions {
        on_overlap: args.on_overlap(),
        server: server.name(),
        reason: "pull".into(),
        ..StageOptions::default()
    };
    let pulled = update::pull(&server, &wc, &follow, &options).await?;
    if !pulled.changes.is_empty() && pulled.conflicts.is_empty() {
        local_agent::wake().await;
    }
    show(&pulled, &wc, cx)
}

/// Prints what an update did; the status is 3 when it left conflicts to resolve.
pub fn show(pulled: &Pulled, wc: &WorkingCopy, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    if cx.ui.json() {
        cx.ui.json_document(pulled)?;
    } else {
        show_changes(pulled, cx)?;
    }
    show_side_effects(pulled, wc, cx);
    if pulled.conflicts.is_empty() {
        return Ok(0);
    }
    let paths = pulled.conflicts.iter().map(|conflict| format!("{}: {}", conflict.path, conflict.what)).collect();
    Err(CommandError::Conflict {
        message: "both sides changed the same lines; they are marked in the files".into(),
        paths,
        hint: Some("edit the files, then run `eccfg resolve FILE…`".into()),
    })
}

fn show_changes(pulled: &Pulled, cx: &mut Context<'_>) -> Result<(), CommandError> {
    for change in &pulled.changes {
        let style = match change.change {
            Letter::Added => Style::Green,
            Letter::Updated => Style::Cyan,
            Letter::Deleted | Letter::Conflict => Style::Red,
        };
        let letter = cx.ui.styled(style, &change.change.as_char().to_string());
        cx.ui.line(format!("{letter}  {}", change.path))?;
    }
    for (repo, step) in &pulled.repos {
        let words = match step.from {
            Some(from) if from == step.to => format!("{repo} is at revision {} already", step.to),
            Some(from) => format!("Updated {repo} from revision {from} to {}", step.to),
            None => format!("Checked out {repo} at revision {}", step.to),
        };
        cx.ui.progress(words)?;
    }
    Ok(())
}

/// Warns of edits that were put aside.
pub(super) fn show_put_aside(edits: &[SavedEdit], cx: &mut Context<'_>) {
    for saved in edits {
        let place = saved
            .file
            .as_ref()
            .map_or_else(|| "it was a deletion".to_owned(), |file| format!("it is kept in {}", file.display()));
        cx.ui.warning(format!("a local edit of {} was put aside ({}); {place}", saved.path, saved.reason));
    }
}

/// Notes about edits that were carried over or put aside, and about the current directory.
pub fn show_side_effects(pulled: &Pulled, wc: &WorkingCopy, cx: &mut Context<'_>) {
    for repo in &pulled.held {
        cx.ui.note(format!("{repo} is in CONFLICT and stays as it is; `eccfg subcluster resolve {repo}` ends that"));
    }
    for (repo, step) in &pulled.ahead {
        let here = step.from.unwrap_or_default();
        cx.ui.note(format!(
            "{repo} is at revision {here}, the server that answered at {}; it stays (`eccfg pull --auto` goes where the cluster wants this node to be)",
            step.to
        ));
    }
    for path in &pulled.carried {
        cx.ui.note(format!("{path} was edited during the update; the edit was carried over"));
    }
    show_put_aside(&pulled.saved, cx);
    if pulled.directory_replaced && place::called_inside(wc, &cx.environment) {
        cx.ui.note("the current directory was replaced by the update; `cd \"$PWD\"` enters the new one");
    }
}
