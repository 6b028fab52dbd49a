//! What the versions of the protocol share: which objects may be asked for, and sending the pack.

use std::collections::HashSet;

use super::super::enumerate::{Question, enumerate};
use super::super::objects::Objects;
use super::super::packet::{BandWriter, Bands};
use super::super::shallow::Edges;
use super::super::{Advertised, Error, Result, graph, packwriter, printable};
use super::{Answer, Served, ServedKind, UploadLimits, WantPolicy};
use crate::{ObjectKind, Oid, RefName};

/// One request, with what is needed to answer it.
pub(super) struct Session<'a> {
    pub(super) objects: Objects,
    pub(super) shown: Advertised<'a>,
    pub(super) limits: &'a UploadLimits,
}

/// The pack that a client has come to.
pub(super) struct PackRequest {
    pub(super) wants: Vec<Oid>,
    pub(super) haves: Vec<Oid>,
    pub(super) edges: Edges,
    pub(super) options: PackOptions,
}

/// How it wants the pack.
#[derive(Debug, Clone, Default)]
pub(super) struct PackOptions {
    pub(super) no_progress: bool,
    pub(super) include_tag: bool,
    pub(super) ofs_delta: bool,
}

impl Session<'_> {
    /// Refuses wants that are not here or not to be had.
    pub(super) fn check_wants(&self, wants: &[Oid]) -> Result<()> {
        let tips: HashSet<Oid> = self.shown.refs.values().copied().collect();
        let open: Vec<Oid> = wants.iter().copied().filter(|id| !tips.contains(id)).collect();
        let not_ours = match self.limits.wants {
            _ if open.is_empty() => None,
            WantPolicy::Any => self.first_not(&open, |kind| kind.is_some())?,
            WantPolicy::Reachable => match self.first_not(&open, |kind| kind == Some(ObjectKind::Commit))? {
                None => graph::unreachable(&self.objects, &self.tips()?, &open)?,
                other => other,
            },
        };
        match not_ours {
            Some(id) => Err(Error::Refused(format!("not our ref {id}"))),
            None => Ok(()),
        }
    }

    fn first_not(&self, ids: &[Oid], holds: impl Fn(Option<ObjectKind>) -> bool) -> Result<Option<Oid>> {
        for id in ids {
            if !holds(self.objects.kind(*id)?) {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    /// The commits that references name.
    pub(super) fn tips(&self) -> Result<Vec<Oid>> {
        let mut tips = Vec::new();
        for id in self.shown.refs.values() {
            if let Some((_, end, ObjectKind::Commit)) = self.objects.peel(*id)? {
                tips.push(end);
            }
        }
        Ok(tips)
    }

    /// What a reference is called on the command line of a client, as in `--shallow-exclude=v1.0`.
    pub(super) fn resolve(&self, name: &[u8]) -> Result<Oid> {
        let unknown = || Error::Refused(format!("ambiguous deepen-not: {}", printable(name)));
        let name = std::str::from_utf8(name).map_err(|_| unknown())?;
        if name == "HEAD" {
            return self.shown.refs.get(self.shown.head).copied().ok_or_else(unknown);
        }
        ["", "refs/", "refs/tags/", "refs/heads/", "refs/remotes/"]
            .iter()
            .filter_map(|prefix| RefName::try_from(format!("{prefix}{name}")).ok())
            .find_map(|name| self.shown.refs.get(&name).copied())
            .ok_or_else(unknown)
    }

    /// Enumerates and sends the pack, and ends the answer.
    pub(super) fn send_pack(&self, request: PackRequest, answer: &mut Answer<'_>, bands: Bands) -> Result<Served> {
        answer.bands = Some(bands);
        let mut out = BandWriter::new(answer.out.inner(), bands);
        let list = enumerate(&self.objects, &self.question(&request))?;
        if !request.options.no_progress {
            out.progress(&format!("Enumerating objects: {}, done.\n", list.len()))?;
        }
        let summary = packwriter::write(&self.objects, list, request.options.ofs_delta, &mut out)?;
        if !request.options.no_progress {
            out.progress(&format!(
                "Total {} (delta {}), reused {}\n",
                summary.objects, summary.deltas, summary.copied
            ))?;
        }
        let pack_bytes = out.written_bytes();
        out.finish()?;
        Ok(Served { kind: ServedKind::Pack, objects: summary.objects, pack_bytes })
    }

    fn question(&self, request: &PackRequest) -> Question {
        let mut wants = request.wants.clone();
        wants.extend_from_slice(&request.edges.more_wants);
        // Tags that point at tags, or at anything else, are looked at when it is known what is sent.
        let tags = self.shown.refs.iter().filter(|(name, _)| request.options.include_tag && !name.is_branch());
        Question {
            wants,
            haves: request.haves.clone(),
            cut: request.edges.cut.clone(),
            include_tags: tags.map(|(_, id)| *id).collect(),
            max_objects: self.limits.max_objects,
        }
    }
}

/// The id in a line such as `want <id>`.
pub(super) fn parse_id(line: &[u8], id: &[u8]) -> Result<Oid> {
    let text = std::str::from_utf8(id).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::malformed(format!("no object id in “{}”", printable(line))))
}

/// The number in a line such as `deepen 3`.
pub(super) fn parse_number<N: std::str::FromStr>(line: &[u8], number: &[u8]) -> Result<N> {
    let text = std::str::from_utf8(number).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::malformed(format!("no number in “{}”", printable(line))))
}

/// Adds to a list that has a limit.
pub(super) fn push_limited<T>(list: &mut Vec<T>, item: T, limit: usize, what: &'static str) -> Result<()> {
    if list.len() >= limit {
        return Err(Error::TooLarge { what, limit: limit as u64 });
    }
    list.push(item);
    Ok(())
}
