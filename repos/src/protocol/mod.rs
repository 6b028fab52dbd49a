//! The git wire protocol, independent of the transport: both sides of fetch and push over `Read` and `Write`.
