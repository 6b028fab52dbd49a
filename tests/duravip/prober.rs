//! A host outside the cluster that asks for every address all the time, and notes which hardware address answers.
//!
//! A question goes to everybody at once, so two answers to it are two owners. One such round may be a frame that waited in a
//! queue while the address moved; two in a row are two machines that both answer.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use duravip::effects::announce::{ARP, Arp, IPV6, Sender, icmpv6_frame, multicast_mac};
use duravip::effects::plumbing::Plumbing;
use duravip::sys::packet_socket;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{MsgFlags, recv};

use crate::lab::{Lab, Owners};

/// Between a question and the next.
const ROUND: Duration = Duration::from_millis(5);
const OWN_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 1];
const OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// What was seen of an address.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Who answered last.
    last: Option<[u8; 6]>,
    /// Rounds since anybody did.
    silent: u32,
    /// Rounds in a row with two answers.
    doubled: u32,
    /// Who answered when two did in two rounds in a row.
    violations: BTreeSet<[u8; 6]>,
    /// Who made the last announcement on the segment.
    announced: Option<[u8; 6]>,
}

/// The prober. Ends with a look at what it saw.
#[derive(Debug)]
pub struct Prober {
    seen: Arc<Mutex<BTreeMap<IpAddr, Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    names: BTreeMap<[u8; 6], String>,
}

impl Prober {
    /// Asks for these from now on.
    pub fn start(lab: &Lab, addresses: impl IntoIterator<Item = IpAddr>) -> Prober {
        let seen: BTreeMap<IpAddr, Seen> = addresses.into_iter().map(|address| (address, Seen::default())).collect();
        let seen = Arc::new(Mutex::new(seen));
        let stop = Arc::new(AtomicBool::new(false));
        let namespace = File::open(format!("/var/run/netns/{}", lab.outside())).unwrap();
        let thread = std::thread::spawn({
            let (seen, stop) = (seen.clone(), stop.clone());
            move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                ask_on(&seen, &stop);
            }
        });
        let names = lab.machines.iter().map(|machine| (machine.mac, machine.name.clone())).collect();
        Prober { seen, stop, thread: Some(thread), names }
    }

    fn name(&self, mac: [u8; 6]) -> String {
        self.names.get(&mac).cloned().unwrap_or_else(|| format!("{mac:x?}"))
    }

    /// Who answers for each address now; nobody, if the last few questions got no answer.
    pub fn answering(&self) -> BTreeMap<IpAddr, Option<String>> {
        let seen = self.seen.lock().unwrap();
        let who = |seen: &Seen| seen.last.filter(|_| seen.silent < 20).map(|mac| self.name(mac));
        seen.iter().map(|(address, seen)| (*address, who(seen))).collect()
    }

    /// Waits until the members are at rest with owners as `wanted` and exactly these answer, and nobody else ever did at
    /// the same time.
    #[track_caller]
    pub fn settled(&self, lab: &Lab, what: &str, wanted: impl Fn(&Owners) -> bool) -> Owners {
        let owners = lab.settled_and(what, wanted, |owners| self.confirms(owners));
        self.assert_never_two(what);
        owners
    }

    /// The same, and what each owner announced is also the last word on the segment.
    #[track_caller]
    pub fn settled_and_announced(&self, lab: &Lab, what: &str, wanted: impl Fn(&Owners) -> bool) -> Owners {
        let owners = lab.settled_and(what, wanted, |owners| {
            self.confirms(owners)?;
            let announced = self.last_announced();
            let differs = owners.iter().find(|(address, owner)| announced.get(*address) != Some(*owner));
            match differs {
                Some((address, _)) => Err(format!("{address} was last announced by {:?}", announced.get(address))),
                None => Ok(()),
            }
        });
        self.assert_never_two(what);
        owners
    }

    /// Whether the answers are the owners', for each address that is asked for.
    fn confirms(&self, owners: &Owners) -> Result<(), String> {
        let answering = self.answering();
        match answering.iter().find(|(address, who)| who.as_ref() != owners.get(*address)) {
            Some((address, who)) => Err(format!("{address} is answered for by {who:?}; all answers: {answering:?}")),
            None => Ok(()),
        }
    }

    /// Who spoke last for each address without being asked.
    pub fn last_announced(&self) -> BTreeMap<IpAddr, String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter_map(|(address, seen)| Some((*address, self.name(seen.announced?)))).collect()
    }

    /// Two machines never answered for one address.
    #[track_caller]
    pub fn assert_never_two(&self, what: &str) {
        let seen = self.seen.lock().unwrap();
        for (address, seen) in seen.iter() {
            let names: Vec<String> = seen.violations.iter().map(|mac| self.name(*mac)).collect();
            assert!(names.is_empty(), "{what}: {address} was answered for by {names:?} at the same time");
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ask_on(seen: &Mutex<BTreeMap<IpAddr, Seen>>, stop: &AtomicBool) {
    let index = Plumbing::open().unwrap().interfaces()["eth0"].index;
    let sockets = [packet_socket(index, ARP).unwrap(), packet_socket(index, IPV6).unwrap()];
    let questions: Vec<Vec<u8>> = seen.lock().unwrap().keys().map(|address| question(*address)).collect();
    let mut sender = Sender::default();
    while !stop.load(Ordering::Relaxed) {
        let _ = sender.send(index, &questions);
        std::thread::sleep(ROUND);
        let mut round: BTreeMap<IpAddr, BTreeSet<[u8; 6]>> = BTreeMap::new();
        let mut seen = seen.lock().unwrap();
        for (address, mac, asked) in heard(&sockets) {
            if asked {
                round.entry(address).or_default().insert(mac);
            } else if let Some(seen) = seen.get_mut(&address) {
                seen.announced = Some(mac);
            }
        }
        for (address, seen) in seen.iter_mut() {
            let answers = round.remove(address).unwrap_or_default();
            seen.silent = if answers.is_empty() { seen.silent + 1 } else { 0 };
            seen.doubled = if answers.len() > 1 { seen.doubled + 1 } else { 0 };
            if seen.doubled >= 2 {
                seen.violations.extend(&answers);
            }
            seen.last = answers.first().copied().or(seen.last);
        }
    }
}

fn question(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(target) => {
            Arp { reply: false, sender_mac: OWN_MAC, sender: OWN_V4, target_mac: [0; 6], target }.frame([0xFF; 6])
        }
        IpAddr::V6(target) => {
            let [.., a, b, c] = target.octets();
            let group = Ipv6Addr::from([0xFF, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xFF, a, b, c]);
            let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
            message.extend(target.octets());
            message.extend([1, 1]);
            message.extend(OWN_MAC);
            icmpv6_frame(multicast_mac(group), OWN_MAC, "fd77::1".parse().unwrap(), group, &message)
        }
    }
}

/// What was said on the segment: whose address, by whom, and whether it answers a question of ours.
fn heard(sockets: &[OwnedFd]) -> Vec<(IpAddr, [u8; 6], bool)> {
    let mut heard = Vec::new();
    let mut frame = [0; 2048];
    for socket in sockets {
        while let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            let frame = &frame[..length];
            if let Some(packet) = Arp::read(frame) {
                let asked = packet.reply && packet.target_mac == OWN_MAC;
                if packet.sender_mac != OWN_MAC && !packet.sender.is_unspecified() {
                    heard.push((packet.sender.into(), packet.sender_mac, asked));
                }
            } else if length >= 78 && frame[20] == 58 && frame[54] == 136 {
                let target: [u8; 16] = frame[62..78].try_into().unwrap();
                heard.push((Ipv6Addr::from(target).into(), frame[6..12].try_into().unwrap(), frame[58] & 0x40 != 0));
            }
        }
    }
    heard
}
