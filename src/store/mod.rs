//! Everything that touches PostgreSQL; tokio-postgres has no other home.
//!
//! - [`error`]: SQLSTATE to class and remedy, the one place that decides about retry.
//! - [`connect`]: sessions of a [`pool`]. [`connector`] opens a connection: what [`conninfo`] read from libpq's connection
//!   strings and [`target`] understood, with [`credentials`] read anew, over [`tls`] ([`certificate`]);
//!   [`connect_error`] says why there is none. [`session`]: one connection, its transactions and deadlines.
//! - [`schema`]: migrations. [`start`]: what a start does, [`plan`]: what it would do. [`ledger_row`]: whose ledger it is. [`positions`]: reading positions and fences.
//! - [`catalogue`]: tables, keys, indexes, views and functions held against what this version needs.
//! - [`inspect`]: the ledger held against itself, by [`walk`]s in key order; [`flaws`] judges, [`doubles`] counts, [`effects`]
//!   orders, [`orphans`] names what no view shows, [`fill`] mends what they find.
//!   [`compare`] reads rows beside their messages, which [`contents`] holds against them by the format of [`formats`].
//! - [`cancel`]: what a caller that went away left running.
//! - [`decisions`]: what only an operator may decide; [`decided_gaps`]: ranges given up so; [`rebase`]: that a topic begins a new
//!   generation. [`known`]: what the ledger has, for whoever names something else.
//! - [`audit`]: offsets unaccounted for, counted as they come. [`status`]: what the ledger says about a topic; [`states`]: which partitions are not being read, and why.
//! - [`statistics`]: what readers' plans are made by.
//! - [`rights`]: what the role may do.
//! - [`receipt`]: what became of one message or transaction.
//! - [`late`]: what changed behind the back of whoever reads by position.
//! - [`letters`]: dead letters; [`replay`]: their way back.
//! - [`commit`]: the one function that writes a batch; [`turn`] puts the commits of several into one line.
//!   [`route`] chooses the way that its events take, [`paths`] are the ways, [`few`] the shortest, [`isolate`] finds rows that
//!   PostgreSQL refuses; [`merge`] decides what each message did; [`events`] and [`rows`] are its
//!   set-based statements, [`copy`] their binary rows, [`lane`] the connection they go by. [`abandoned`] ends what a
//!   stopped daemon left in the way.

mod abandoned;
mod audit;
mod cancel;
mod catalogue;
mod certificate;
mod commit;
mod compare;
mod composite;
mod connect;
mod connect_error;
mod connector;
mod conninfo;
mod contents;
mod copy;
mod credentials;
mod decided_gaps;
mod decisions;
mod digest;
mod doubles;
mod effects;
mod error;
mod events;
mod few;
mod field;
mod fill;
mod flaws;
mod formats;
mod inspect;
mod isolate;
mod known;
mod lane;
mod late;
mod ledger_row;
mod letters;
mod merge;
mod orphans;
mod paths;
mod plan;
mod pool;
mod positions;
mod rebase;
mod receipt;
mod replay;
mod rights;
mod route;
mod rows;
mod schema;
mod session;
mod start;
mod states;
mod statistics;
mod status;
mod target;
mod tls;
mod turn;
mod walk;

pub use self::audit::Audit;
pub use self::cancel::cancelled;
pub use self::catalogue::{Difference, Differences, Findings as CatalogueFindings, Sequences};
pub use self::commit::{CommitError, Report, Writer};
pub use self::compare::Compared;
pub use self::connect::Store;
pub use self::connect_error::ConnectError;
pub use self::contents::{Fields, Suspect};
pub use self::decisions::{DecisionError, Loss};
pub use self::doubles::Doubled;
pub use self::effects::Undone;
pub use self::error::{Class, StoreError};
pub use self::events::encoded_bytes;
pub use self::fill::{FillOrder, Filled, Touched};
pub use self::flaws::{Flaw, Flaws};
pub use self::formats::{Decoding, History};
pub use self::inspect::{Accepted, Inspected, Inspector};
pub use self::known::Known;
pub use self::ledger_row::OtherIdentity;
pub use self::letters::{Bytes, Letter, Selector};
pub use self::orphans::Orphans;
pub use self::plan::{Leaderless, PartitionPlan, Plan, begins};
pub use self::positions::{Owner, Position, Tenure};
pub use self::rebase::{OldPartition, Rebase, Rebased};
pub use self::receipt::{Fate, MessageReceipt, Occurrence};
pub use self::replay::Replayed;
pub use self::rights::{MissingRight, Whose, merged};
pub use self::route::Path;
pub use self::schema::{Asked, MigrateError, SchemaState};
pub use self::start::{OrderState, StartError, StartRequest, Started};
pub use self::states::RecordedState;
pub use self::status::{AtLeast, LedgerStatus, PartitionStatus, Recorded};
pub use self::turn::{Ahead, Breakers, Turn, keep};
