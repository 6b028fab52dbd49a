//! Joins equal work that is under way: whoever asks for what somebody already waits for waits along.
//!
//! After a restart hundreds of clients come back at once with the same credentials. One of them sets the work off, on a task of its own so
//! that nobody depends on its connection, and all get the one outcome. What is done is forgotten here at once: remembering is the cache's.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

/// Callers that wait at a time, for all work together: as many as there may be connections. More are turned away.
const MAX_WAITING: usize = 32_768;

/// Work under way, by key.
#[derive(Debug)]
pub struct Flights<K: Eq + Hash, T> {
    /// Bounded by `max`: each entry is one task.
    under_way: Arc<Mutex<UnderWay<K, T>>>,
    waiting: AtomicUsize,
    max: usize,
}

type UnderWay<K, T> = HashMap<K, watch::Receiver<Option<T>>>;

impl<K: Copy + Eq + Hash + Send + 'static, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// At most so many different pieces of work at a time.
    pub fn new(max: usize) -> Self {
        Self { under_way: Arc::default(), waiting: AtomicUsize::new(0), max }
    }

    /// The outcome of the work under this key; `work` is run if nobody else's is. `None`: there is no room, or the work panicked.
    pub async fn join<W>(&self, key: K, work: impl FnOnce() -> W) -> Option<T>
    where
        W: Future<Output = T> + Send + 'static,
    {
        let _waiting = Waiting::enter(&self.waiting)?;
        let mut landed = self.board(key, work)?;
        let outcome = landed.wait_for(Option::is_some).await.ok()?;
        outcome.clone()
    }

    fn board<W>(&self, key: K, work: impl FnOnce() -> W) -> Option<watch::Receiver<Option<T>>>
    where
        W: Future<Output = T> + Send + 'static,
    {
        let mut under_way = lock(&self.under_way);
        if let Some(flight) = under_way.get(&key) {
            return Some(flight.clone());
        }
        if under_way.len() >= self.max {
            return None;
        }
        let (sender, receiver) = watch::channel(None);
        under_way.insert(key, receiver.clone());
        let seat = Seat { under_way: self.under_way.clone(), key };
        let work = work();
        tokio::spawn(async move {
            let outcome = work.await;
            drop(seat);
            sender.send_replace(Some(outcome));
        });
        Some(receiver)
    }
}

/// One piece of work in the table; it leaves the table however it ends.
struct Seat<K: Copy + Eq + Hash, T> {
    under_way: Arc<Mutex<UnderWay<K, T>>>,
    key: K,
}

impl<K: Copy + Eq + Hash, T> Drop for Seat<K, T> {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.key);
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Option<Self> {
        let this = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(this)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<K, T>(under_way: &Mutex<UnderWay<K, T>>) -> std::sync::MutexGuard<'_, UnderWay<K, T>> {
    under_way.lock().expect("no code panics while it holds this lock")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn a_herd_is_one_run_and_all_are_answered() {
        let flights = Flights::<u8, usize>::new(4);
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let work = || {
            let (runs, gate) = (runs.clone(), gate.clone());
            async move {
                gate.acquire().await.unwrap().forget();
                runs.fetch_add(1, Ordering::Relaxed) + 40
            }
        };
        let herd = futures::future::join_all((0..500).map(|_| flights.join(1, work)));
        let (answers, ()) = tokio::join!(herd, async { gate.add_permits(1) });
        assert!(answers.iter().all(|answer| *answer == Some(40)), "{answers:?}");
        gate.add_permits(1);
        assert_eq!(flights.join(1, work).await, Some(41), "what has landed is not joined");
    }

    #[tokio::test]
    async fn whoever_set_it_off_may_leave() {
        let flights = Flights::<u8, u8>::new(4);
        let gate = Arc::new(Semaphore::new(0));
        let work = || {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                7
            }
        };
        assert!(futures::poll!(Box::pin(flights.join(1, work))).is_pending());
        let second = flights.join(1, || async { unreachable!("it is under way") });
        let (answer, ()) = tokio::join!(second, async { gate.add_permits(1) });
        assert_eq!(answer, Some(7));
        assert_eq!(flights.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn panics_and_full_tables_leave_nobody_waiting() {
        let flights = Flights::<u8, u8>::new(1);
        assert_eq!(flights.join(1, || async { panic!("part of the test") }).await, None);
        let mut held = Box::pin(flights.join(1, std::future::pending));
        assert!(futures::poll!(&mut held).is_pending());
        assert_eq!(flights.join(2, || async { 2 }).await, None, "the table is full");
    }
}
