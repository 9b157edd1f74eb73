//! A partition without a leader does not prevent the reading of others, neither at a start nor while the daemon runs.
//!
//! The tests use librdkafka's mock cluster, where a test can remove and set the leader of a partition.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use crate::support::wait::unique;
use crate::support::{Database, Event, Gapless, Running, Topic};

struct Cluster {
    mock: MockCluster<'static, DefaultProducerContext>,
    topic: Topic,
}

impl Cluster {
    fn new() -> Self {
        let mock = MockCluster::new(1).expect("a mock cluster");
        let topic = Topic { name: unique("topic"), brokers: mock.bootstrap_servers() };
        mock.create_topic(&topic.name, 2, 1).expect("a topic");
        Self { mock, topic }
    }

    fn leader(&self, partition: i32, broker: Option<i32>) {
        self.mock.partition_leader(&self.topic.name, partition, broker).expect("a leader or none");
    }

    fn send(&self, partition: i32, numbers: std::ops::Range<u64>) {
        let events = numbers.map(|number| Event::numbered(partition as u64, number));
        self.topic.send_to(partition, events);
    }
}

#[track_caller]
fn waits_for_a_leader_of_partition_1(daemon: &Running) {
    let line = daemon.wait_for("no leader answers for it");
    assert_eq!(line["fields"]["event"], "partition_suspended", "{line}");
    let ready = daemon.wait_until_ready_is(503);
    assert!(ready.contains("partition 1") || ready.contains("starting"), "{ready}");
}

#[test]
fn a_restart_reads_partitions_with_a_leader_at_once_and_the_others_when_they_have_one() {
    let (cluster, database) = (Cluster::new(), Database::new());
    (0..2).for_each(|partition| cluster.send(partition, 0..5));
    Gapless::daemon(&cluster.topic, &database).until_end().run().expect_code(0);

    cluster.send(0, 5..10);
    cluster.send(1, 5..10);
    cluster.leader(1, None);
    let daemon = Gapless::daemon(&cluster.topic, &database).start();
    waits_for_a_leader_of_partition_1(&daemon);
    database.wait_for_position(0, 10);
    assert_eq!(database.positions()[&1], (0, 5), "its position is unchanged");
    cluster.leader(1, Some(1));
    database.wait_for_position(1, 10);
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    database.assert_accounting();
}

#[test]
fn a_run_until_the_end_waits_for_the_end_of_a_partition_without_a_leader() {
    let (cluster, database) = (Cluster::new(), Database::new());
    (0..2).for_each(|partition| cluster.send(partition, 0..5));
    Gapless::daemon(&cluster.topic, &database).until_end().run().expect_code(0);

    cluster.send(0, 5..10);
    cluster.send(1, 5..10);
    cluster.leader(1, None);
    let daemon = Gapless::daemon(&cluster.topic, &database).until_end().start();
    waits_for_a_leader_of_partition_1(&daemon);
    database.wait_for_position(0, 10);
    cluster.leader(1, Some(1));
    daemon.wait().expect_code(0);
    assert_eq!(database.positions()[&1], (0, 10));
}

#[test]
fn a_first_start_waits_for_a_leader_of_each_partition() {
    let (cluster, database) = (Cluster::new(), Database::new());
    (0..2).for_each(|partition| cluster.send(partition, 0..5));
    cluster.leader(1, None);
    let daemon = Gapless::daemon(&cluster.topic, &database).offset("latest").start();
    daemon.wait_for_event("waiting_to_start");
    daemon.wait_until_ready_is(503);
    assert_eq!(database.rows("select 1 from gapless.positions", &[]).len(), 0);
    cluster.leader(1, Some(1));
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    assert_eq!(database.positions().into_values().collect::<Vec<_>>(), [(5, 5), (5, 5)]);
}
