//! The command line and the node agent. Never imports the server.
