//! Working copies: ordinary git working trees that are exchanged atomically when they are updated.
