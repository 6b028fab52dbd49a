//! Queries on threads of their own, with an answer that streams: bounded in time, rows, memory and number, and ended as soon as nobody
//! waits for it any more.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cidr_engine::{Format, QueryError, QueryOptions};
use cluster::control::Failure;
use cluster::error::Chain;
use tokio::sync::mpsc;

use crate::service::Service;

/// Pieces of 64 KiB that wait for a slow reader; then the query waits.
const PIECES: usize = 4;
/// How long a query waits for a place.
const PLACE: Duration = Duration::from_secs(2);
/// The clock is read once in so many looks: a look comes about every microsecond.
const LOOKS: u32 = 256;

/// A piece of an answer, or why there is no more.
pub type Piece = Result<Bytes, QueryFailure>;

/// Why a query was not answered.
#[derive(Debug, Clone)]
pub enum QueryFailure {
    /// The question; several lines that point at the word.
    Wrong(Failure),
    /// This node, now.
    Unable(Failure),
    /// Too many at a time.
    Busy,
    /// It took longer than it may.
    Slow {
        /// The limit.
        seconds: u64,
    },
}

impl QueryFailure {
    /// In words.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Wrong(failure) | Self::Unable(failure) => failure.clone(),
            Self::Busy => Failure::new("too many queries run at this time").hint("try again in a moment").code("busy"),
            Self::Slow { seconds } => Failure::new(format!("the query took longer than {seconds} s and was ended"))
                .hint("ask for less time, fewer series or a smaller block")
                .code("slow"),
        }
    }
}

/// Begins a query. The answer's first piece comes when there is one; dropping the receiver ends the query.
pub async fn begin(
    service: &Arc<Service>,
    text: String,
    format: Format,
) -> Result<mpsc::Receiver<Piece>, QueryFailure> {
    let store = service.store_or_refusal().map_err(QueryFailure::Unable)?;
    let place = tokio::time::timeout(PLACE, service.query_places.clone().acquire_owned()).await;
    let Ok(Ok(place)) = place else { return Err(QueryFailure::Busy) };
    let (sender, receiver) = mpsc::channel(PIECES);
    let service = service.clone();
    tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        let patience = Patience::new(&service, &sender);
        let options = QueryOptions {
            now: service.wall(),
            memory_bytes: service.limits.query_memory_mib << 20,
            max_rows: service.limits.query_rows,
            format,
            stop: &|| patience.is_over(),
        };
        let answered = store.query(&text, &options, &mut Pieces(&sender));
        service.meters.query_seconds.observe(begun.elapsed().as_secs_f64());
        match answered {
            Ok(_) => drop(service.meters.queries.inc()),
            Err(error) => {
                service.meters.queries_failed.inc();
                if let Some(failure) = patience.judge(&error, &text) {
                    let _ = sender.blocking_send(Err(failure));
                }
            }
        }
        drop(place);
    });
    Ok(receiver)
}

/// How long a query may go on.
struct Patience<'a> {
    sender: &'a mpsc::Sender<Piece>,
    deadline: Instant,
    seconds: u64,
    looks: AtomicU32,
}

impl<'a> Patience<'a> {
    fn new(service: &Service, sender: &'a mpsc::Sender<Piece>) -> Self {
        let seconds = service.limits.query_seconds;
        Self { sender, deadline: Instant::now() + Duration::from_secs(seconds), seconds, looks: AtomicU32::new(0) }
    }

    fn is_over(&self) -> bool {
        self.sender.is_closed()
            || (self.looks.fetch_add(1, Ordering::Relaxed) % LOOKS == LOOKS - 1 && Instant::now() >= self.deadline)
    }

    /// The error in words; none when nobody waits for them.
    fn judge(&self, error: &QueryError, text: &str) -> Option<QueryFailure> {
        if self.sender.is_closed() {
            return None;
        }
        Some(match error {
            QueryError::Text(error) => {
                let rendered = error.render(text);
                let words = rendered.trim_end().strip_prefix("error: ").unwrap_or(&rendered);
                QueryFailure::Wrong(Failure::new(words).code("query"))
            }
            QueryError::Condensed { .. } | QueryError::Memory { .. } | QueryError::Rows { .. } => {
                QueryFailure::Wrong(Failure::new(error.to_string()).code("query"))
            }
            error if error.is_cancelled() => QueryFailure::Slow { seconds: self.seconds },
            error => {
                tracing::error!(error = %Chain(error), "a query failed");
                QueryFailure::Unable(Failure::of(error).code("store"))
            }
        })
    }
}

/// Where the engine writes its answer.
struct Pieces<'a>(&'a mpsc::Sender<Piece>);

impl Write for Pieces<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(data)));
        sent.map(|()| data.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
