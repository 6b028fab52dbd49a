//! Working copies on a node.
//!
//! A working copy is an ordinary git working tree, so that plain `git` works in it, with one addition: it moves to
//! another commit by a single `renameat2(RENAME_EXCHANGE)` of the whole directory with a second tree that was
//! prepared beside it. A program that opens a file by its path sees the old configuration or the new one, never a
//! mixture, and a `kill -9` at any instant leaves one of the two.
//!
//! # Layout
//! ```text
//! <wc>/                     the tree of the outer repository; `.git` is a real directory, branch `main`
//! <wc>/global/              a nested repository with its own `.git`, ignored by the outer one
//! <parent>/.<name>.eccfg/   what belongs to us alone, beside <wc>, mode 0700:
//!   copy.json               mounts, ownership; written once by `create`
//!   lock                    flock, held by whoever changes anything; its content names the holder
//!   objects/<repo>.git      a bare store per repository; `.git/objects/info/alternates` of both trees names it
//!   spare/                  the second tree
//!   manifest-<tree>         what each tree held when it was last looked at (a cache, of this run of the machine, that can be rebuilt)
//!   journal                 what is under way, for the next run after a crash
//!   trash/                  what an update has replaced, until it is through
//!   saved/<n>/              local edits that could not be carried into the live tree
//! ```
//!
//! # What always holds
//! * The upstream base of every repository (repository, revision, commit, server) is in `.git/eccfg/`, so it changes
//!   in the same instant as the files, HEAD, index and references.
//! * The two trees share no inode of a tracked file: patching the spare never writes into the live tree. Untracked
//!   things (log files, sockets, fifos, editors' temporary files) are hard links into both trees, so that a process
//!   that holds one open goes on writing to the file that the live tree has.
//! * A local edit is carried by a three-way merge (base = upstream base, ours = local, theirs = the new commit), or
//!   refused before anything changes, or saved under `saved/`. It is never dropped silently.
//! * Nothing runs `git`; no credential is ever written.
//!
//! # What can be promised about edits during an update
//! An edit that the kernel tells about ([`WorkingCopy::watch`]) or that a look at every file finds is known before the exchange:
//! merged, or the update is refused. Three kinds are found only after it, when the displaced tree is settled, and are carried over then
//! by a three-way merge or saved: edits of the last moment, stores through a memory mapping that still exists, and writes through
//! a hard link from outside the tree. inotify tells of neither; [`Scan::Full`] finds both, except for a store to a page that was
//! dirty already: the kernel changes no time for that one, so it is found when the mapping ends and that is told.
//!
//! A process that opened a *tracked* file for writing before the exchange, or whose current directory lies in the
//! tree, keeps a handle into the displaced tree. What it wrote before [`Exchanged::settle`] looks is carried over or
//! saved. What it writes later is found by [`WorkingCopy::tend`], which a resident agent calls when idle, or by the next
//! [`WorkingCopy::stage`] of a watched working copy; without a watch by [`WorkingCopy::sweep`], and by `stage` when the directories of
//! the second tree look touched. Until then the write is in the spare tree, not in the live one; a write in place is found
//! at the latest when that file is patched (it is saved then) or comes back as a local edit with the next exchange. A spare tree's file is
//! never overwritten or removed without being compared with what was last seen there; the window that remains is a write through an
//! old handle in the microseconds between that comparison and the replacement of the very same file.
//!
//! What power loss can do is said in `sync`; the reasons for all of it in `docs/decisions/working-copies.md`.
//!
//! Left out on purpose: clean/smudge filters and end-of-line conversion (`.git/info/attributes` switches them off:
//! bytes are what was committed), submodules, extended attributes, sparse checkouts.

mod copy;
mod create;
mod edit;
mod error;
pub mod fault;
mod flip;
mod fsx;
mod gitdir;
mod gitindex;
mod ignore;
mod inner;
mod journal;
mod lock;
mod manifest;
mod objects;
mod patch;
mod plan;
mod recover;
mod saved;
mod scan;
mod settle;
mod stage;
mod status;
mod survey;
mod sync;
mod threeway;
mod trash;
mod tree;
mod twins;
mod types;
mod watch;

pub use copy::{Exchanged, Staged, WorkingCopy};
pub use error::WorktreeError;
pub use types::{
    Base, ChangeKind, ConflictState, CreateOptions, Durability, LocalChange, Mount, MountStatus, OnOverlap, Ownership,
    ResolveTo, SavedEdit, Scan, Settled, StageOptions, Status, Target, Targets,
};
