//! Queries on threads of their own, with an answer that streams: bounded in time, rows, memory and number, and ended as soon as nobody
//! waits for it any more. The time of whoever reads the answer counts, too: clients that stop reading would otherwise keep all places.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cidr_engine::{Format, QueryError, QueryOptions};
use cluster::control::Failure;
use cluster::error::Chain;
use tokio::runtime::Handle;
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
    let (service, runtime) = (service.clone(), Handle::current());
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
        let mut pieces = Pieces { sender: &sender, deadline: patience.deadline, runtime: &runtime };
        let answered = store.query(&text, &options, &mut pieces);
        drop(place);
        service.meters.query_seconds.observe(begun.elapsed().as_secs_f64());
        match answered {
            Ok(_) => drop(service.meters.queries.inc()),
            Err(error) => {
                service.meters.queries_failed.inc();
                if let Some(failure) = patience.judge(&error, &text) {
                    // Whoever reads again learns that the answer is not whole; a thread does not wait for that.
                    runtime.spawn(async move { sender.send(Err(failure)).await });
                }
            }
        }
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
            QueryError::Output(error) if error.kind() == io::ErrorKind::TimedOut => {
                QueryFailure::Slow { seconds: self.seconds }
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
struct Pieces<'a> {
    sender: &'a mpsc::Sender<Piece>,
    deadline: Instant,
    runtime: &'a Handle,
}

impl Write for Pieces<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let place = tokio::time::timeout_at(self.deadline.into(), self.sender.reserve());
        match self.runtime.block_on(place) {
            Ok(Ok(place)) => {
                place.send(Ok(Bytes::copy_from_slice(data)));
                Ok(data.len())
            }
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cidr_engine::{Counts, Window};

    use super::*;
    use crate::service::QueryLimits;
    use crate::settings::Settings;

    /// A server with one series `big` of 60,000 addresses: two megabytes of text, of which a quarter fits between a query and its reader.
    fn server(dir: &std::path::Path, limits: QueryLimits) -> Arc<Service> {
        let outbox = crate::outbox::Outbox::open(&dir.join("outbox"), "n1").unwrap();
        let (peers, meters) = (crate::peers::Peers::new(None), crate::metrics::Meters::new("n1"));
        let (service, _finished) = Service::new("n1".into(), dir.into(), limits, outbox, peers, meters);
        let mut settings = Settings::none();
        settings.servers = vec!["n1".into()];
        service.apply(settings).unwrap();
        let counts = Counts::from_rows((0..60_000).map(|host| (host, 1)).collect(), Vec::new());
        let window = Window { series: "big".into(), node: "n1".into(), start: 0, end: 900, counts };
        service.store().unwrap().commit(None, &[window]).unwrap();
        service
    }

    const ALL: &str = "show count for 0.0.0.0/0 in big";

    #[tokio::test]
    async fn who_finds_no_place_is_told_and_an_answer_with_too_many_rows_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let limits = QueryLimits { max_queries: 1, query_seconds: 3_600, query_rows: 60_000, query_memory_mib: 64 };
        let service = server(dir.path(), limits);
        let ask = |text: &str| begin(&service, text.to_owned(), Format::Text);

        let unread = ask(ALL).await.unwrap();
        assert!(matches!(ask("show count for 0.0.0.7 in big").await, Err(QueryFailure::Busy)));
        drop(unread);
        let mut last = None;
        let mut whole = ask(ALL).await.unwrap();
        while let Some(piece) = whole.recv().await {
            last = Some(piece);
        }
        assert!(matches!(last, Some(Ok(_))), "as many rows as may be: {last:?}");

        let more = ask("show count for 0.0.0.0/0 in big cidrsize 31 to 32").await;
        let mut pieces = more.unwrap();
        while let Some(piece) = pieces.recv().await {
            last = Some(piece);
        }
        let Some(Err(QueryFailure::Wrong(failure))) = last else { panic!("{last:?}") };
        assert!(failure.message.contains("60000"), "{failure:?}");
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_gives_its_place_back() {
        let dir = tempfile::tempdir().unwrap();
        let limits = QueryLimits { max_queries: 1, query_seconds: 1, query_rows: 1 << 20, query_memory_mib: 64 };
        let service = server(dir.path(), limits);
        let ask = |text: &str| begin(&service, text.to_owned(), Format::Text);

        let mut unread = ask(ALL).await.unwrap();
        assert!(unread.recv().await.unwrap().is_ok());
        // The only place is taken until the second is over; this waits for it, at most two.
        let mut other = ask("show count for 0.0.0.7 in big").await.unwrap();
        assert_eq!(other.recv().await.unwrap().unwrap(), "0.0.0.7/32         :         1\n");
        // What was left unread does not look whole.
        let mut last = None;
        while let Some(piece) = unread.recv().await {
            last = Some(piece);
        }
        assert!(matches!(last, Some(Err(QueryFailure::Slow { seconds: 1 }))), "{last:?}");
    }
}
