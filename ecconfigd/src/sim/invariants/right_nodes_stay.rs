//! A node whose state nobody spoiled is never blamed for a difference, as long as the spoiled ones are no majority.

use super::super::disk::Disk;
use super::super::node::Node;

pub(crate) fn check(node: u64, disk: &Disk, running: &[Node]) -> Result<(), String> {
    let spoiled = running.iter().filter(|node| node.state.dump().iter().any(|(key, _)| key == b"user/nobody")).count();
    if disk.is_damaged() || spoiled * 2 > running.len() {
        return Ok(());
    }
    Err(format!("n{node} took itself out, and its state is right"))
}
