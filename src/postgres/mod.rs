//! Access to PostgreSQL that knows none of gapless's tables: connection strings, TLS, connections, sessions, errors,
//! binary encoding. Only this folder and `ledger` use tokio-postgres.

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
