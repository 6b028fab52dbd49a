//! What every daemon needs: identity and TLS, configuration documents, gate, subscription, control socket, telemetry. Knows neither git nor Raft.

pub mod api;
