//! Which services a change concerns, and what is run for each: `agent.toml`, made ready.

use std::time::Duration;

use cluster::documents::schema::agent;
use globset::{GlobSet, GlobSetBuilder};
use repos::RepoPath;

/// One `[[service]]` of `agent.toml`.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Its name in reports.
    pub(crate) name: String,
    /// Which paths of the working copy belong to it.
    pub(crate) paths: GlobSet,
    /// Run on the staged tree before the exchange; empty when there is nothing to check.
    pub(crate) check: Vec<String>,
    /// Run after the exchange; empty when the service notices by itself.
    pub(crate) reload: Vec<String>,
    /// Run after the reload; empty when there is nothing to verify.
    pub(crate) verify: Vec<String>,
    /// When a command is ended.
    pub(crate) timeout: Duration,
    /// The least time between two updates that concern it: the first of a burst is acted on at once, the rest together.
    pub(crate) debounce: Duration,
}

/// The services of a node in their declared order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services(pub(crate) Vec<Service>);

impl Services {
    /// The services that own one of these paths, in declared order.
    pub(crate) fn concerned<'a>(&'a self, changed: &[RepoPath]) -> Vec<&'a Service> {
        self.0.iter().filter(|service| changed.iter().any(|path| service.owns(path))).collect()
    }

    /// The services of these names, in declared order. One that is no longer declared is left out: nothing can be run for it.
    pub(crate) fn named<'a>(&'a self, names: &[String]) -> Vec<&'a Service> {
        self.0.iter().filter(|service| names.contains(&service.name)).collect()
    }
}

impl Service {
    fn owns(&self, path: &RepoPath) -> bool {
        self.paths.is_match(path.as_path())
    }

    /// True when something happens after the exchange, which must be finished even by another run of the agent.
    pub(crate) fn is_active(&self) -> bool {
        !self.reload.is_empty() || !self.verify.is_empty()
    }
}

impl Services {
    /// Makes the document ready. Its patterns have been judged one by one already; all together they may still be too much.
    pub(crate) fn from_document(document: &agent::Agent) -> Result<Services, globset::Error> {
        document.services.iter().map(Service::from_document).collect::<Result<_, _>>().map(Services)
    }
}

impl Service {
    fn from_document(document: &agent::Service) -> Result<Service, globset::Error> {
        let mut paths = GlobSetBuilder::new();
        for pattern in &document.paths {
            paths.add(pattern.glob().clone());
        }
        Ok(Service {
            name: document.name.clone(),
            paths: paths.build()?,
            check: document.check.clone().unwrap_or_default(),
            reload: document.reload.clone().unwrap_or_default(),
            verify: document.verify.clone().unwrap_or_default(),
            timeout: document.timeout.get(),
            debounce: document.debounce.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, patterns: &[&str]) -> Service {
        let document = agent::Service {
            name: name.into(),
            paths: patterns.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            check: None,
            reload: None,
            verify: None,
            timeout: Default::default(),
            debounce: Default::default(),
        };
        Service::from_document(&document).unwrap()
    }

    fn names(services: &[&Service]) -> Vec<String> {
        services.iter().map(|service| service.name.clone()).collect()
    }

    #[test]
    fn services_are_concerned_in_declared_order() {
        let services = Services(vec![
            service("b", &["default/b/**", "n1/b/**"]),
            service("a", &["default/*.conf"]),
            service("all", &["**"]),
        ]);
        let changed = |paths: &[&str]| paths.iter().map(|path| RepoPath::try_from(*path).unwrap()).collect::<Vec<_>>();
        let concerned = |paths: &[&str]| names(&services.concerned(&changed(paths)));
        assert_eq!(concerned(&["default/a.conf", "n1/b/x/y"]), ["b", "a", "all"]);
        assert_eq!(concerned(&["default/deep/a.conf"]), ["all"]);
        assert_eq!(concerned(&[]), [""; 0]);
    }
}
