//! Node-local `agent.toml`: the services that follow files of the working copy, and the commands that check and reload
//! them. It never comes from a repository: whoever may commit must not be able to run commands as root.

use serde::{Deserialize, Serialize};

use super::values::PathGlob;
use super::{Checker, Context, DocumentKind, Schema, names};
use crate::documents::place::KeyPath;
use crate::units::HumanDuration;

/// What may be written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAgent {
    /// The services, in the order in which they are handled.
    pub service: Option<Vec<RawService>>,
}

/// What may be written about a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawService {
    /// Its name.
    pub name: Option<String>,
    /// The files it follows.
    pub paths: Option<Vec<PathGlob>>,
    /// Judges the staged tree before the swap.
    pub check: Option<Vec<String>>,
    /// Makes the service read its files.
    pub reload: Option<Vec<String>>,
    /// Judges the service afterwards.
    pub verify: Option<Vec<String>>,
    /// The longest that each command may take.
    pub timeout: Option<HumanDuration>,
    /// How long to wait for further changes.
    pub debounce: Option<HumanDuration>,
}

/// The services of this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Agent {
    /// In the order in which they are handled.
    pub services: Vec<Service>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name, for status and logs.
    pub name: String,
    /// The files it follows, as patterns from the working copy's root.
    pub paths: Vec<PathGlob>,
    /// argv that judges the staged tree before the swap.
    pub check: Option<Vec<String>>,
    /// argv that makes the service read its files.
    pub reload: Option<Vec<String>>,
    /// argv that judges the service afterwards.
    pub verify: Option<Vec<String>>,
    /// The longest that each command may take.
    pub timeout: HumanDuration,
    /// How long to wait for further changes before starting.
    pub debounce: HumanDuration,
}

impl Service {
    /// True when one of the paths is among those the service follows.
    pub fn follows<'a>(&self, changed: impl IntoIterator<Item = &'a str>) -> bool {
        let matchers: Vec<_> = self.paths.iter().map(|glob| glob.glob().compile_matcher()).collect();
        changed.into_iter().any(|path| matchers.iter().any(|matcher| matcher.is_match(path)))
    }
}

/// The longest time a command of a service may take.
const DEFAULT_TIMEOUT: HumanDuration = HumanDuration::from_secs(30);
/// Commits often come in pairs; one reload is enough for both.
const DEFAULT_DEBOUNCE: HumanDuration = HumanDuration::from_millis(200);

impl Schema for Agent {
    const KIND: DocumentKind = DocumentKind::Agent;
    type Raw = RawAgent;

    fn resolve(raw: RawAgent, _: &Context<'_>, check: &mut Checker<'_>) -> Self {
        let mut services: Vec<Service> = Vec::new();
        for (index, raw) in raw.service.unwrap_or_default().into_iter().enumerate() {
            let path = KeyPath::keys(["service"]).index(index);
            let service = resolve_service(raw, &path, check);
            if !service.name.is_empty() && services.iter().any(|other| other.name == service.name) {
                check.refuse(&path.key("name"), format!("two services are called \"{}\"", service.name));
            }
            services.push(service);
        }
        Self { services }
    }
}

fn resolve_service(raw: RawService, path: &KeyPath, check: &mut Checker<'_>) -> Service {
    match &raw.name {
        None => check.missing(path, "name"),
        Some(name) => {
            if let Some(reason) = names::refuse_item_name(name) {
                check.refuse(&path.key("name"), reason);
            }
        }
    }
    let paths = raw.paths.unwrap_or_default();
    if paths.is_empty() {
        check.missing(path, "paths");
    }
    if raw.check.is_none() && raw.reload.is_none() && raw.verify.is_none() {
        check.refuse(path, "a service needs at least one of check, reload and verify");
    }
    for (key, argv) in [("check", &raw.check), ("reload", &raw.reload), ("verify", &raw.verify)] {
        check_argv(argv.as_deref(), &path.key(key), check);
    }
    let timeout = raw.timeout.unwrap_or(DEFAULT_TIMEOUT);
    if timeout == HumanDuration::default() {
        check.refuse(&path.key("timeout"), "no command ends in no time");
    }
    Service {
        name: raw.name.unwrap_or_default(),
        paths,
        check: raw.check,
        reload: raw.reload,
        verify: raw.verify,
        timeout,
        debounce: raw.debounce.unwrap_or(DEFAULT_DEBOUNCE),
    }
}

/// An argv that is written must name a program.
pub(super) fn check_argv(argv: Option<&[String]>, path: &KeyPath, check: &mut Checker<'_>) {
    let Some(argv) = argv else { return };
    if argv.first().is_none_or(String::is_empty) {
        check.refuse_with_hint(
            path,
            "the list names no program",
            "write the program and its arguments: [\"nginx\", \"-t\"]",
        );
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        check.refuse(path, "an argument cannot contain a NUL character");
    }
}
