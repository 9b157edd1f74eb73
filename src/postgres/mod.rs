//! PostgreSQL below gapless's own tables: connection strings, TLS, connections, sessions, errors, binary encoding.
//! tokio-postgres has no other home but this room and `ledger`.

pub mod cancel;
pub mod certificate;
pub mod composite;
pub mod connect_error;
pub mod connector;
pub mod conninfo;
pub mod copy;
pub mod credentials;
pub mod digest;
pub mod error;
pub mod field;
pub mod pool;
pub mod session;
pub mod target;
pub mod tls;
