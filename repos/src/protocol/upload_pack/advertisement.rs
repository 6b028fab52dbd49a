//! What `info/refs` answers.

use std::io::Write;

use super::super::objects::Objects;
use super::super::packet::PacketWriter;
use super::super::{AGENT, Advertised, Result, Version};
use crate::{Oid, RefName, Store};

/// gitprotocol-v2(5), "Capability Advertisement".
pub(super) fn capabilities_v2(out: &mut PacketWriter<impl Write>) -> Result<()> {
    out.text("version 2")?;
    out.text(format!("agent={AGENT}"))?;
    out.text("ls-refs=unborn")?;
    out.text("fetch=shallow wait-for-done")?;
    out.text("server-option")?;
    out.text("object-format=sha1")?;
    out.flush_packet()
}

/// gitprotocol-http(5), "Smart Server Response", for v0 and v1.
pub(super) fn references(
    store: &Store,
    version: Version,
    shown: Advertised<'_>,
    out: &mut PacketWriter<impl Write>,
) -> Result<()> {
    let objects = Objects::new(store, usize::MAX)?;
    out.text("# service=git-upload-pack")?;
    out.flush_packet()?;
    if version == Version::V1 {
        out.text("version 1")?;
    }
    let head = shown.refs.get(shown.head).copied();
    let mut capabilities = Some(capabilities_v0(head.map(|_| shown.head)));
    if let Some(head) = head {
        line(out, head, "HEAD", capabilities.take())?;
    }
    for (name, id) in shown.refs {
        line(out, *id, name.as_str(), capabilities.take())?;
        if let Some(peeled) = peeled(&objects, name, *id)? {
            line(out, peeled, &format!("{name}^{{}}"), None)?;
        }
    }
    if capabilities.is_some() {
        line(out, Oid::NULL, "capabilities^{}", capabilities)?;
    }
    out.flush_packet()
}

fn capabilities_v0(head: Option<&RefName>) -> String {
    let symref = head.map(|head| format!(" symref=HEAD:{head}")).unwrap_or_default();
    format!(
        "multi_ack side-band side-band-64k ofs-delta shallow deepen-since deepen-not deepen-relative no-progress include-tag \
         multi_ack_detailed allow-tip-sha1-in-want allow-reachable-sha1-in-want no-done{symref} object-format=sha1 agent={AGENT}"
    )
}

fn line(out: &mut PacketWriter<impl Write>, id: Oid, name: &str, capabilities: Option<String>) -> Result<()> {
    match capabilities {
        Some(capabilities) => out.text(format!("{id} {name}\0{capabilities}")),
        None => out.text(format!("{id} {name}")),
    }
}

/// What an annotated tag comes to. Branches are commits always, so they are not looked up.
pub(super) fn peeled(objects: &Objects, name: &RefName, id: Oid) -> Result<Option<Oid>> {
    if name.is_branch() { Ok(None) } else { objects.peeled(id) }
}
