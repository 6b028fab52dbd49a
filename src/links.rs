//! `eccluster install-links`: a link per program, so that each can be called by its own name.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::PROGRAMS;

/// Makes a link in DIR for every program of this binary
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where the links go; made when it is not there
    dir: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command: prints each link, fails with the path that could not be made.
pub(crate) fn main(options: &Options) -> ExitCode {
    match install(&options.dir) {
        Ok(links) => {
            let mut out = io::stdout().lock();
            let _ = if options.json {
                let links: Vec<_> = links.iter().map(|link| link.to_string_lossy()).collect();
                writeln!(out, "{}", serde_json::json!({ "links": links }))
            } else {
                links.iter().try_for_each(|link| writeln!(out, "{}", link.display()))
            };
            ExitCode::SUCCESS
        }
        Err((path, cause)) => {
            let mut err = io::stderr();
            let _ = writeln!(err, "error: cannot make {}: {cause}", path.display());
            if cause.kind() == io::ErrorKind::AlreadyExists {
                let _ = writeln!(err, "hint: something else stands there; move it away, or name another directory");
            }
            ExitCode::FAILURE
        }
    }
}

/// Makes the links; one that already points at this binary is kept, another file of that name is never replaced.
pub(crate) fn install(dir: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let binary = std::env::current_exe().map_err(|cause| (dir.to_owned(), cause))?;
    std::fs::create_dir_all(dir).map_err(|cause| (dir.to_owned(), cause))?;
    let link = |name: &str| {
        let path = dir.join(name);
        point(&path, &binary).map_err(|cause| (path.clone(), cause))?;
        Ok(path)
    };
    PROGRAMS.iter().map(|program| link(program.name)).collect()
}

fn point(path: &Path, binary: &Path) -> io::Result<()> {
    match std::fs::read_link(path) {
        Ok(target) if target == binary => return Ok(()),
        // A link of ours to an older place of the binary; files that are no links are left to the error below.
        Ok(_) => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    std::os::unix::fs::symlink(binary, path)
}
