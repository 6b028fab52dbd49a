//! Once things are calm, every address that anybody may have has exactly one owner, the one that the table names, and
//! everybody has the same table.

use crate::tests::world::World;
use crate::{MemberId, Version};

impl World {
    /// What is wrong among these hosts, which have been calm for long enough.
    pub(crate) fn covered(&self, among: &[usize]) -> Result<(), String> {
        let leader = among.iter().find_map(|node| {
            let core = self.hosts[*node].core.as_ref()?;
            core.cluster.lead().map(|_| core)
        });
        let leader = leader.ok_or("nobody leads")?;
        let table = leader.table();
        for node in among {
            let Some(core) = &self.hosts[*node].core else { continue };
            let version: Version = core.table().version;
            if version != table.version {
                return Err(format!("n{} has table {version}, the leader {}", node + 1, table.version));
            }
        }
        for (address, entry) in &table.entries {
            let explained = leader.explain(self.local_of(leader.id()), *address).ok_or("nobody explains")?;
            let owners = self.owners(*address);
            let by_table: Vec<usize> = entry.owner.iter().map(|owner| owner.0 as usize - 1).collect();
            if owners != by_table {
                return Err(format!(
                    "{address} is answered for by {owners:?}, by the table it is {by_table:?}'s (from 0)"
                ));
            }
            if explained.target.is_some() && owners.is_empty() {
                return Err(format!("{address} is nobody's: {explained:?}"));
            }
        }
        Ok(())
    }

    pub(crate) fn local_of(&self, member: MemberId) -> crate::Time {
        self.local(member.0 as usize - 1)
    }
}
