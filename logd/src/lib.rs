//! Log aggregation: what reads and manages journals today, and the old format that existing sites bring.
//!
//! The journal itself is `logd-journal`, which knows nothing of the programs here.

pub mod jlog;
pub mod jlogctl;

/// `jlogctl` as a program: `args` begin with the program's name, as a process gets them.
pub fn jlogctl(args: Vec<std::ffi::OsString>) -> std::process::ExitCode {
    let mut out = std::io::stdout().lock();
    let mut err = std::io::stderr();
    std::process::ExitCode::from(jlogctl::run(args, &mut out, &mut err))
}
