//! What a caller may do.

use cluster::api::NodeRole;

use super::{Caller, Who};
use crate::http::problem::{ApiError, Code};
use crate::state::{NodeName, RepoName, Role};

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Read a repository, fetch from it, watch it.
    Read(&'a RepoName),
    /// Commit to a repository or push to it.
    Commit(&'a RepoName),
    /// Create a repository.
    CreateRepo,
    /// Freeze, thaw or copy onto a repository.
    ManageRepo(&'a RepoName),
    /// Pin the leadership to a node.
    PinLeader,
    /// See members and nodes.
    SeeCluster,
    /// See a node's target and what its programs reported.
    SeeReports(&'a NodeName),
    /// Follow a node's target and read its effective documents.
    Follow(&'a NodeName),
    /// Report for a node.
    Report(&'a NodeName),
    /// Make tokens for new nodes.
    IssueNodeToken,
    /// Let members vote or not, remove and replace nodes.
    ManageNodes,
    /// Make, list and revoke one's own API tokens and change one's password.
    OwnAccount,
    /// See and revoke everybody's tokens.
    AllAccounts,
    /// Get a fresh certificate for one's own name.
    Renew,
}

/// The one place that decides.
pub fn authorize(caller: &Caller, action: Action<'_>) -> Result<(), ApiError> {
    let allowed = match &caller.who {
        Who::User { role, .. } => user_may(*role, action),
        Who::Node { name, subcluster, role } => node_may(name, subcluster, *role, action),
    };
    if allowed {
        return Ok(());
    }
    let what = words(action);
    Err(ApiError::new(Code::Forbidden, format!("{} may not {what}", caller.name())))
}

fn user_may(role: Role, action: Action<'_>) -> bool {
    match action {
        Action::Read(_) | Action::SeeCluster | Action::SeeReports(_) | Action::Follow(_) | Action::OwnAccount => true,
        Action::Commit(_) => matches!(role, Role::Admin | Role::Committer),
        Action::CreateRepo
        | Action::ManageRepo(_)
        | Action::PinLeader
        | Action::IssueNodeToken
        | Action::ManageNodes
        | Action::AllAccounts
        | Action::Report(_) => role == Role::Admin,
        Action::Renew => false,
    }
}

fn node_may(name: &NodeName, subcluster: &RepoName, role: NodeRole, action: Action<'_>) -> bool {
    match action {
        Action::Read(repo) => role != NodeRole::Client || repo == subcluster || repo.is_global(),
        Action::SeeCluster | Action::Renew => true,
        Action::SeeReports(node) => role != NodeRole::Client || node == name,
        Action::Follow(node) | Action::Report(node) => node == name,
        Action::Commit(_)
        | Action::CreateRepo
        | Action::ManageRepo(_)
        | Action::PinLeader
        | Action::IssueNodeToken
        | Action::ManageNodes
        | Action::OwnAccount
        | Action::AllAccounts => false,
    }
}

fn words(action: Action<'_>) -> String {
    match action {
        Action::Read(repo) => format!("read {repo}"),
        Action::Commit(repo) => format!("commit to {repo}"),
        Action::CreateRepo => "create repositories".into(),
        Action::ManageRepo(repo) => format!("freeze, thaw or replace {repo}"),
        Action::PinLeader => "pin the leadership".into(),
        Action::SeeCluster => "see the cluster".into(),
        Action::SeeReports(node) => format!("see the reports of {node}"),
        Action::Follow(node) => format!("follow {node}"),
        Action::Report(node) => format!("report for {node}"),
        Action::IssueNodeToken => "make node tokens".into(),
        Action::ManageNodes => "manage nodes".into(),
        Action::OwnAccount => "manage an account".into(),
        Action::AllAccounts => "manage other accounts".into(),
        Action::Renew => "renew a node's certificate".into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Proof;
    use super::*;
    use crate::state::Author;

    fn user(role: Role) -> Caller {
        let author = Author { user: "u".into(), name: "u".into(), email: "u@c".into() };
        Caller { who: Who::User { name: "u".into(), role, author }, by: Proof::Password { generation: 0 } }
    }

    fn node(role: NodeRole) -> Caller {
        let who = Who::Node { name: "n1".parse().unwrap(), subcluster: "default".parse().unwrap(), role };
        Caller {
            who,
            by: Proof::Certificate { not_after: time::OffsetDateTime::UNIX_EPOCH, fingerprint: String::new() },
        }
    }

    #[test]
    fn who_may_do_what() {
        let repo = |text: &str| text.parse::<RepoName>().unwrap();
        let (default, global, east) = (repo("default"), repo("global"), repo("east"));
        let (n1, n2): (NodeName, NodeName) = ("n1".parse().unwrap(), "n2".parse().unwrap());
        let callers = [
            user(Role::Admin),
            user(Role::Committer),
            user(Role::Reader),
            node(NodeRole::Client),
            node(NodeRole::Learner),
        ];
        let table = [
            (Action::Read(&default), [true, true, true, true, true]),
            (Action::Read(&global), [true, true, true, true, true]),
            (Action::Read(&east), [true, true, true, false, true]),
            (Action::Commit(&default), [true, true, false, false, false]),
            (Action::CreateRepo, [true, false, false, false, false]),
            (Action::ManageRepo(&default), [true, false, false, false, false]),
            (Action::PinLeader, [true, false, false, false, false]),
            (Action::SeeCluster, [true, true, true, true, true]),
            (Action::SeeReports(&n1), [true, true, true, true, true]),
            (Action::SeeReports(&n2), [true, true, true, false, true]),
            (Action::Follow(&n1), [true, true, true, true, true]),
            (Action::Follow(&n2), [true, true, true, false, false]),
            (Action::Report(&n1), [true, false, false, true, true]),
            (Action::Report(&n2), [true, false, false, false, false]),
            (Action::IssueNodeToken, [true, false, false, false, false]),
            (Action::ManageNodes, [true, false, false, false, false]),
            (Action::OwnAccount, [true, true, true, false, false]),
            (Action::AllAccounts, [true, false, false, false, false]),
            (Action::Renew, [false, false, false, true, true]),
        ];
        for (action, expected) in table {
            let got = callers.each_ref().map(|caller| authorize(caller, action).is_ok());
            assert_eq!(got, expected, "{action:?}");
        }
    }
}
