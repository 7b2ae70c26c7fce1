//! The only place where child processes are made.
