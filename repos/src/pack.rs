//! The pack format: writing, scanning and indexing.
