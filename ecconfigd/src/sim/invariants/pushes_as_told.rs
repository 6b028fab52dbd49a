//! What a client was told of its push is what the log did: the refs that it was told are done moved together in one entry, from where the
//! client believed them to be; those that it was told are refused never moved there.

use super::super::history::Push;
use super::super::oracle::{Moment, Repo};

pub(crate) fn check(push: &Push, moments: &[Moment]) -> Result<(), String> {
    let at = |moment: &Moment, of: &dyn Fn(&Repo) -> bool| moment.repos.get(&push.repo).is_some_and(of);
    let commands = || push.commands.iter().zip(&push.results);
    let done: Vec<_> = commands().filter(|(_, (_, result))| result.is_ok()).map(|(command, _)| command).collect();
    let points = |repo: &Repo, name, to: repos::Oid| repo.refs.get(name).copied().unwrap_or(repos::Oid::NULL) == to;
    let happened = moments.windows(2).any(|two| {
        at(&two[0], &|repo| done.iter().all(|one| points(repo, &one.name, one.old)))
            && at(&two[1], &|repo| done.iter().all(|one| points(repo, &one.name, one.new)))
    });
    if !done.is_empty() && !happened {
        return Err(format!("a push was acknowledged and is nowhere in the log as one step: {push:?}"));
    }
    for (command, (name, result)) in commands() {
        let Err(why) = result else { continue };
        // Only this push brings this commit.
        if !command.new.is_null() && moments.iter().any(|moment| at(moment, &|repo| points(repo, name, command.new))) {
            return Err(format!("a push of {name} was refused ({why}) and happened all the same: {push:?}"));
        }
    }
    Ok(())
}
