//! The accounting holds after random start orders, skips and kills with growing logs; the result is compared with a
//! model.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{Database, Event, Gapless, Random, Record, Topic};

const PARTITIONS: i32 = 2;
const ORDERS: usize = 12;

/// The expected state of a partition, computed by the rules of the contract.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    /// Offsets of committed messages.
    messages: BTreeSet<i64>,
    /// Offsets that must have an outcome.
    read: BTreeSet<i64>,
    /// Start and next offset; `None` before the first start.
    position: Option<(i64, i64)>,
    end: i64,
}

/// The effect of an order on a partition, or the refusal of the whole order.
enum Effect {
    Begin(i64),
    Refused,
}

struct Campaign {
    topic: Topic,
    database: Database,
    random: Random,
    models: BTreeMap<i32, Model>,
    events: u64,
    last_order: Option<String>,
    history: Vec<String>,
}

impl Campaign {
    fn new(seed: u64) -> Self {
        Self {
            topic: Topic::new(PARTITIONS),
            database: Database::new(),
            random: Random::new(seed),
            models: (0..PARTITIONS).map(|partition| (partition, Model::default())).collect(),
            events: 0,
            last_order: None,
            history: vec![format!("seed {seed}")],
        }
    }

    fn event(&mut self) -> Event {
        // Some events are sent twice, some with other content; each is a message of its own.
        let number = match self.random.below(10) {
            0 if self.events > 0 => self.random.below(self.events),
            _ => {
                self.events += 1;
                self.events - 1
            }
        };
        let event = Event::numbered(41, number);
        if self.random.chance(0.1) { event.conflicting() } else { event }
    }

    fn record(&mut self, partition: i32) -> Record {
        let record = match self.random.below(12) {
            0 => Record::from("no event"),
            1 => Record::tombstone(),
            _ => Record::from(self.event()),
        };
        record.to(partition)
    }

    /// Appends messages to the logs, some of them in transactions.
    fn grow(&mut self) {
        for _ in 0..1 + self.random.below(3) {
            let partition = self.random.below(PARTITIONS as u64) as i32;
            let count = 1 + self.random.below(12);
            let records: Vec<Record> = (0..count).map(|_| self.record(partition)).collect();
            let kind = self.random.below(3);
            let visible = match kind {
                0 => self.topic.send_records(records),
                1 => self.topic.transactions().commit(records),
                _ => {
                    self.topic.transactions().abort(records);
                    Vec::new()
                }
            };
            let end = self.topic.log_end(partition);
            let model = self.models.get_mut(&partition).unwrap();
            model.messages.extend(visible);
            model.end = end;
        }
    }

    fn point(&mut self, end: i64) -> String {
        match self.random.below(8) {
            0 => "earliest".to_owned(),
            1 => "latest".to_owned(),
            2 => (end + self.random.below(3) as i64).to_string(),
            _ => self.random.below(end as u64 + 1).to_string(),
        }
    }

    fn order(&mut self) -> Option<String> {
        match self.random.below(6) {
            0 => None,
            1 => self.last_order.clone(),
            2 => Some(if self.random.chance(0.5) { "earliest" } else { "latest" }.to_owned()),
            _ => {
                let ends: Vec<(i32, i64)> =
                    self.models.iter().map(|(partition, model)| (*partition, model.end)).collect();
                let all = self.random.chance(0.7);
                let named: Vec<String> = ends
                    .into_iter()
                    .filter(|(partition, _)| all || *partition == 0)
                    .map(|(partition, end)| format!("{partition}:{}", self.point(end)))
                    .collect();
                Some(named.join(","))
            }
        }
    }

    /// Starts the daemon with a random order and checks the result.
    fn start(&mut self) {
        let order = self.order();
        let allow = order.is_some() && self.random.chance(0.5);
        let again = order.is_some() && self.random.chance(0.5);
        let batch = 1 + self.random.below(9) as u32;
        let kill = self.random.chance(0.4).then(|| 1 + self.random.below(3));
        self.history.push(format!("order {order:?}, skip {allow}, again {again}, batches of {batch}, kill {kill:?}"));
        let before = self.models.clone();
        let carried_out = again || order != self.last_order;
        let refused = self.apply(order.as_deref().filter(|_| carried_out), allow);

        let mut gapless = Gapless::daemon(&self.topic, &self.database).batches_of(batch).until_end();
        if let Some(order) = &order {
            gapless = gapless.offset(order);
        }
        if allow {
            gapless = gapless.args(["--allow-skip"]);
        }
        if again {
            gapless = gapless.args(["--again"]);
        }
        if let Some(hit) = kill {
            let point = ["after_commit", "before_commit", "events_written"][self.random.below(3) as usize];
            gapless = gapless.failpoint(&format!("{point}=kill@{hit}"));
        }
        let ended = gapless.run();
        match (refused, ended.status().code()) {
            (true, Some(3)) => self.models = before,
            (false, Some(0)) => self.read_to_the_end(),
            // The daemon was killed: the stored position shows how far it came.
            (false, None) if kill.is_some() => self.read_as_far_as_it_came(),
            (_, code) => panic!("refused: {refused}, exit code {code:?}\n{}\n{ended}", self.history.join("\n")),
        }
        if !refused && order.is_some() {
            self.last_order = order;
        }
        self.check();
    }

    /// Moves the model's positions as the order demands. Returns true if the order must be refused.
    fn apply(&mut self, order: Option<&str>, allow: bool) -> bool {
        let mut refused = false;
        for (partition, model) in &mut self.models {
            match effect(*partition, model, order, allow) {
                Effect::Refused => refused = true,
                Effect::Begin(at) => {
                    let start = model.position.map_or(at, |(start, _)| start.min(at));
                    model.position = Some((start, at));
                }
            }
        }
        refused
    }

    fn read_to_the_end(&mut self) {
        for model in self.models.values_mut() {
            let end = model.end;
            model.read_to(end);
        }
    }

    fn read_as_far_as_it_came(&mut self) {
        for (partition, (_, next)) in self.database.positions() {
            self.models.get_mut(&partition).unwrap().read_to(next);
        }
    }

    fn check(&self) {
        let history = self.history.join("\n");
        let faults = if self.database.has_ledger() { self.database.accounting_faults().unwrap() } else { Vec::new() };
        assert!(faults.is_empty(), "{history}\n{}", faults.join("\n"));
        let positions = if self.database.has_ledger() { self.database.positions() } else { BTreeMap::new() };
        let found: BTreeSet<(i32, i64)> =
            if self.database.has_ledger() { self.database.outcomes().into_keys().collect() } else { BTreeSet::new() };
        let mut expected = BTreeSet::new();
        for (partition, model) in &self.models {
            assert_eq!(
                positions.get(partition),
                model.position.as_ref(),
                "position of partition {partition}\n{history}"
            );
            expected.extend(model.read.iter().map(|offset| (*partition, *offset)));
        }
        let wrong: Vec<_> = found.symmetric_difference(&expected).collect();
        assert!(wrong.is_empty(), "outcomes stored or expected, but not both: {wrong:?}\n{history}");
    }
}

impl Model {
    /// Reads from the position to an offset, exclusive.
    fn read_to(&mut self, to: i64) {
        if let Some((_, next)) = &mut self.position {
            if *next < to {
                self.read.extend(self.messages.range(*next..to));
            }
            *next = to;
        }
    }
}

fn effect(partition: i32, model: &Model, order: Option<&str>, allow: bool) -> Effect {
    let point = order.and_then(|order| match order {
        "earliest" | "latest" => Some(order),
        _ => order.split(',').find_map(|item| item.strip_prefix(&format!("{partition}:"))),
    });
    let asked = match point {
        None => return Effect::Begin(model.position.map_or(0, |(_, next)| next)),
        Some("earliest") => 0,
        Some("latest") => model.end,
        Some(number) => number.parse().unwrap(),
    };
    let would_skip = model.position.is_some_and(|(_, next)| next < asked);
    if asked > model.end || (would_skip && !allow) { Effect::Refused } else { Effect::Begin(asked) }
}

fn campaign(seed: u64) {
    let mut campaign = Campaign::new(seed);
    campaign.grow();
    for _ in 0..ORDERS {
        campaign.start();
        if campaign.random.chance(0.7) {
            campaign.grow();
        }
    }
    // Finally everything is read from the beginning.
    campaign.history.push("everything".to_owned());
    campaign.apply(Some("earliest"), true);
    Gapless::daemon(&campaign.topic, &campaign.database)
        .offset("earliest")
        .args(["--again"])
        .until_end()
        .run()
        .expect_code(0);
    campaign.read_to_the_end();
    campaign.check();
    let skipped = "select count(*) from gapless.offset_gaps where kind::text = 'skipped'";
    assert_eq!(campaign.database.value::<i64>(skipped), 0, "filled in: {}", campaign.history.join("\n"));
}

#[test]
fn the_accounting_holds_over_random_orders_first_seed() {
    campaign(1);
}

#[test]
fn the_accounting_holds_over_random_orders_second_seed() {
    campaign(2);
}

#[test]
fn the_accounting_holds_over_random_orders_third_seed() {
    campaign(3);
}

#[test]
fn the_accounting_holds_over_random_orders_of_this_day() {
    let day = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 86_400;
    campaign(day);
}
