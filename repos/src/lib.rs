//! Git, natively: stores, objects, merges, packs, the wire protocol and working copies. The only importer of `gix`; knows neither Raft nor HTTP nor users.
