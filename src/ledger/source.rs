//! The newest generation of a topic: its row in `gapless.sources`.

use tokio_postgres::Row;

use crate::model::topic::TopicIdentity;

pub(crate) const SOURCE: &str = "-- source
select id, cluster_id, topic_id from gapless.sources where topic = $1 order by generation desc limit 1";

/// Source id and topic identity from a row of [`SOURCE`].
pub(crate) fn known_source(row: &Row) -> (i32, TopicIdentity) {
    (row.get(0), TopicIdentity { cluster_id: row.get(1), topic_id: row.get(2) })
}
