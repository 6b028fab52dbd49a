//! The configuration server: replicated state, git and JSON over HTTP, watch, accounts. Parses no git objects itself.
