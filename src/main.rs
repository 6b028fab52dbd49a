//! `eccluster`: one binary that is every program of the cluster.

fn main() {}
