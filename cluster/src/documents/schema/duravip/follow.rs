//! Addresses that go with others: whom each ends up following.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::raw::RawVip;

/// Who follows whom.
pub(super) struct Follows<'a> {
    raw: &'a BTreeMap<IpAddr, RawVip>,
    pub(super) names: BTreeMap<&'a str, Vec<IpAddr>>,
}

impl<'a> Follows<'a> {
    pub(super) fn new(raw: &'a BTreeMap<IpAddr, RawVip>) -> Self {
        let mut names: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        for (address, vip) in raw {
            if let Some(name) = &vip.name {
                names.entry(name).or_default().push(*address);
            }
        }
        Self { raw, names }
    }

    /// The elected address at the end of the chain.
    pub(super) fn leader_of(&self, address: IpAddr) -> Result<IpAddr, String> {
        let mut chain = vec![address];
        let mut at = address;
        while let Some(target) = self.raw.get(&at).and_then(|vip| vip.follow.as_deref()) {
            at = self.find(target)?;
            if at == address {
                return Err(if chain.len() == 1 {
                    "an address cannot follow itself".to_owned()
                } else {
                    let names: Vec<String> = chain.iter().chain([&address]).map(IpAddr::to_string).collect();
                    format!("these addresses follow each other in a circle: {}", names.join(" → "))
                });
            }
            // A circle further on is that circle's mistake, and long chains are nobody's intention.
            if chain.contains(&at) || chain.len() > 16 {
                return Err(format!("{address} follows addresses that never reach one that is elected"));
            }
            chain.push(at);
        }
        Ok(at)
    }

    fn find(&self, target: &str) -> Result<IpAddr, String> {
        let shown = crate::documents::place::shortened(target);
        if let Ok(address) = target.parse::<IpAddr>() {
            return match self.raw.contains_key(&address) {
                true => Ok(address),
                false => Err(format!("\"{shown}\" is not among the addresses")),
            };
        }
        match self.names.get(target).map(Vec::as_slice) {
            Some([address]) => Ok(*address),
            Some(several) => {
                Err(format!("{} addresses are called \"{shown}\"; follow one by its address", several.len()))
            }
            None => Err(format!("no address is called \"{shown}\"")),
        }
    }
}
