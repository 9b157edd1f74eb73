//! Tests of the tests' own helpers. None of them runs gapless.

use std::net::SocketAddr;

use tokio_postgres::NoTls;

use crate::support::proxy::{Fault, Proxy};
use crate::support::servers::RUNTIME;
use crate::support::{Database, Event, Record, Topic};

/// Commits one row through the proxy, as a batch does. Returns true if the client received a success.
fn commit_through(database: &Database, proxy: SocketAddr) -> bool {
    commit_row_through(database, proxy, "insert into rows values (gapless.advance($1))")
}

fn commit_row_through(database: &Database, proxy: SocketAddr, insert: &str) -> bool {
    RUNTIME.block_on(async {
        let url = database.url_through(proxy);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("begin").await.unwrap();
        client.execute(insert, &[&1i32]).await.unwrap();
        client.batch_execute("/* a name */ commit").await.is_ok()
    })
}

#[test]
fn the_proxy_cuts_before_and_after_a_commit_and_holds_one() {
    let database = Database::new();
    database.execute(
        "create table rows (row int); create schema gapless;
         create function gapless.advance(int) returns int language sql as 'select $1'",
    );
    let rows = || database.value::<i64>("select count(*) from rows");
    let proxy = Proxy::before(database.address());
    assert!(commit_through(&database, proxy.address));
    assert_eq!(rows(), 1);

    proxy.arm(Fault::ReplyLost);
    let beside = commit_row_through(&database, proxy.address, "delete from rows where row <> $1");
    assert!(beside, "the fault does not apply to a transaction that moves no position");
    assert!(!commit_through(&database, proxy.address), "the reply is lost");
    proxy.wait_for_faults(1);
    assert_eq!(rows(), 2, "the server has applied the COMMIT");

    proxy.arm(Fault::RequestLost);
    assert!(!commit_through(&database, proxy.address));
    proxy.wait_for_faults(2);
    assert_eq!(rows(), 2, "the server has not received the COMMIT");

    proxy.arm(Fault::AppliedLate);
    assert!(!commit_through(&database, proxy.address));
    proxy.wait_for_held();
    assert_eq!(rows(), 2, "the COMMIT is held");
    proxy.release();
    assert_eq!(rows(), 3, "the COMMIT is applied after its release");
}

#[test]
fn a_test_topic_reports_the_offset_of_each_record_and_the_bounds_of_its_log() {
    let topic = Topic::new(2);
    let event = Event::numbered(1, 1);
    assert_eq!(topic.send([&event, &event]), [0, 1]);
    assert_eq!(topic.send_to(1, ["one", "two", "three"]), [0, 1, 2]);
    assert_eq!(topic.send_records([Record::tombstone(), Record::from("x").to(1).at(1_000)]), [2, 3]);
    topic.delete_before(1, 2);
    assert_eq!((topic.log_start(1), topic.log_end(1)), (2, 4));
    topic.grow_to(3);
    assert_eq!(topic.send_to(2, ["new"]), [0]);
}

#[test]
fn transactions_leave_markers_and_hold_back_the_last_stable_offset() {
    let topic = Topic::new(1);
    let transactions = topic.transactions();
    assert_eq!(transactions.commit(["a", "b"]), [0, 1]);
    assert_eq!(transactions.abort(["c"]), [3]);
    assert_eq!((topic.last_stable(0), topic.log_end(0)), (5, 5));
    let open = transactions.begin(["d"]);
    assert_eq!((topic.last_stable(0), topic.log_end(0)), (5, 6));
    assert_eq!(open.commit(), [5]);
    assert_eq!((topic.last_stable(0), topic.log_end(0)), (7, 7));
}
