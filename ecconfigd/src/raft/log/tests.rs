#![allow(clippy::unwrap_used)]
//! filled below
