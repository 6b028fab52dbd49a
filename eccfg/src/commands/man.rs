//! `eccfg man`.

use std::path::{Path, PathBuf};

use crate::commands::Context;
use crate::error::CommandError;

/// Write the manual pages into a directory
///
/// One page per command: eccfg.1, eccfg-pull.1 and so on. The directory is created if it does not exist.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where to write them
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let dir = cx.environment.absolute(&args.dir);
    std::fs::create_dir_all(&dir).map_err(|source| CommandError::io("create", &dir, source))?;
    let mut written = Vec::new();
    let mut command = crate::cli::command();
    command.build();
    write_page(&command, "eccfg", &dir, &mut written)?;
    if cx.ui.json() {
        cx.ui.json_document(&serde_json::json!({ "pages": written }))?;
    } else {
        cx.ui.progress(format!("{} pages in {}", written.len(), dir.display()))?;
    }
    Ok(0)
}

/// The page of `command`, then those of the commands below it.
fn write_page(command: &clap::Command, name: &str, dir: &Path, written: &mut Vec<String>) -> Result<(), CommandError> {
    let page = clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).section("1");
    let mut text = Vec::new();
    page.render(&mut text).map_err(|source| CommandError::io("render", &dir.join(name), source))?;
    let file = format!("{name}.1");
    let path = dir.join(&file);
    std::fs::write(&path, text).map_err(|source| CommandError::io("write", &path, source))?;
    written.push(file);
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_page(below, &format!("{name}-{}", below.get_name()), dir, written)?;
    }
    Ok(())
}
