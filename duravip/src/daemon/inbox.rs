//! What the other threads tell the loop, and the byte that wakes it.

use std::collections::BTreeMap;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use duravip_core::envelope::Key;
use duravip_core::{Answer, Event, Member, MemberId, Order};
use tokio::sync::oneshot;

use super::plan::Plan;

/// For the loop.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub enum Input {
    /// For the core, as it is.
    Event(Event),
    /// A new configuration.
    Plan(Arc<Plan>),
    /// Where the members are.
    Places(BTreeMap<MemberId, SocketAddr>),
    /// An order, and who waits for its answer.
    Order(Order, oneshot::Sender<Answer>),
    /// The core as it is, to look at somewhere else.
    Look(oneshot::Sender<Box<Member>>),
    /// A question for another daemon, and who waits.
    Ask(MemberId, Vec<u8>, oneshot::Sender<Vec<u8>>),
    /// The answer to another daemon's question.
    Reply(MemberId, u64, Vec<u8>),
    /// A key that was agreed with a member.
    Key(MemberId, Key),
    /// Announce everything that is here.
    AnnounceAll,
    /// Stop now.
    Stop,
}

/// The senders' side.
#[derive(Debug, Clone)]
pub struct Inbox {
    // Not bounded: what comes in is bounded by what asks (connections of the control socket, addresses, checks), and a
    // thread that had to wait here could keep the loop's own work from being done.
    sender: Sender<Input>,
    waker: Arc<Waker>,
}

#[derive(Debug)]
struct Waker {
    pipe: Mutex<PipeWriter>,
    rung: AtomicBool,
}

/// The loop's side.
#[derive(Debug)]
pub struct Inputs {
    receiver: Receiver<Input>,
    pipe: PipeReader,
    waker: Arc<Waker>,
}

/// Both sides.
pub fn inbox() -> io::Result<(Inbox, Inputs)> {
    let (sender, receiver) = channel();
    let (reader, writer) = io::pipe()?;
    let waker = Arc::new(Waker { pipe: Mutex::new(writer), rung: AtomicBool::new(false) });
    Ok((Inbox { sender, waker: waker.clone() }, Inputs { receiver, pipe: reader, waker }))
}

impl Inbox {
    /// Tells the loop; false once it has ended.
    pub fn send(&self, input: Input) -> bool {
        let told = self.sender.send(input).is_ok();
        // One byte at most is in the pipe, so that this never waits.
        if told && !self.waker.rung.swap(true, Ordering::AcqRel) {
            let mut pipe = self.waker.pipe.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = pipe.write_all(&[1]);
        }
        told
    }

    /// Tells the core.
    pub fn event(&self, event: Event) -> bool {
        self.send(Input::Event(event))
    }
}

impl Inputs {
    /// The next input, if there is one.
    pub fn take(&mut self) -> Option<Input> {
        self.receiver.try_recv().ok()
    }

    /// After the pipe woke the loop: what is sent from here on wakes it again.
    pub fn woken(&mut self) {
        let mut byte = [0];
        let _ = self.pipe.read(&mut byte);
        self.waker.rung.store(false, Ordering::Release);
    }
}

impl AsFd for Inputs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
